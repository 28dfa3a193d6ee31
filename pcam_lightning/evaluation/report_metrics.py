"""The headline scores of a report, and their table by name."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pcam_lightning.metrics.bootstrap import Interval, bootstrap_rows, bootstrap_scores, percentile_interval
from pcam_lightning.metrics.classification import auroc, average_precision

Array = np.ndarray


class ReportMetric(NamedTuple):
    """A score of labels (N,) and logits (N,).

    Attributes:
        title: heading in the page.
        score: function of labels and logits.
        column: index in the result of `bootstrap_scores`; None calls `score` for each bootstrap sample, which is
            slower.
    """

    title: str
    score: Callable[[Array, Array], float]
    column: int | None = None


# Keys are the names in report.json.
REPORT_METRICS: dict[str, ReportMetric] = {
    "auroc": ReportMetric("AUROC", auroc, 0),
    "average_precision": ReportMetric("average precision", average_precision, 1),
}


def score_with_intervals(
    label: Array, logit: Array, cluster: Array, samples: int, seed: int
) -> tuple[dict[str, Interval], int]:
    """Compute all scores, each with a 95 % bootstrap interval over clusters.

    Args:
        label: labels, 0 or 1, shape (N,).
        logit: logits, shape (N,).
        cluster: cluster of each patch, shape (N,).
        samples: number of bootstrap samples.
        seed: random seed for the bootstrap.

    Returns:
        The scores by name, and the number of samples without a score because they had a single class.
    """
    known = bootstrap_scores(label, logit, cluster, samples, seed)
    found = {}
    for name, metric in REPORT_METRICS.items():
        sampled = known[metric.column] if metric.column is not None else None
        if sampled is None:
            rows = bootstrap_rows(cluster, samples, seed)
            sampled = np.array([_score(metric, label[chosen], logit[chosen]) for chosen in rows])
        found[name] = percentile_interval(metric.score(label, logit), sampled)
    return found, int((~np.isfinite(known[0])).sum())


def _score(metric: ReportMetric, label: Array, logit: Array) -> float:
    return metric.score(label, logit) if 0 < label.mean() < 1 else float("nan")
