"""Decisions with abstention, their error rates, and those of out-of-distribution patches."""

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
# Optional columns of `predict`; lower values are more certain.
_CONFIDENCES = {"sd_views": "agreement of views or networks", "ood_distance": "similarity to training patches"}


def check_abstain(error: float | None) -> None:
    """Check the maximum error rate of each class.

    Raises:
        UserError: the rate is out of range.
    """
    if error is not None and not 0 < error < 0.5:
        raise UserError(f"`abstain` {error}: should be an error rate between 0 and 0.5, such as 0.05.")


def drop_unknown(rows: pd.DataFrame, target: Path) -> pd.DataFrame:
    """Drop columns with names used by `predict` but other values, and warn about them.

    Args:
        rows: predictions with any columns.
        target: file of the predictions, for the warning.
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
            rank_zero_warn(f"{target}: column {name} is ignored, because predict does not write {wrong!r} there.")
            rows = rows.drop(columns=name)
    return rows


def find_decisions(
    rows: pd.DataFrame, fold: np.ndarray, error: float | None
) -> tuple[pd.DataFrame, dict[str, float | None] | None]:
    """Decide each patch by thresholds fitted on the other folds; decisions in the file are kept.

    Args:
        rows: predictions with `label`, `logit` and optionally the `decision` column of `predict`.
        fold: fold of each patch, shape (N,).
        error: maximum error rate, see `conformal_thresholds`; None makes no decisions.

    Returns:
        The rows, with `decision` (0, 1, or -1 for abstention) if decisions are made. The thresholds `low` and `high`
        fitted on all patches, None if infinite; None instead if the file contains decisions.

    Raises:
        UserError: the file contains decisions and `error` is given.
    """
    if "decision" in rows:
        if error is not None:
            raise UserError("`abstain`: the file already has a column decision; omit the option.")
        return rows.assign(decision=rows["decision"].astype(np.int64)), None
    if error is None:
        return rows, None
    label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
    decision = np.empty(len(rows), dtype=np.int64)
    for mask, thresholds in cross_fit(
        label, logit, fold, lambda label, logit: conformal_thresholds(label, logit, error)
    ):
        decision[mask] = decide(logit[mask], thresholds)
    found = conformal_thresholds(label, logit, error)._asdict()
    return rows.assign(decision=decision), {
        name: value if math.isfinite(value) else None for name, value in found.items()
    }


def report_abstention(rows: pd.DataFrame, error: float | None) -> dict[str, Any] | None:
    """Return coverage and error rates for the report; None without decisions."""
    if "decision" not in rows:
        return None
    found = score_decisions(rows["label"].to_numpy(), rows["decision"].to_numpy())._asdict()
    values = {"error": error, **found}
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}


def report_ood(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Return the number of out-of-distribution patches, and the error rates of these and other patches at 0.5.

    None if the predictions have no column `ood`; the error rate of an empty set is None.
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
    """Return the available confidence scores, shape (N,) each; higher is more certain."""
    known = {name: -rows[column].to_numpy() for column, name in _CONFIDENCES.items() if column in rows}
    return {"distance from 0.5": np.abs(rows["logit"].to_numpy()), **known}


def areas_under_risk_coverage(rows: pd.DataFrame) -> dict[str, float]:
    """Return the area under the risk-coverage curve for each confidence score."""
    label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
    return {name: area_under_risk_coverage(label, logit, value) for name, value in confidences(rows).items()}
