"""Scores by hospital, patient and slide."""

import math
from typing import Any

import pandas as pd

from pcam_lightning.data.table_file import LEVELS
from pcam_lightning.evaluation.labeled_predictions import clusters
from pcam_lightning.metrics.abstention import score_decisions
from pcam_lightning.metrics.bootstrap import bootstrap_scores, percentile_interval
from pcam_lightning.metrics.calibration import negative_log_likelihood
from pcam_lightning.metrics.classification import auroc


def by_group(rows: pd.DataFrame, level: str, samples: int, seed: int) -> list[dict[str, Any]]:
    """Score each group of a level, highest error rate first.

    Args:
        rows: predictions with id, label, logit, the columns of this and lower levels, `wrong`, and optionally
            `decision`.
        level: center, patient or slide. The AUROC of a center gets a bootstrap interval over its patients or slides.
        samples: number of bootstrap samples.
        seed: random seed for the bootstrap.
    """
    scores = []
    for name, group in rows.groupby(level):
        label, logit = group["label"].to_numpy(), group["logit"].to_numpy()
        interval = {}
        if level == LEVELS[0] and 0 < label.mean() < 1:
            cluster, clustered_by = clusters(group.drop(columns=level))
            found = percentile_interval(0.0, bootstrap_scores(label, logit, cluster, samples, seed)[0])
            interval = {"low": found.low, "high": found.high, "clustered_by": clustered_by}
        scores.append(
            {
                level: str(name),
                "patches": len(group),
                "tumor_share": float(label.mean()),
                "auroc": auroc(label, logit) if 0 < label.mean() < 1 else None,
                "wrong": float(group["wrong"].mean()),
                "nll": negative_log_likelihood(label, logit),
                **interval,
                **({} if "decision" not in group else _decisions(group)),
            }
        )
    return sorted(scores, key=lambda row: (-row["wrong"], -row["nll"]))


def _decisions(group: pd.DataFrame) -> dict[str, float | None]:
    """Return coverage and error rates of a group; None for the error rate of an empty set."""
    found = score_decisions(group["label"].to_numpy(), group["decision"].to_numpy())._asdict()
    found["wrong_of_called"] = found.pop("wrong")  # `wrong` is the error rate at the chosen threshold
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
