"""Scores against brute force, scikit-learn and torchmetrics, ties included."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

from pcam_lightning.metrics.bootstrap import bootstrap_scores, delong_test, percentile_interval
from pcam_lightning.metrics.calibration import (
    brier_score,
    cross_fit,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
)
from pcam_lightning.metrics.classification import (
    confusion_counts,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    youden_threshold,
)

Rows = list[tuple[bool, int, int]]
labeled = st.lists(st.tuples(st.booleans(), st.integers(-4, 4), st.integers(0, 5)), min_size=4, max_size=40).filter(
    lambda rows: 0 < sum(label for label, _, _ in rows) < len(rows)
)


def _arrays(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    label, logit, cluster = (np.array(column) for column in zip(*rows, strict=True))
    return label.astype(int), logit.astype(float), cluster


@given(labeled)
def test_bootstrap_is_scikit_learn_on_the_patches_drawn(rows: Rows) -> None:
    label, logit, cluster = _arrays(rows)
    aurocs, precisions = bootstrap_scores(label, logit, cluster, samples=20, seed=3)
    names, code = np.unique(cluster, return_inverse=True)
    times = np.random.default_rng(3).integers(len(names), size=(20, len(names)))
    for drawn, auroc, precision in zip(times, aurocs, precisions, strict=True):
        rows_drawn = np.concatenate([np.flatnonzero(code == one) for one in drawn])
        if len(set(label[rows_drawn])) < 2:
            assert np.isnan(auroc)
            assert np.isnan(precision)
        else:
            assert auroc == pytest.approx(roc_auc_score(label[rows_drawn], logit[rows_drawn]))
            assert precision == pytest.approx(average_precision_score(label[rows_drawn], logit[rows_drawn]))


def _placements(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare all pairs: the share of negatives below each positive, and of positives above each negative."""
    above = np.sign(score[label == 1][:, None] - score[label == 0][None]) / 2 + 0.5
    return above.mean(axis=1), above.mean(axis=0)


@given(labeled.filter(lambda rows: 1 < sum(label for label, _, _ in rows) < len(rows) - 1))
def test_delong_is_the_brute_force_over_all_pairs(rows: Rows) -> None:
    label, first, second = _arrays(rows)
    (by_positive, by_negative), (other_positive, other_negative) = _placements(label, first), _placements(label, second)
    covariance = np.cov(by_positive, other_positive) / len(by_positive)
    covariance = covariance + np.cov(by_negative, other_negative) / len(by_negative)
    difference, p = delong_test(label, first, second)
    assert difference.value == pytest.approx(roc_auc_score(label, first) - roc_auc_score(label, second))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert difference.high is not None
    assert difference.high - difference.value == pytest.approx(1.959964 * np.sqrt(max(variance, 0)), abs=1e-6)
    assert 0 <= p <= 1
    if variance > 1e-9:
        assert p == pytest.approx(math.erfc(abs(difference.value) / np.sqrt(2 * variance)), abs=1e-6)  # two-sided


def test_an_interval_over_slides_is_wider_than_one_over_patches() -> None:
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(30), 100)
    label = (rng.random(3000) < 0.4).astype(int)
    logit = rng.normal(0, 1, 3000) + 1.5 * label + rng.normal(0, 1.5, 30)[slide]
    value = roc_auc_score(label, logit)
    widths = []
    for cluster in (slide, np.arange(3000)):
        found = percentile_interval(value, bootstrap_scores(label, logit, cluster, 300)[0])
        assert found.low is not None
        assert found.high is not None
        assert found.low < value < found.high
        widths.append(found.high - found.low)
    assert widths[0] > 1.5 * widths[1]


def test_an_interval_is_of_95_percent_of_the_samples_that_have_a_score() -> None:
    drawn = np.random.default_rng(0).permutation(np.linspace(0.8, 0.9, 1001))
    for samples in (drawn, np.append(drawn, [np.nan] * 500)):
        found = percentile_interval(0.86, samples)
        assert found.value == 0.86
        assert found[1:] == pytest.approx((0.8025, 0.8975))
    assert percentile_interval(0.86, np.array([np.nan, np.nan])) == (0.86, None, None)


@given(labeled)
def test_calibration_error_is_the_reliability_diagrams(rows: Rows) -> None:
    label, logit, _ = _arrays(rows)
    count, prob, share = reliability_curve(label, logit)
    assert count.sum() == len(label)
    distance = np.nan_to_num(np.abs(prob - share))
    assert expected_calibration_error(label, logit) == pytest.approx((count * distance).sum() / len(label), abs=1e-6)


@given(labeled)
def test_likelihood_and_brier_are_what_they_say(rows: Rows) -> None:
    label, logit, _ = _arrays(rows)
    prob = expit(logit)
    assert negative_log_likelihood(label, logit) == pytest.approx(-np.log(np.where(label == 1, prob, 1 - prob)).mean())
    assert brier_score(label, logit) == pytest.approx(((prob - label) ** 2).mean())


def test_temperature_undoes_a_logit_that_was_stretched() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 50_000)
    label = (rng.random(50_000) < expit(logit)).astype(int)
    assert fit_temperature(label, 2.5 * logit) == pytest.approx(2.5, rel=0.05)
    assert negative_log_likelihood(label, np.array([1e4] * 50_000)) > 1000  # no overflow


def test_threshold_has_the_highest_balanced_accuracy() -> None:
    rng = np.random.default_rng(1)
    label = (rng.random(200) < 0.3).astype(int)
    logit = np.round(rng.normal(0, 1, 200) + 1.5 * label, 1)  # with ties
    threshold = youden_threshold(label, logit)
    best = max(confusion_counts(label, logit >= at).balanced_accuracy for at in np.unique(logit))
    assert confusion_counts(label, logit >= threshold).balanced_accuracy == pytest.approx(best)
    assert np.abs(logit - threshold).min() == pytest.approx(0.05)  # half-way: no rounding decides about a patch
    assert youden_threshold(np.array([0, 0, 1, 1]), np.array([-3.0, 1.0, 2.0, 5.0])) == 1.5


def test_operating_points() -> None:
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    logit = np.array([-4.0, -3, -2, 1, -1, 2, 3, 4])
    point = confusion_counts(label, logit >= 0)
    assert point == (3, 1, 3, 1)
    assert (point.sensitivity, point.specificity, point.accuracy, point.f1) == (0.75, 0.75, 0.75, 0.75)
    assert sensitivity_at_specificity(label, logit, 0.95) == 0.75
    assert sensitivity_at_specificity(label, logit, 0.75) == 1
    assert specificity_at_sensitivity(label, logit, 0.99) == 0.75


def test_cross_fitting_never_sees_the_part_that_it_is_for() -> None:
    label, logit, part = np.array([0, 1, 0, 1, 1]), np.array([1.0, 2, 4, 8, 16]), np.array(["a", "b", "a", "c", "b"])
    fitted = cross_fit(label, logit, part, lambda label, logit: float(1000 * label.sum() + logit.sum()))
    seen = [(np.flatnonzero(mask).tolist(), total) for mask, total in fitted]
    assert seen == [([0, 2], 3026.0), ([1, 4], 1013.0), ([3], 2023.0)]
