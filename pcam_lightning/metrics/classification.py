"""AUROC, average precision, confusion counts and thresholds from arrays of labels and logits."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

Array = np.ndarray


class ConfusionCounts(NamedTuple):
    """Confusion counts and the rates computed from them."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def sensitivity(self) -> float:
        """Share of positives that are called positive."""
        return self.true_positive / (self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of negatives that are called negative."""
        return self.true_negative / (self.true_negative + self.false_positive)

    @property
    def accuracy(self) -> float:
        """Share of correct decisions."""
        return (self.true_positive + self.true_negative) / sum(self)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of sensitivity and specificity."""
        return (self.sensitivity + self.specificity) / 2

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision."""
        return 2 * self.true_positive / (2 * self.true_positive + self.false_positive + self.false_negative)


# Headings of the rates in a report, by property name.
RATES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
}


def confusion_counts(label: Array, decision: Array) -> ConfusionCounts:
    """Count true and false positives and negatives.

    Args:
        label: labels, 0 or 1, shape (N,).
        decision: True for tumor, bool, shape (N,).
    """
    positive = label == 1
    return ConfusionCounts(
        int((positive & decision).sum()),
        int((~positive & decision).sum()),
        int((~positive & ~decision).sum()),
        int((positive & ~decision).sum()),
    )


def top_errors(label: Array, logit: Array) -> dict[str, Array]:
    """Return the rows of wrong patches at threshold 0.5 by kind of error, largest errors first."""
    kinds = {
        "called tumor, is normal": (label == 0) & (logit > 0),
        "called normal, is tumor": (label == 1) & (logit < 0),
    }
    return {
        kind: np.flatnonzero(wrong)[np.argsort(-np.abs(logit[wrong]), kind="stable")] for kind, wrong in kinds.items()
    }


def youden_threshold(label: Array, logit: Array) -> float:
    """Return the logit threshold with the highest balanced accuracy (Youden 1950).

    The threshold is the midpoint of two observed logits, so rounding does not change a decision.
    """
    false, found, logits = roc_curve(label, logit, drop_intermediate=False)
    best = int(np.argmax(found - false))
    if best == 0:
        return float(np.inf)
    below = logits[best + 1] if best + 1 < len(logits) else logits[best]
    return float((logits[best] + below) / 2)


def sensitivity_at_specificity(label: Array, logit: Array, specificity: float) -> float:
    """Return the highest sensitivity with at least the given specificity."""
    false, found, _ = roc_curve(label, logit, drop_intermediate=False)
    return float(found[1 - false >= specificity - 1e-12].max())


def specificity_at_sensitivity(label: Array, logit: Array, sensitivity: float) -> float:
    """Return the highest specificity with at least the given sensitivity."""
    false, found, _ = roc_curve(label, logit, drop_intermediate=False)
    return float((1 - false)[found >= sensitivity - 1e-12].max())


def auroc(label: Array, logit: Array) -> float:
    """Return the area under the ROC curve; ties count as one half."""
    return float(roc_auc_score(label, logit))


def average_precision(label: Array, logit: Array) -> float:
    """Return the average precision, without interpolation."""
    return float(average_precision_score(label, logit))
