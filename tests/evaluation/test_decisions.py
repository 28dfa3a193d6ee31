"""Decisions of patches, by thresholds that other patches give."""

import numpy as np
import pandas as pd

from pcam_lightning.evaluation.decisions import confidences, find_decisions
from pcam_lightning.metrics.abstention import conformal_thresholds, decide


def test_no_patch_is_decided_by_thresholds_that_it_has_a_part_in() -> None:
    rng = np.random.default_rng(0)
    label, part = rng.integers(0, 2, 200), rng.integers(0, 4, 200)
    logit = 2.0 * label - 1 + 2 * rng.normal(size=200)
    rows, thresholds = find_decisions(pd.DataFrame({"label": label, "logit": logit}), part, 0.1)
    for number in range(4):
        others = conformal_thresholds(label[part != number], logit[part != number], 0.1)
        assert rows["decision"][part == number].tolist() == decide(logit[part == number], others).tolist()
    of_all = conformal_thresholds(label, logit, 0.1)
    assert thresholds == of_all._asdict()  # for patches to come
    assert rows["decision"].tolist() != decide(logit, of_all).tolist()


def test_less_spread_and_less_distance_are_more_certain() -> None:
    rows = pd.DataFrame({"logit": [3.0, -1.0], "sd_views": [0.1, 0.5], "ood_distance": [1.0, 2.0]})
    assert all(first > second for first, second in confidences(rows).values())
