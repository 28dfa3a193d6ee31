"""FROC against a count by hand, and CAMELYON16's rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcam_lightning.metrics.froc import FALSE_POSITIVES, SlideDetections, froc, match_detections


def brute_force(slides: list[tuple[list[int], list[tuple[float, int]]]]) -> float:
    """Count at each threshold, lesion by lesion; a detection is its confidence and the lesion that it hits."""
    lesions = sum(len(numbers) for numbers, _ in slides)
    values = sorted({confidence for _, detections in slides for confidence, _ in detections}, reverse=True)
    curve = [(0.0, 0.0)]
    for threshold in values:
        false = sum(confidence >= threshold and not hit for _, dets in slides for confidence, hit in dets)
        found = sum(
            any(confidence >= threshold and hit == number for confidence, hit in dets)
            for numbers, dets in slides
            for number in numbers
        )
        curve.append((false / len(slides), found / lesions))
    score = 0.0
    for wanted in FALSE_POSITIVES:
        below = [point for point in curve if point[0] <= wanted]
        above = [point for point in curve if point[0] > wanted]
        x, y = below[-1][0], max(point[1] for point in below)
        if above:
            next_x, next_y = above[0][0], above[0][1]
            y += (next_y - y) * (wanted - x) / (next_x - x)
        score += y / len(FALSE_POSITIVES)
    return score


SLIDE = st.tuples(
    st.lists(st.integers(1, 4), unique=True, max_size=4),
    st.lists(st.tuples(st.integers(0, 20).map(lambda value: value / 20), st.integers(0, 4)), max_size=60),
)


@given(st.lists(SLIDE, min_size=1, max_size=5))
def test_froc_is_what_a_brute_force_count_gives(slides: list[tuple[list[int], list[tuple[float, int]]]]) -> None:
    slides = [(lesions, [(conf, hit) for conf, hit in dets if hit in (0, *lesions)]) for lesions, dets in slides]
    if not any(lesions for lesions, _ in slides):
        slides.append(([1], []))
    detections = []
    for lesions, dets in slides:
        found = [
            max(conf for conf, hit in dets if hit == number)
            for number in lesions
            if any(hit == number for _, hit in dets)
        ]
        detections.append(
            SlideDetections(len(lesions), np.array(found), np.array([conf for conf, hit in dets if not hit]))
        )
    assert froc(detections).score == pytest.approx(brute_force(slides))


def test_perfect_and_useless_detections() -> None:
    none = np.array([])
    assert froc([SlideDetections(2, np.array([0.9, 0.8]), none), SlideDetections(0, none, none)]).score == 1
    assert froc([SlideDetections(2, none, np.array([0.9] * 20))]).score == 0
    with pytest.raises(ValueError, match="no lesion"):
        froc([SlideDetections(0, none, none)])


def test_hits_of_ignored_lesions_count_nowhere() -> None:
    mask = np.zeros((10, 10), dtype=int)
    mask[:3, :3], mask[6:, 6:], mask[0, 9] = 1, 2, 3
    confidence = np.array([0.5, 0.9, 0.7, 0.6, 0.4, 0.3])
    row, column = np.array([1, 2, 8, 0, 5, 12]), np.array([1, 2, 8, 9, 5, 1])
    found = match_detections(mask, [3], confidence, row, column)
    assert found.lesions == 2
    assert found.found.tolist() == [0.9, 0.7]  # the highest of each lesion's hits
    assert found.false.tolist() == [0.4, 0.3]  # one of them beyond the mask
