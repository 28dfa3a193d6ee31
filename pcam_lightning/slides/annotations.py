"""Outlines of metastases, from ASAP's XML or GeoJSON, and the lesions that they make on a slide."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from pcam_lightning.utils.errors import UserError

SUFFIXES = (".xml", ".geojson", ".json")
MASK_MPP = 7.776  # um per pixel of masks: level 5 of slides with 0.243
MERGED = 75.0  # um: outlines less than this apart are one lesion
SMALLEST = 275.0  # um: a lesion with a shorter major axis is ignored, as isolated tumor cells
_HOLES = {"_2", "exclusion", "normal", "hole"}  # groups and classes, in lower case, that are cut out of the others
_IGNORED = {"none"}


class Outline(NamedTuple):
    """A polygon.

    Attributes:
        points: x and y in pixels of level 0, float64 (N, 2).
        hole: whether it is cut out of the others.
    """

    points: np.ndarray
    hole: bool


def find_annotation(folder: Path, name: str) -> Path | None:
    """Return the annotations of a slide in a folder: its name with .xml, .geojson or .json."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def read_annotations(path: Path) -> list[Outline]:
    """Read outlines of tumor.

    Of ASAP, those in CAMELYON's group `_2`, or one that is called exclusion or normal, are holes, and of GeoJSON the
    inner rings, and objects whose class is called so.

    Raises:
        UserError: the file is damaged, or of another kind.
    """
    try:
        outlines = list(_read_asap(path) if path.suffix.lower() == ".xml" else _read_geojson(path))
        if any(outline.points.ndim != 2 or not np.isfinite(outline.points).all() for outline in outlines):
            raise ValueError("a point is not a pair of finite numbers")
    except (OSError, ElementTree.ParseError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: neither ASAP's XML nor GeoJSON with polygons ({error}).") from None
    return outlines


def _read_asap(path: Path) -> Iterator[Outline]:
    root = ElementTree.parse(path).getroot()
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"its root is {root.tag}")
    for annotation in root.iter("Annotation"):
        points = sorted(annotation.iter("Coordinate"), key=lambda point: float(point.attrib["Order"]))
        group = annotation.get("PartOfGroup", "").lower()
        if len(points) > 2 and group not in _IGNORED:
            values = [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points]
            yield Outline(np.array(values), group in _HOLES)


def _read_geojson(path: Path) -> Iterator[Outline]:
    content = json.loads(path.read_text(encoding="utf-8"))
    for feature in content["features"] if isinstance(content, dict) else content:
        properties = feature.get("properties") or {}
        name = str((properties.get("classification") or {}).get("name", "")).lower()
        geometry = feature["geometry"]
        if properties.get("objectType", "annotation") != "annotation" or name in _IGNORED:
            continue
        polygons = {"Polygon": [geometry["coordinates"]], "MultiPolygon": geometry["coordinates"]}
        for rings in polygons.get(geometry["type"], []):
            for number, ring in enumerate(rings):
                yield Outline(np.array(ring, dtype=np.float64)[:, :2], name in _HOLES or number > 0)


def tumor_mask(outlines: list[Outline], width: int, height: int, downsample: float) -> np.ndarray:
    """Draw outlines as a mask.

    Args:
        outlines: of tumor.
        width: of the slide, in pixels of level 0.
        height: of the slide.
        downsample: pixels of level 0 for one of the mask.

    Returns:
        bool, (H, W).
    """
    size = max(1, round(width / downsample)), max(1, round(height / downsample))
    mask = Image.new("1", size)
    draw = ImageDraw.Draw(mask)
    for outline in sorted(outlines, key=lambda one: one.hole):
        draw.polygon([tuple(point) for point in outline.points / downsample - 0.5], fill=not outline.hole)
    return np.asarray(mask)


def lesions(mask: np.ndarray, mpp: float) -> tuple[np.ndarray, list[int]]:
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


def major_axis(mask: np.ndarray) -> float:
    """Return the length of the major axis of the ellipse with the same second moments as a mask, in pixels."""
    points = np.argwhere(mask).astype(np.float64)
    variance = np.cov(points.T, bias=True) if len(points) > 1 else np.zeros((2, 2))
    return float(4 * np.sqrt(max(np.linalg.eigvalsh(variance)[-1], 0)))
