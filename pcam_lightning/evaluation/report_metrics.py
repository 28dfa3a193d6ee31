"""The scores that head a report, each an entry in one table."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pcam_lightning.metrics.bootstrap import Interval, bootstrap_rows, bootstrap_scores, percentile_interval
from pcam_lightning.metrics.classification import auroc, average_precision

Array = np.ndarray


class ReportMetric(NamedTuple):
    """A score of labels (N,) and logits (N,).

    Attributes:
        title: its heading in the page.
        score: computes it.
        column: of what `bootstrap_scores` returns; None computes it for each bootstrap sample, which is slower.
    """

    title: str
    score: Callable[[Array, Array], float]
    column: int | None = None


# By the name that report.json has it under.
REPORT_METRICS: dict[str, ReportMetric] = {
    "auroc": ReportMetric("AUROC", auroc, 0),
    "average_precision": ReportMetric("average precision", average_precision, 1),
}


def score_with_intervals(
    label: Array, logit: Array, cluster: Array, samples: int, seed: int
) -> tuple[dict[str, Interval], int]:
    """Compute all scores, each with a 95 % bootstrap interval over clusters.

    Args:
        label: 0 or 1, shape (N,).
        logit: shape (N,).
        cluster: of each patch, shape (N,).
        samples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The scores by name, and how many samples were of one class, so that they had no score.
    """
    known = bootstrap_scores(label, logit, cluster, samples, seed)
    found = {}
    for name, metric in REPORT_METRICS.items():
        drawn = known[metric.column] if metric.column is not None else None
        if drawn is None:
            rows = bootstrap_rows(cluster, samples, seed)
            drawn = np.array([_score(metric, label[chosen], logit[chosen]) for chosen in rows])
        found[name] = percentile_interval(metric.score(label, logit), drawn)
    return found, int((~np.isfinite(known[0])).sum())


def _score(metric: ReportMetric, label: Array, logit: Array) -> float:
    return metric.score(label, logit) if 0 < label.mean() < 1 else float("nan")
