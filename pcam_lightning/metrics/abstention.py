"""When to abstain: conformal thresholds, and what is kept at which error."""

from typing import NamedTuple

import numpy as np

Array = np.ndarray

ABSTAINS = -1  # of a decision
DECISIONS = {0: "normal", 1: "tumor", ABSTAINS: "abstain"}  # in CSVs


class Thresholds(NamedTuple):
    """Logits between which a patch is called neither normal nor tumor.

    Attributes:
        low: a patch below it is called normal.
        high: a patch above it is called tumor.
    """

    low: float
    high: float


def conformal_thresholds(label: Array, logit: Array, error: float) -> Thresholds:
    """Return thresholds by which at most a share of each class is called the other one.

    Split conformal prediction for each class (Vovk et al. 2005; Sadinle et al. 2019): of new patches that are drawn as
    these were, a tumor is called normal with a probability of at most `error`, and normal tissue tumor likewise,
    whatever the share of tumor. Patches of new slides or hospitals are not drawn as these were. Where the network errs
    less than is allowed, no patch is left between the thresholds, which are then one, halfway.

    Args:
        label: 0 or 1, shape (N,).
        logit: shape (N,).
        error: the share, in (0, 1).
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
    """What decisions come to.

    Attributes:
        kept: share of the patches that are decided.
        wrong: share of these that are wrong; NaN where none is decided.
        normal_called_tumor: share of the normal patches.
        tumor_called_normal: share of those with tumor.
    """

    kept: float
    wrong: float
    normal_called_tumor: float
    tumor_called_normal: float


def score_decisions(label: Array, decision: Array) -> Abstention:
    """Count decisions, shape (N,), against labels; a share of no patches is NaN."""
    kept = decision != ABSTAINS
    wrong = kept & (decision != label)
    of_class = (label == value for value in (0, 1))
    shares = [float(wrong[mask].mean()) if mask.any() else float("nan") for mask in (kept, *of_class)]
    return Abstention(float(kept.mean()), *shares)


def risk_coverage(label: Array, logit: Array, confidence: Array) -> tuple[Array, Array]:
    """Return the share of wrong ones among the most confident patches, for each share of patches that is kept.

    El-Yaniv and Wiener 2010. Patches of equal confidence are kept or left out together.

    Args:
        label: 0 or 1, shape (N,).
        logit: shape (N,); above 0 a patch is called tumor.
        confidence: shape (N,).

    Returns:
        Shares kept, rising to 1, and shares of these that are wrong; shape (M,) each.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum((logit[order] > 0) != (label[order] == 1))
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    return (ends + 1) / len(label), wrong[ends] / (ends + 1)


def area_under_risk_coverage(label: Array, logit: Array, confidence: Array) -> float:
    """Return the mean share of wrong ones over all shares that are kept; lower is better."""
    kept, risk = risk_coverage(label, logit, confidence)
    return float((np.diff(kept, prepend=0) * risk).sum())
