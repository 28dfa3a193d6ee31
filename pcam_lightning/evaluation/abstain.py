"""Which patches are called neither normal nor tumor, and what the others' calls come to."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pcam_lightning.metrics.abstention import (
    DECISIONS,
    area_under_risk_coverage,
    conformal_thresholds,
    decide,
    score_decisions,
)
from pcam_lightning.metrics.calibration import cross_fit
from pcam_lightning.utils.errors import UserError, rank_zero_warn

_CODES = {name: code for code, name in DECISIONS.items()}
# Columns that `predict` may write into a CSV, less of which is more certain.
_CONFIDENCES = {"sd_views": "agreement of views or networks", "ood_distance": "nearness to training patches"}


def check_abstain(error: float | None) -> None:
    """Check the share of each class that may be called the other one.

    Raises:
        UserError: it is out of range.
    """
    if error is not None and not 0 < error < 0.5:
        raise UserError(f"`abstain` {error}: the share of each class that may be called wrongly, such as 0.05.")


def drop_unknown(rows: pd.DataFrame, target: Path) -> pd.DataFrame:
    """Drop columns that have the names of what `predict` writes, and other values; a warning names them.

    Args:
        rows: with any columns.
        target: where they are from, for the message.
    """
    for name in (*_CONFIDENCES, "ood", "decision"):
        if name not in rows:
            continue
        if name in _CONFIDENCES:
            values = pd.to_numeric(rows[name], errors="coerce").astype(float)
            valid = values.abs() < np.inf
        else:
            values = rows[name].astype(str).map({"True": True, "False": False} if name == "ood" else _CODES)
            valid = values.notna()
        if valid.all():
            rows = rows.assign(**{name: values})
        else:
            wrong = str(rows[name][~valid].iloc[0])
            rank_zero_warn(f"{target}: column {name} is not used, since {wrong!r} is not what predict writes there.")
            rows = rows.drop(columns=name)
    return rows


def find_decisions(
    rows: pd.DataFrame, part: np.ndarray, error: float | None
) -> tuple[pd.DataFrame, dict[str, float | None] | None]:
    """Decide each patch by thresholds that are fitted without its part; decisions that are in a file stay.

    Args:
        rows: with `label`, `logit` and, of a file that `predict` has written, `decision`, see `drop_unknown`.
        part: of each patch, shape (N,).
        error: see `conformal_thresholds`; None where nothing is to be decided.

    Returns:
        The rows with `decision`: 0, 1, or -1 where the network abstains, where there is one; and the thresholds that
        all patches give, low and high, None each where it is infinite; None of a file that has its decisions.

    Raises:
        UserError: the file has decisions, and `error` is given.
    """
    if "decision" in rows:
        if error is not None:
            raise UserError("`abstain`: the file has a column decision already; leave the option out.")
        return rows.assign(decision=rows["decision"].astype(np.int64)), None
    if error is None:
        return rows, None
    label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
    decision = np.empty(len(rows), dtype=np.int64)
    for mask, thresholds in cross_fit(
        label, logit, part, lambda label, logit: conformal_thresholds(label, logit, error)
    ):
        decision[mask] = decide(logit[mask], thresholds)
    found = conformal_thresholds(label, logit, error)._asdict()
    return rows.assign(decision=decision), {
        name: value if math.isfinite(value) else None for name, value in found.items()
    }


def report_abstention(rows: pd.DataFrame, error: float | None) -> dict[str, Any] | None:
    """Return what decisions come to, for the report; None where nothing was decided."""
    if "decision" not in rows:
        return None
    found = score_decisions(rows["label"].to_numpy(), rows["decision"].to_numpy())._asdict()
    values = {"error": error, **found}
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}


def report_ood(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Return how many patches are out of distribution, and how often their calls and the others at 0.5 are wrong.

    None where it is not known; a share of no patches is None.
    """
    if "ood" not in rows:
        return None
    ood = rows["ood"].to_numpy(dtype=bool)
    wrong = (rows["logit"].to_numpy() > 0) != (rows["label"].to_numpy() == 1)
    return {
        "patches": int(ood.sum()),
        "share": float(ood.mean()),
        "wrong": float(wrong[ood].mean()) if ood.any() else None,
        "wrong_of_others": float(wrong[~ood].mean()) if not ood.all() else None,
    }


def confidences(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return by what patches can be put in order, the most certain first: higher is more certain, shape (N,) each."""
    known = {name: -rows[column].to_numpy() for column, name in _CONFIDENCES.items() if column in rows}
    return {"distance from 0.5": np.abs(rows["logit"].to_numpy()), **known}


def areas_under_risk_coverage(rows: pd.DataFrame) -> dict[str, float]:
    """Return the area under the risk-coverage curve for each of `confidences`."""
    label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
    return {name: area_under_risk_coverage(label, logit, value) for name, value in confidences(rows).items()}
