"""Outlines of metastases, from ASAP's XML or GeoJSON, and the lesions that they make on a slide."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import shapely
from scipy import ndimage

from pcam_lightning.utils.errors import UserError, rank_zero_info

SUFFIXES = (".xml", ".geojson", ".json")
MASK_MPP = 7.776  # um per pixel of masks: level 5 of slides with 0.243
MERGED = 75.0  # um: outlines less than this apart are one lesion
SMALLEST = 275.0  # um: a lesion with a shorter major axis is ignored, as isolated tumor cells
_TUMOR = {"_0", "_1", "tumor", "tumour", "metastasis", "metastases", "none", ""}  # groups and classes, in lower case
_HOLES = {"_2", "exclusion", "normal", "hole"}  # cut out of the others

Geometry = shapely.geometry.base.BaseGeometry


def find_annotation(folder: Path, name: str) -> Path | None:
    """Return the annotations of a slide in a folder: its name with .xml, .geojson or .json."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def read_annotations(path: Path) -> Geometry:
    """Read the outlines of tumor of a slide.

    Those without a group or class, or with one that is called tumor or metastases, or `_0` or `_1` as in CAMELYON16,
    are tumor. What is in `_2`, or is called exclusion, normal or hole, is cut out. Others are ignored, and reported.

    Returns:
        Polygons in pixels of level 0; empty where there is no tumor.

    Raises:
        UserError: the file is damaged, or of another kind.
    """
    try:
        found = list(_read_asap(path) if path.suffix.lower() == ".xml" else _read_geojson(path))
        polygons = {
            kind: shapely.union_all([shapely.make_valid(polygon) for name, polygon in found if name in names])
            for kind, names in (("tumor", _TUMOR), ("holes", _HOLES))
        }
    except (OSError, ElementTree.ParseError, LookupError, RecursionError) as error:
        raise UserError(f"{path}: neither ASAP's XML nor GeoJSON with polygons ({error}).") from None
    except (ValueError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise UserError(f"{path}: neither ASAP's XML nor GeoJSON with polygons ({error}).") from None
    if ignored := sorted({name for name, _ in found} - _TUMOR - _HOLES):
        rank_zero_info(f"{path}: annotations of {', '.join(ignored)} are not of tumor and are ignored.")
    tumor: Geometry = polygons["tumor"] - polygons["holes"]
    return tumor


def slide_outlines(annotations: Path, name: str, label: int | None) -> Geometry:
    """Return a slide's outlines of tumor, empty where it has no annotations.

    Raises:
        UserError: it has metastases and no outlines.
    """
    file = find_annotation(annotations, name)
    tumor: Geometry = shapely.Polygon() if file is None else read_annotations(file)
    if label and tumor.is_empty:
        found = f"{annotations}: no annotations of {name}" if file is None else f"{file}: no outline of tumor of {name}"
        raise UserError(f"{found}, which has metastases: {name}.xml or .geojson.")
    return tumor


def _read_asap(path: Path) -> Iterator[tuple[str, Geometry]]:
    """Yield group and polygon of each annotation."""
    root = ElementTree.parse(path).getroot()
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"its root is {root.tag}")
    for annotation in root.iter("Annotation"):
        points = sorted(annotation.iter("Coordinate"), key=lambda point: float(point.attrib["Order"]))
        if len(points) > 2:  # a dot or a line is drawn with fewer
            values = [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points]
            yield annotation.get("PartOfGroup", "").lower(), shapely.Polygon(_finite(values))


def _read_geojson(path: Path) -> Iterator[tuple[str, Geometry]]:
    """Yield class and polygons of each annotation."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for feature in content["features"] if isinstance(content, dict) else content:
        properties = feature.get("properties") or {}
        name = str((properties.get("classification") or {}).get("name", "")).lower()
        geometry = feature["geometry"]
        polygons = {"Polygon": [geometry["coordinates"]], "MultiPolygon": geometry["coordinates"]}
        if properties.get("objectType", "annotation") == "annotation":
            for outer, *inner in polygons.get(geometry["type"], []):
                yield name, shapely.Polygon(_finite(outer), [_finite(ring) for ring in inner])


def _finite(ring: Any) -> np.ndarray:
    """Return the points of a ring, float64 (N, 2)."""
    points = np.array(ring, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points).all():
        raise ValueError("a point is not a pair of finite numbers")
    return points[:, :2]


def tumor_mask(tumor: Geometry, width: int, height: int, downsample: float) -> np.ndarray:
    """Draw outlines as a mask: a pixel is tumor where its center is.

    Args:
        tumor: as `read_annotations` returns it.
        width: of the slide, in pixels of level 0.
        height: of the slide.
        downsample: pixels of level 0 for one of the mask.

    Returns:
        bool, (H, W).
    """
    rows, columns = (max(1, math.ceil(side / downsample)) for side in (height, width))
    mask = np.zeros((rows, columns), dtype=bool)
    for part in shapely.get_parts(tumor):
        if not part.area:  # nothing at all, or a line that make_valid has left
            continue
        left, top, right, bottom = part.bounds
        x = np.arange(max(0, int(left / downsample)), min(columns, int(right / downsample) + 1))
        y = np.arange(max(0, int(top / downsample)), min(rows, int(bottom / downsample) + 1))
        if len(x) and len(y):
            shapely.prepare(part)
            centers = np.meshgrid((x + 0.5) * downsample, (y + 0.5) * downsample)
            mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1] |= shapely.contains_xy(part, *centers)
    return mask


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
