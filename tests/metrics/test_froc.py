"""FROC against a count by hand, and CAMELYON16's rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcam_lightning.metrics.froc import (
    FALSE_POSITIVES,
    SlideDetections,
    froc,
    major_axis,
    match_detections,
    number_lesions,
)


def brute_force(slides: list[tuple[list[int], list[tuple[float, int]]]], ignored: int | None = None) -> float:
    """Count at each threshold, lesion by lesion; a detection is its confidence and the lesion that it hits.

    Where the number of ignored lesions is given, leave out the lowest threshold, as CAMELYON16's script does.
    """
    lesions = sum(len(numbers) for numbers, _ in slides)
    values = sorted({confidence for _, detections in slides for confidence, _ in detections}, reverse=True)
    if ignored is not None:
        slides = [(numbers, [(float(np.float32(c)) if hit else c, hit) for c, hit in dets]) for numbers, dets in slides]
        best = [max([0.0, *(c for c, hit in dets if hit == number)]) for numbers, dets in slides for number in numbers]
        false_ = [confidence for _, dets in slides for confidence, hit in dets if not hit]
        values = sorted({*best, *false_, *[0.0] * ignored}, reverse=True)[:-1]
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
    for ignored in (0, 1):
        detections[0] = detections[0]._replace(ignored=ignored)
        assert froc(detections, camelyon16=True).score == pytest.approx(brute_force(slides, ignored))


def test_perfect_and_useless_detections() -> None:
    none = np.array([])
    assert froc([SlideDetections(2, np.array([0.9, 0.8]), none), SlideDetections(0, none, none)]).score == 1
    assert froc([SlideDetections(2, none, np.array([0.9] * 20))]).score == 0
    with pytest.raises(ValueError, match="no lesion"):
        froc([SlideDetections(0, none, none)])


def test_camelyon16_leaves_out_the_lowest_threshold_where_all_lesions_are_found() -> None:
    confidence = np.array([0.9, 0.3])
    all_found = SlideDetections(2, confidence, np.array([]))
    assert froc([all_found]).score == 1
    assert froc([all_found], camelyon16=True).score == 0.5
    one_too_small = all_found._replace(ignored=1)
    assert froc([one_too_small], camelyon16=True).score == 1
    rounded = SlideDetections(1, np.array([0.1]), np.array([0.1] * 9), 1)  # 0.1 is more in float32
    assert froc([rounded]).score < froc([rounded], camelyon16=True).score == 1


def test_hits_of_ignored_lesions_count_nowhere() -> None:
    mask = np.zeros((10, 10), dtype=int)
    mask[:3, :3], mask[6:, 6:], mask[0, 9] = 1, 2, 3
    confidence = np.array([0.5, 0.9, 0.7, 0.6, 0.4, 0.3])
    row, column = np.array([1, 2, 8, 0, 5, 12]), np.array([1, 2, 8, 9, 5, 1])
    found = match_detections(mask, [3], confidence, row, column)
    assert found.lesions == 2
    assert found.found.tolist() == [0.9, 0.7]  # the highest of each lesion's hits
    assert found.false.tolist() == [0.4, 0.3]  # one of them beyond the mask
    assert found.ignored == 1


def test_lesions_less_than_75_um_apart_are_one_and_small_ones_are_ignored() -> None:
    mpp = 7.776
    mask = np.zeros((200, 200), dtype=bool)
    mask[20:60, 20:40] = mask[20:60, 46:60] = True  # 47 um apart
    mask[20:60, 80:100] = True  # 156 um
    mask[150:155, 150:155] = True  # 39 um, and 114 um when grown
    mask[100:140, 20:60] = True
    mask[115:125, 35:45] = False  # a hole
    label, ignored = number_lesions(mask, mpp)
    assert len(np.unique(label)) - 1 == 4
    assert label[30, 30] == label[30, 50] != label[30, 90]
    assert label[120, 40] == label[101, 21] != 0
    assert ignored == [label[152, 152]]


def test_the_major_axis_is_that_of_an_ellipse() -> None:
    rows, columns = np.mgrid[:200, :300]
    ellipse = ((rows - 100) / 40) ** 2 + ((columns - 150) / 120) ** 2 <= 1
    assert major_axis(ellipse) == pytest.approx(240, rel=0.01)
    assert major_axis(ellipse.T) == pytest.approx(240, rel=0.01)
