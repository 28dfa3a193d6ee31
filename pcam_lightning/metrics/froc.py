"""Lesions and their FROC (sensitivity against false positives per slide), by the rules of CAMELYON16."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

Array = np.ndarray
MERGED = 75.0  # um: outlines closer than this are one lesion
SMALLEST = 275.0  # um: lesions with a shorter major axis (isolated tumor cells) are ignored
FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # per slide; sensitivity is averaged at these rates


class SlideDetections(NamedTuple):
    """Detections of one slide.

    Attributes:
        lesions: number of lesions to find.
        found: highest confidence among the hits of each detected lesion.
        false: confidence of each false positive; hits of ignored lesions count in neither array.
        ignored: number of ignored small lesions.
    """

    lesions: int
    found: Array
    false: Array
    ignored: int = 0


class Froc(NamedTuple):
    """An FROC curve, from the highest threshold to the lowest, and its score.

    Attributes:
        false_positives: mean number per slide, shape (N,).
        sensitivity: share of lesions detected, shape (N,).
        score: mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives per slide.
    """

    false_positives: Array
    sensitivity: Array
    score: float


def number_lesions(mask: Array, mpp: float) -> tuple[Array, list[int]]:
    """Label the lesions of a mask by the rules of CAMELYON16.

    Outlines are dilated by half of 75 um, which merges those closer than 75 um. Holes are filled.

    Args:
        mask: tumor mask, bool (H, W).
        mpp: um per pixel of the mask.

    Returns:
        Lesion number of each pixel, 0 for none, int (H, W), and the numbers of ignored lesions, whose major axis is
        shorter than 275 um.
    """
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int64), []
    grown = ndimage.distance_transform_edt(~mask) < MERGED / mpp / 2
    label, count = ndimage.label(ndimage.binary_fill_holes(grown), np.ones((3, 3)))
    ignored = [number for number in range(1, count + 1) if major_axis(label == number) < SMALLEST / mpp]
    return label, ignored


def major_axis(mask: Array) -> float:
    """Return the major axis length, in pixels, of the ellipse with the same second moments as the mask."""
    points = np.argwhere(mask).astype(np.float64)
    variance = np.cov(points.T, bias=True) if len(points) > 1 else np.zeros((2, 2))
    return float(4 * np.sqrt(max(np.linalg.eigvalsh(variance)[-1], 0)))


def match_detections(
    mask: Array, ignored: Sequence[int], confidence: Array, row: Array, column: Array
) -> SlideDetections:
    """Match the detections of a slide to its lesions.

    Args:
        mask: lesion number of each pixel, 0 for none, int (H, W).
        ignored: numbers of ignored lesions; their hits are no false positives.
        confidence: confidence of each detection, shape (N,).
        row: pixel row of each detection, int (N,); detections outside the mask hit no lesion.
        column: pixel column of each detection, int (N,).
    """
    inside = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
    hit = np.zeros(len(confidence), dtype=np.int64)
    hit[inside] = mask[row[inside], column[inside]]
    counted = [number for number in np.unique(mask) if number and number not in ignored]
    found = [confidence[hit == number].max() for number in counted if (hit == number).any()]
    return SlideDetections(len(counted), np.array(found), confidence[hit == 0], len(ignored))


def froc(slides: Sequence[SlideDetections], camelyon16: bool = False) -> Froc:
    """Compute the pooled FROC of all slides, with a threshold at each confidence.

    Sensitivity is interpolated linearly between thresholds and constant after the last one.

    Args:
        slides: detections of each slide.
        camelyon16: reproduce the script of CAMELYON16. It rounds the confidences of lesions to float32, and omits the
            lowest threshold, which is 0 if a lesion is missed or ignored.

    Raises:
        ValueError: there is no slide or no lesion to find.
    """
    lesions = sum(slide.lesions for slide in slides)
    if not lesions:
        raise ValueError("no lesion to find")
    found = np.concatenate([slide.found for slide in slides])
    false = np.concatenate([slide.false for slide in slides])
    threshold = np.unique(np.concatenate([found, false]))[::-1]
    if camelyon16:
        found = found.astype(np.float32).astype(np.float64)
        not_hit = np.zeros(lesions + sum(slide.ignored for slide in slides) - len(found))
        threshold = np.unique(np.concatenate([found, false, not_hit]))[:0:-1]
    counts = [len(values) - np.searchsorted(np.sort(values), threshold) for values in (false, found)]
    per_slide, sensitivity = (
        np.concatenate([[0.0], count / total]) for count, total in zip(counts, (len(slides), lesions), strict=True)
    )
    score = float(np.interp(FALSE_POSITIVES, per_slide, sensitivity).mean())
    return Froc(per_slide, sensitivity, score)
