"""Intervals of a score: bootstrap over clusters, and DeLong's."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata

Array = np.ndarray


_AT_ONCE = 4_000_000  # weights that one block of draws holds: 32 MB


class Interval(NamedTuple):
    """A value and its 95 % interval; the bounds are None where they are not known."""

    value: float
    low: float | None
    high: float | None


def bootstrap_scores(
    label: Array, logit: Array, cluster: Array, samples: int = 1000, seed: int = 0
) -> tuple[Array, Array]:
    """Score bootstrap samples that are drawn by whole clusters, such as slides.

    Patches of one slide are alike: a draw of single patches takes them for so many independent witnesses, and its
    interval is too narrow. Here a cluster comes as often as it is drawn, with all its patches. The logits are sorted
    once, and a draw is a weight for each patch: 1,000 draws of 44,000 patches take a second or two.

    Args:
        label: 0 or 1, shape (N,).
        logit: shape (N,); any score does.
        cluster: of each patch, shape (N,).
        samples: how many to draw.
        seed: of the draws.

    Returns:
        AUROC and average precision of each sample, both shape (samples,), ties counted as a half; NaN where all drawn
        patches are of one class.
    """
    order = np.argsort(-logit, kind="stable")
    positive = (label[order] == 1).astype(np.float64)
    starts = np.flatnonzero(np.diff(logit[order], prepend=np.inf))  # where a lower score begins
    code = np.unique(cluster, return_inverse=True)[1][order]
    clusters = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    auroc, precision = np.empty(samples), np.empty(samples)
    at_once = max(1, _AT_ONCE // len(label))
    for start in range(0, samples, at_once):
        count = min(at_once, samples - start)
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


def bootstrap_rows(cluster: Array, samples: int = 1000, seed: int = 0) -> Iterator[Array]:
    """Draw bootstrap samples by whole clusters, for a score that `bootstrap_scores` does not know.

    Args:
        cluster: of each patch, shape (N,).
        samples: how many to draw.
        seed: of the draws.

    Yields:
        The rows of one sample, int64; a row occurs as often as its cluster was drawn.
    """
    code = np.unique(cluster, return_inverse=True)[1]
    order = np.argsort(code, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.concatenate([rows_of[one] for one in rng.integers(len(rows_of), size=len(rows_of))])


def percentile_interval(value: float, drawn: Array) -> Interval:
    """Put the 95 % percentile interval of a bootstrap around a value; draws of NaN are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or drawn.min() == drawn.max():  # all of one slide, or without a mistake: no draw differs
        return Interval(value, None, None)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def delong_test(label: Array, first: Array, second: Array) -> tuple[Interval, float]:
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
