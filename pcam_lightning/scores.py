"""Labels and logits -> numbers: scores, their intervals, calibration, operating points; all on plain arrays."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from scipy.stats import norm, rankdata
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve
from torchmetrics.functional.classification import binary_calibration_error

Array = np.ndarray
TEMPERATURES = 0.05, 20.0  # that one is sought between
_AT_ONCE = 4_000_000  # weights that one block of draws holds: 32 MB


class Interval(NamedTuple):
    """A number and what it may be: bounds of a 95 % interval, None where nothing tells them."""

    value: float
    low: float | None
    high: float | None


class Operation(NamedTuple):
    """What a decision is worth: counts of patches, and the rates that come from them."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def sensitivity(self) -> float:
        """Share of the positives that are found."""
        return self.true_positive / (self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of the negatives that are left alone."""
        return self.true_negative / (self.true_negative + self.false_positive)

    @property
    def accuracy(self) -> float:
        """Share of all patches that are right."""
        return (self.true_positive + self.true_negative) / sum(self)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of sensitivity and specificity."""
        return (self.sensitivity + self.specificity) / 2

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision."""
        return 2 * self.true_positive / (2 * self.true_positive + self.false_positive + self.false_negative)


def operate(label: Array, decision: Array) -> Operation:
    """Count a decision's hits and misses.

    Args:
        label: 0 or 1, shape (N,).
        decision: bool, shape (N,), True for tumour.
    """
    positive = label == 1
    return Operation(
        int((positive & decision).sum()),
        int((~positive & decision).sum()),
        int((~positive & ~decision).sum()),
        int((positive & ~decision).sum()),
    )


def draw_scores(label: Array, logit: Array, cluster: Array, draws: int = 1000, seed: int = 0) -> tuple[Array, Array]:
    """Score bootstrap samples that are drawn by whole clusters, such as slides.

    Patches of one slide are alike: a draw of single patches takes them for so many independent witnesses, and its
    interval is too narrow. Here a cluster comes as often as it is drawn, with all its patches. The logits are sorted
    once, and a draw is a weight for each patch: 1,000 draws of 44,000 patches take a second or two.

    Args:
        label: 0 or 1, shape (N,).
        logit: shape (N,); any score does.
        cluster: of each patch, shape (N,).
        draws: samples to draw.
        seed: of the draws.

    Returns:
        AUROC and average precision of each sample, both shape (draws,), ties counted as a half; NaN where all drawn
        patches are of one class.
    """
    order = np.argsort(-logit, kind="stable")
    positive = (label[order] == 1).astype(np.float64)
    starts = np.flatnonzero(np.diff(logit[order], prepend=np.inf))  # where a lower score begins
    code = np.unique(cluster, return_inverse=True)[1][order]
    clusters = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    auroc, precision = np.empty(draws), np.empty(draws)
    at_once = max(1, _AT_ONCE // len(label))
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        chosen = rng.integers(clusters, size=(count, clusters)) + clusters * np.arange(count)[:, None]
        times = np.bincount(chosen.ravel(), minlength=count * clusters).reshape(count, clusters)
        weight = times[:, code].astype(np.float64)  # (count, N)
        found = np.add.reduceat(weight * positive, starts, axis=1)  # weight of positives at each score
        false = np.add.reduceat(weight * (1 - positive), starts, axis=1)
        all_found, all_false = found.cumsum(axis=1), false.cumsum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            above = (found * (all_false[:, -1:] - all_false + false / 2)).sum(axis=1)
            auroc[start : start + count] = above / (all_found[:, -1] * all_false[:, -1])
            share = np.nan_to_num(all_found / (all_found + all_false))
            total = (found * share).sum(axis=1) / all_found[:, -1]
            precision[start : start + count] = np.where(all_false[:, -1] > 0, total, np.nan)
    return auroc, precision


def interval(value: float, drawn: Array) -> Interval:
    """Put the 95 % percentile interval of a bootstrap around a value; draws of NaN are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or drawn.min() == drawn.max():  # all of one slide, or without a mistake: no draw differs
        return Interval(value, None, None)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def delong(label: Array, first: Array, second: Array) -> tuple[Interval, float]:
    """Compare the AUROC of two scores of the same patches, which count as independent of each other.

    DeLong, DeLong and Clarke-Pearson 1988, by the midranks of Sun and Xu 2014: sorting, not all pairs.

    Args:
        label: 0 or 1, shape (N,).
        first: score of each patch, shape (N,).
        second: the other score, shape (N,).

    Returns:
        AUROC of `first` less AUROC of `second` with a 95 % interval, and the two-sided p value of no difference.
    """
    positive = label == 1
    components = []
    for score in (first, second):
        ranks = rankdata(score)
        of_positives, of_negatives = ranks[positive], ranks[~positive]
        p, n = len(of_positives), len(of_negatives)
        components.append(
            (
                (of_positives - rankdata(score[positive])) / n,  # share of negatives below each positive
                1 - (of_negatives - rankdata(score[~positive])) / p,  # share of positives above each negative
            )
        )
    by_positive, by_negative = (one - other for one, other in zip(*components, strict=True))
    difference = float(by_positive.mean())
    variance = by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(by_negative)
    error = float(np.sqrt(variance))
    if error < 1e-12:
        return Interval(difference, difference, difference), 1.0 if difference == 0 else 0.0
    reach = float(norm.ppf(0.975)) * error
    p_value = float(2 * norm.sf(abs(difference) / error))
    return Interval(difference, difference - reach, difference + reach), p_value


def most_wrong(label: Array, logit: Array) -> dict[str, Array]:
    """Return the places of the patches that are wrong at 0.5, the most wrong first, by kind of mistake."""
    kinds = {
        "called tumour, is normal": (label == 0) & (logit > 0),
        "called normal, is tumour": (label == 1) & (logit < 0),
    }
    return {
        kind: np.flatnonzero(wrong)[np.argsort(-np.abs(logit[wrong]), kind="stable")] for kind, wrong in kinds.items()
    }


def nll(label: Array, logit: Array) -> float:
    """Return the mean negative log-likelihood, in nats a patch: the loss that training minimises."""
    return float(-np.where(label == 1, log_expit(logit), log_expit(-logit)).mean())


def brier(label: Array, logit: Array) -> float:
    """Return the mean squared distance of probability and label."""
    return float(brier_score_loss(label, expit(logit)))


def reliability(label: Array, logit: Array, bins: int = 15) -> tuple[Array, Array, Array]:
    """Return count, mean probability and share of positives of each of `bins` equal bins of probability; (bins,) each.

    Mean and share are NaN where a bin is empty.
    """
    prob = expit(logit)
    place = np.minimum((prob * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return (
            count,
            np.bincount(place, weights=prob, minlength=bins) / count,
            np.bincount(place, weights=label == 1, minlength=bins) / count,
        )


def calibration_error(label: Array, logit: Array, bins: int = 15) -> float:
    """Return the expected calibration error (Naeini et al. 2015) of the probability of tumour, in equal bins."""
    prob, truth = torch.from_numpy(np.array(expit(logit))), torch.from_numpy(np.array(label, dtype=np.int64))
    return float(binary_calibration_error(prob, truth, n_bins=bins, norm="l1"))


def fit_temperature(label: Array, logit: Array) -> float:
    """Return the temperature that minimises the likelihood's loss of logit / temperature (Guo et al. 2017).

    It is sought between 0.05 and 20: a validation part without a single mistake has no minimum, and gets a bound.
    """
    found = minimize_scalar(lambda log: nll(label, logit / np.exp(log)), bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def fit_threshold(label: Array, logit: Array) -> float:
    """Return the logit from which on a patch is called tumour so that balanced accuracy is highest (Youden 1950).

    It lies half-way between two logits that were seen, so that neither is decided by a rounding.
    """
    false, found, logits = roc_curve(label, logit, drop_intermediate=False)
    best = int(np.argmax(found - false))
    if best == 0:
        return float(np.inf)
    below = logits[best + 1] if best + 1 < len(logits) else logits[best]
    return float((logits[best] + below) / 2)


def cross_fit(
    label: Array, logit: Array, part: Array, fit: Callable[[Array, Array], float]
) -> Iterator[tuple[Array, float]]:
    """Fit something on all parts but one, for each part in turn.

    Yields:
        Mask of the part that was left out, shape (N,), and what was fitted without it.
    """
    for left_out in np.unique(part):
        mask = part == left_out
        yield mask, fit(label[~mask], logit[~mask])


def rate_at(label: Array, logit: Array, *, specificity: float | None = None, sensitivity: float | None = None) -> float:
    """Return the highest sensitivity at a specificity of at least so much, or the reverse."""
    false, found, _ = roc_curve(label, logit, drop_intermediate=False)
    if specificity is not None:
        return float(found[1 - false >= specificity - 1e-12].max())
    assert sensitivity is not None
    return float((1 - false)[found >= sensitivity - 1e-12].max())


def auroc(label: Array, logit: Array) -> float:
    """Return the area under the ROC curve, ties counted as a half."""
    return float(roc_auc_score(label, logit))


def average_precision(label: Array, logit: Array) -> float:
    """Return the mean precision over the positives, without interpolation."""
    return float(average_precision_score(label, logit))
