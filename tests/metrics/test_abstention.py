"""Conformal thresholds keep what they promise; risk and coverage against a loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcam_lightning.metrics.abstention import (
    ABSTAINS,
    Thresholds,
    area_under_risk_coverage,
    conformal_thresholds,
    decide,
    risk_coverage,
    score_decisions,
)


def draw(rng: np.random.Generator, count: int, share: float, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    label = (rng.random(count) < share).astype(np.int64)
    return label, 2 * label - 1 + noise * rng.normal(size=count)


@pytest.mark.parametrize("error", [0.02, 0.05, 0.2])
def test_each_class_is_called_wrongly_as_often_as_promised_whatever_the_share_of_tumor(error: float) -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        thresholds = conformal_thresholds(*draw(rng, 400, 0.5), error)
        label, logit = draw(rng, 1000, 0.1)  # elsewhere tumor is rarer
        decision = decide(logit, thresholds)
        found.append(score_decisions(label, decision)[2:])
    for share in np.mean(found, axis=0):
        assert share <= error + 0.004
        assert share >= error - 0.01  # and it abstains no more than it has to


def test_few_patches_promise_nothing_so_that_none_is_called() -> None:
    label, logit = np.array([0, 0, 0, 1, 1, 1]), np.array([-3.0, -2, -1, 1, 2, 3])
    assert conformal_thresholds(label, logit, 0.05) == (-np.inf, np.inf)
    assert (decide(logit, conformal_thresholds(label, logit, 0.05)) == ABSTAINS).all()


def test_the_patch_to_come_is_one_of_those_that_are_counted() -> None:
    """Of 19 patches one may be wrong at 5 %, since with the patch to come there are 20; of 18 none."""
    logit = np.linspace(-3, 3, 19)
    for count, bound in ((19, 3.0), (18, np.inf)):
        label = np.repeat([0, 1], count)
        assert conformal_thresholds(label, np.tile(logit[-count:], 2), 0.05)[1] == bound
        assert conformal_thresholds(label, np.tile(logit[:count], 2), 0.05)[0] == -bound


def test_where_hardly_anything_is_wrong_everything_is_called() -> None:
    label, logit = draw(np.random.default_rng(0), 2000, 0.5, noise=0.2)
    thresholds = conformal_thresholds(label, logit, 0.05)
    assert thresholds.low == thresholds.high
    assert -0.6 < thresholds.low < 0.6
    assert (decide(logit, thresholds) == label).all()


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-5, 5)), min_size=2, max_size=60), st.floats(0.01, 0.49))
@settings(max_examples=200)
def test_on_its_own_patches_no_class_is_called_wrongly_more_often(rows: list[tuple[int, int]], error: float) -> None:
    label, logit = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=float)
    if len(set(label)) < 2:
        return
    thresholds = conformal_thresholds(label, logit, error)
    assert thresholds.low <= thresholds.high
    scores = score_decisions(label, decide(logit, thresholds))
    assert scores.normal_called_tumor <= error * (1 + 1 / (label == 0).sum()) + 1e-9
    assert scores.tumor_called_normal <= error * (1 + 1 / (label == 1).sum()) + 1e-9


def test_decisions_are_counted() -> None:
    label, decision = np.array([0, 0, 0, 0, 1, 1]), decide(np.array([-2.0, -2, 2, 0, 2, -2]), Thresholds(-1, 1))
    assert decision.tolist() == [0, 0, 1, -1, 1, 0]
    assert score_decisions(label, decision) == (5 / 6, 2 / 5, 1 / 4, 1 / 2)
    assert np.isnan(score_decisions(label, np.full(6, ABSTAINS)).wrong)


def test_risk_and_coverage() -> None:
    rng = np.random.default_rng(0)
    label, logit = draw(rng, 60, 0.5)
    confidence = np.round(np.abs(logit))  # with ties
    kept, risk = risk_coverage(label, logit, confidence)
    expected = []
    for least in sorted(set(confidence), reverse=True):
        chosen = confidence >= least
        expected.append((chosen.mean(), ((logit > 0) != (label == 1))[chosen].mean()))
    assert np.array(expected) == pytest.approx(np.stack([kept, risk], axis=1))
    assert kept[-1] == 1
    certain = area_under_risk_coverage(label, logit, np.abs(logit))
    assert certain < area_under_risk_coverage(label, logit, -np.abs(logit))
