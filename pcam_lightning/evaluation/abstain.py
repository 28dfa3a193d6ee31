"""Which patches are called neither normal nor tumor, and what the others' calls come to."""

import math
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
from pcam_lightning.utils.errors import UserError

_CODES = {name: code for code, name in DECISIONS.items()}
# Columns that `predict` may write into a CSV, less of which is more certain.
_CONFIDENCES = {"spread": "agreement of views or networks", "distance": "nearness to training patches"}


def check_abstain(error: float | None) -> None:
    """Check the share of each class that may be called the other one.

    Raises:
        UserError: it is out of range.
    """
    if error is not None and not 0 < error < 0.5:
        raise UserError(f"`abstain` {error}: the share of each class that may be called wrongly, such as 0.05.")


def find_decisions(rows: pd.DataFrame, part: np.ndarray, error: float | None) -> tuple[pd.DataFrame, dict[str, float]]:
    """Decide each patch by thresholds that are fitted without its part; decisions that are in a file stay.

    Args:
        rows: with `label`, `logit` and, of a file that `predict` has written, `decision`.
        part: of each patch, shape (N,).
        error: see `conformal_thresholds`; None where nothing is to be decided.

    Returns:
        The rows with `decision`: 0, 1, or -1 where the network abstains, where there is one; and the thresholds that
        all patches give, none of a file that has its decisions.

    Raises:
        UserError: a decision in the file is unknown, or it has some and `error` is given.
    """
    if "decision" in rows:
        if error is not None:
            raise UserError("`abstain`: the file has a column decision already; leave the option out.")
        codes = rows["decision"].map(_CODES)
        if codes.isna().any():
            wrong = rows["decision"][codes.isna()].iloc[0]
            raise UserError(f"decision {wrong!r} should be {', '.join(_CODES)}.")
        return rows.assign(decision=codes.astype(np.int64)), {}
    if error is None:
        return rows, {}
    label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
    decision = np.empty(len(rows), dtype=np.int64)
    for mask, thresholds in cross_fit(
        label, logit, part, lambda label, logit: conformal_thresholds(label, logit, error)
    ):
        decision[mask] = decide(logit[mask], thresholds)
    return rows.assign(decision=decision), conformal_thresholds(label, logit, error)._asdict()


def report_abstention(rows: pd.DataFrame, thresholds: dict[str, float], error: float | None) -> dict[str, Any] | None:
    """Return what decisions come to, for the report; None where nothing was decided."""
    if "decision" not in rows:
        return None
    found = score_decisions(rows["label"].to_numpy(), rows["decision"].to_numpy())._asdict()
    values = {"error": error, **thresholds, **found}
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}


def report_unlike(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Return how many patches are unlike the training patches, and how often theirs and other calls at 0.5 are wrong.

    None where it is not known; a share of no patches is None.
    """
    if "unlike" not in rows:
        return None
    unlike = rows["unlike"].to_numpy(dtype=bool)
    wrong = (rows["logit"].to_numpy() > 0) != (rows["label"].to_numpy() == 1)
    return {
        "patches": int(unlike.sum()),
        "share": float(unlike.mean()),
        "wrong": float(wrong[unlike].mean()) if unlike.any() else None,
        "wrong_of_others": float(wrong[~unlike].mean()) if not unlike.all() else None,
    }


def confidences(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return by what patches can be put in order, the most certain first: higher is more certain, shape (N,) each."""
    known = {name: -rows[column].to_numpy() for column, name in _CONFIDENCES.items() if column in rows}
    return {"distance from 0.5": np.abs(rows["logit"].to_numpy()), **known}


def areas_under_risk_coverage(rows: pd.DataFrame) -> dict[str, float]:
    """Return the area under the risk-coverage curve for each of `confidences`."""
    label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
    return {name: area_under_risk_coverage(label, logit, value) for name, value in confidences(rows).items()}
