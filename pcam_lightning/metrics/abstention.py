"""Abstention: conformal thresholds, and error rate against coverage."""

from typing import NamedTuple

import numpy as np

Array = np.ndarray

ABSTAINS = -1  # decision of a patch that is called neither
DECISIONS = {0: "normal", 1: "tumor", ABSTAINS: "abstain"}  # names in CSV files


class Thresholds(NamedTuple):
    """Two logits; patches between them are called neither normal nor tumor.

    Attributes:
        low: patches with a lower logit are called normal.
        high: patches with a higher logit are called tumor.
    """

    low: float
    high: float


def conformal_thresholds(label: Array, logit: Array, error: float) -> Thresholds:
    """Return thresholds that bound the error rate of each class.

    Uses class-conditional split conformal prediction (Vovk et al. 2005; Sadinle et al. 2019). Each class of new patches
    from the same distribution is called the other class with a probability of at most `error`. The bound holds for any
    share of tumor. It does not cover new slides or hospitals, whose distribution differs. If the network makes fewer
    errors than allowed, both thresholds are set to their midpoint and no patch is left between them.

    Args:
        label: labels, 0 or 1, shape (N,).
        logit: logits, shape (N,).
        error: maximum error rate of each class, in (0, 1).
    """
    normal, tumor = (np.sort(logit[label == value]) for value in (0, 1))
    low_rank, high_rank = (int(error * (len(values) + 1)) for values in (tumor, normal))
    low = float(tumor[low_rank - 1]) if low_rank else -np.inf
    high = float(normal[-high_rank]) if high_rank else np.inf
    if low > high:
        low = high = (low + high) / 2
    return Thresholds(low, high)


def decide(logit: Array, thresholds: Thresholds) -> Array:
    """Return 0 for normal, 1 for tumor and -1 where the network abstains, int64, shape (N,)."""
    called = np.where(logit > thresholds.high, 1, ABSTAINS)
    return np.where(logit < thresholds.low, 0, called).astype(np.int64)


class Abstention(NamedTuple):
    """Coverage and error rates of a set of decisions.

    Attributes:
        kept: share of the patches that are called normal or tumor.
        wrong: error rate among these; NaN if there are none.
        normal_called_tumor: share of the normal patches that are called tumor.
        tumor_called_normal: share of the tumor patches that are called normal.
    """

    kept: float
    wrong: float
    normal_called_tumor: float
    tumor_called_normal: float


def score_decisions(label: Array, decision: Array) -> Abstention:
    """Compare decisions with labels, both of shape (N,); rates over an empty set are NaN."""
    kept = decision != ABSTAINS
    wrong = kept & (decision != label)
    of_class = (label == value for value in (0, 1))
    shares = [float(wrong[mask].mean()) if mask.any() else float("nan") for mask in (kept, *of_class)]
    return Abstention(float(kept.mean()), *shares)


def risk_coverage(label: Array, logit: Array, confidence: Array) -> tuple[Array, Array]:
    """Return the risk-coverage curve: the error rate of the most confident patches at each coverage.

    See El-Yaniv and Wiener 2010. Patches with equal confidence are kept or dropped together.

    Args:
        label: labels, 0 or 1, shape (N,).
        logit: logits, shape (N,); patches above 0 are called tumor.
        confidence: confidence of each patch, shape (N,).

    Returns:
        Coverages in increasing order up to 1, and the error rate at each; shape (M,) each.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum((logit[order] > 0) != (label[order] == 1))
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    return (ends + 1) / len(label), wrong[ends] / (ends + 1)


def area_under_risk_coverage(label: Array, logit: Array, confidence: Array) -> float:
    """Return the mean error rate over all coverages; lower is better."""
    kept, risk = risk_coverage(label, logit, confidence)
    return float((np.diff(kept, prepend=0) * risk).sum())
