"""Lesions and their FROC, sensitivity against false positives a slide, by CAMELYON16's rules."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

Array = np.ndarray
MERGED = 75.0  # um: outlines less than this apart are one lesion
SMALLEST = 275.0  # um: a lesion with a shorter major axis is ignored, as isolated tumor cells
FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # a slide, at which sensitivity is averaged


class SlideDetections(NamedTuple):
    """Detections of one slide.

    Attributes:
        lesions: number of lesions that are to be found.
        found: confidence of each lesion that was hit, the highest of its hits.
        false: confidence of each detection that hit no lesion; those of ignored lesions are in neither.
        ignored: number of lesions that are too small.
    """

    lesions: int
    found: Array
    false: Array
    ignored: int = 0


class Froc(NamedTuple):
    """A curve, from the highest threshold to the lowest, and its score.

    Attributes:
        false_positives: mean number a slide, shape (N,).
        sensitivity: share of the lesions found, shape (N,).
        score: mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide.
    """

    false_positives: Array
    sensitivity: Array
    score: float


def number_lesions(mask: Array, mpp: float) -> tuple[Array, list[int]]:
    """Number the lesions of a mask by CAMELYON16's rules.

    Outlines grow by half of 75 um, so that those less than that apart are one; holes are filled.

    Args:
        mask: of tumor, bool (H, W).
        mpp: um per pixel of the mask.

    Returns:
        The number of each pixel's lesion, 0 for none, int (H, W); and the numbers of those whose major axis is shorter
        than 275 um, which are ignored.
    """
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int64), []
    grown = ndimage.distance_transform_edt(~mask) < MERGED / mpp / 2
    label, count = ndimage.label(ndimage.binary_fill_holes(grown), np.ones((3, 3)))
    ignored = [number for number in range(1, count + 1) if major_axis(label == number) < SMALLEST / mpp]
    return label, ignored


def major_axis(mask: Array) -> float:
    """Return the length of the major axis of the ellipse with the same second moments as a mask, in pixels."""
    points = np.argwhere(mask).astype(np.float64)
    variance = np.cov(points.T, bias=True) if len(points) > 1 else np.zeros((2, 2))
    return float(4 * np.sqrt(max(np.linalg.eigvalsh(variance)[-1], 0)))


def match_detections(
    mask: Array, ignored: Sequence[int], confidence: Array, row: Array, column: Array
) -> SlideDetections:
    """Match the detections of a slide with its lesions.

    Args:
        mask: number of the lesion that each pixel belongs to, 0 for none, int (H, W).
        ignored: numbers of lesions that neither count nor make a hit a false positive.
        confidence: of each detection, shape (N,).
        row: of the pixel that it lies in, int (N,); beyond the mask it hits nothing.
        column: of the pixel, int (N,).
    """
    inside = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
    hit = np.zeros(len(confidence), dtype=np.int64)
    hit[inside] = mask[row[inside], column[inside]]
    counted = [number for number in np.unique(mask) if number and number not in ignored]
    found = [confidence[hit == number].max() for number in counted if (hit == number).any()]
    return SlideDetections(len(counted), np.array(found), confidence[hit == 0], len(ignored))


def froc(slides: Sequence[SlideDetections], camelyon16: bool = False) -> Froc:
    """Compute the FROC of all slides together, at every confidence that a lesion or a false positive has.

    Between two thresholds sensitivity is interpolated linearly; beyond the last one it stays.

    Args:
        slides: their detections.
        camelyon16: as CAMELYON16's script does: confidences of lesions are rounded to float32, and the lowest threshold
            is left out, which is 0 where a lesion is not found or is too small.

    Raises:
        ValueError: there is no slide, or no lesion to find.
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
