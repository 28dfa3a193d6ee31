"""Outlines on a slide: read ASAP's XML and QuPath's GeoJSON, and write GeoJSON."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import shapely
from shapely.affinity import translate
from shapely.geometry import shape

from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.utils.atomic_io import atomic_open
from pcam_lightning.utils.errors import UserError

UNCLASSIFIED = "none"  # ASAP's name for no group
_SHAPES = {"Polygon", "Spline", "Rectangle"}  # ASAP's types with an area; the others are points and measurements
_OBJECTS = {
    "detection",
    "cell",
    "tile",
    "tmaCore",
    "PathDetectionObject",
    "PathCellObject",
    "PathTileObject",
}  # QuPath objects other than annotations

Geometry = shapely.geometry.base.BaseGeometry


class Outline(NamedTuple):
    """One annotation.

    Attributes:
        name: group or class in lower case, with the parents of a derived class (`tumor: positive`); `none` without a
            class.
        polygon: polygon in level-0 pixels; empty for points and lines.
    """

    name: str
    polygon: Geometry


def read_outlines(path: Path, origin: tuple[int, int] = (0, 0)) -> list[Outline]:
    """Read the annotations of a slide.

    Args:
        path: ASAP's XML in level-0 pixels, or GeoJSON in pixels of QuPath's image.
        origin: origin of QuPath's image, see `SlideReader.bounds_origin`.

    Raises:
        UserError: the file is damaged, or has another format.
    """
    try:
        with np.errstate(invalid="ignore"):  # coordinates that are not finite are refused
            if path.suffix.lower() == ".xml":
                return list(_read_asap(path))
            return [Outline(name, translate(polygon, *origin)) for name, polygon in _read_geojson(path)]
    except (OSError, ElementTree.ParseError, LookupError, RecursionError) as error:
        raise UserError(f"{path}: neither ASAP's XML nor GeoJSON with polygons ({error}).") from None
    except (ValueError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise UserError(f"{path}: neither ASAP's XML nor GeoJSON with polygons ({error}).") from None


def _read_asap(path: Path) -> Iterator[Outline]:
    root = ElementTree.parse(path).getroot()
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"root element {root.tag}")
    for annotation in root.iter("Annotation"):
        points = sorted(annotation.iter("Coordinate"), key=lambda point: float(point.attrib["Order"]))
        values = [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points]
        is_shape = annotation.get("Type", "Polygon") in _SHAPES and len(values) > 2
        polygon = _polygons(shapely.Polygon(values)) if is_shape else shapely.Polygon()
        yield Outline(annotation.get("PartOfGroup", "").strip().lower() or UNCLASSIFIED, polygon)


def _read_geojson(path: Path) -> Iterator[Outline]:
    content = json.loads(path.read_text(encoding="utf-8"))
    for feature in content["features"] if isinstance(content, dict) else content:
        properties = feature.get("properties") or {}
        kind = properties.get("objectType") or properties.get("object_type") or feature.get("id")  # newest first
        if kind not in _OBJECTS:
            polygon = _polygons(shape(feature["geometry"]))
            found = properties.get("classification") or {}
            names = found.get("names") or [found.get("name") or ""]  # several for a derived class
            yield Outline(": ".join(map(str, names)).strip().lower() or UNCLASSIFIED, polygon)


def _polygons(geometry: Geometry) -> Geometry:
    """Return the union of the polygons of a geometry, made valid."""
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise ValueError("a coordinate is not a finite number")
    parts = shapely.get_parts(shapely.get_parts(shapely.force_2d(geometry)))  # also in collections
    polygons: Geometry = shapely.union_all([shapely.make_valid(one) for one in parts if one.geom_type == "Polygon"])
    return polygons


def outline_mask(outlines: Geometry, width: int, height: int, downsample: float) -> np.ndarray:
    """Rasterize outlines as a mask: a pixel is set if its center is inside.

    Args:
        outlines: polygons in level-0 pixels.
        width: width of the slide, in level-0 pixels.
        height: height of the slide, in level-0 pixels.
        downsample: level-0 pixels per mask pixel.

    Returns:
        bool, (H, W).
    """
    rows, columns = (max(1, math.ceil(side / downsample)) for side in (height, width))
    mask = np.zeros((rows, columns), dtype=bool)
    for part in shapely.get_parts(outlines):
        if not part.area:  # empty, or a line left by make_valid
            continue
        left, top, right, bottom = part.bounds
        x = np.arange(max(0, int(left / downsample)), min(columns, int(right / downsample) + 1))
        y = np.arange(max(0, int(top / downsample)), min(rows, int(bottom / downsample) + 1))
        if len(x) and len(y):
            shapely.prepare(part)
            centers = np.meshgrid((x + 0.5) * downsample, (y + 0.5) * downsample)
            mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1] |= shapely.contains_xy(part, *centers)
    return mask


def write_geojson(path: Path, heat_map: HeatMap, threshold: float, origin: tuple[int, int] = (0, 0)) -> None:
    """Write a heat map as a FeatureCollection of tiles and outlines for QuPath's File > Import objects.

    As RFC 7946 requires, exterior rings run counterclockwise in x and y.

    Args:
        path: path of the file.
        heat_map: heat map of the slide.
        threshold: lowest probability of outlined squares; outlines are annotations of class Tumor.
        origin: origin of QuPath's image, see `SlideReader.bounds_origin`.
    """
    with atomic_open(path) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(_features(heat_map, threshold, origin)):
            file.write((",\n" if number else "\n").encode() + json.dumps(feature).encode())
        file.write(b"\n]}\n")


def _features(heat_map: HeatMap, threshold: float, origin: tuple[int, int]) -> Iterator[dict[str, Any]]:
    grid, prob = heat_map.grid, heat_map.prob
    row, column = np.nonzero(~np.isnan(prob))
    left, top = column * grid.square, row * grid.square
    right, bottom = np.minimum(left + grid.square, grid.width), np.minimum(top + grid.square, grid.height)
    boxes = shapely.box(left - origin[0], top - origin[1], right - origin[0], bottom - origin[1])
    above = boxes[prob[row, column] >= threshold]
    for outline in shapely.get_parts(shapely.orient_polygons(shapely.coverage_union_all(above))) if len(above) else ():
        yield {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(outline)),
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
        }
    distances = np.full(len(row), np.nan) if heat_map.ood_distance is None else heat_map.ood_distance[row, column]
    for box, value, distance in zip(boxes, prob[row, column], distances, strict=True):
        measurements = {"prob_tumor": round(float(value), 6)}
        if not np.isnan(distance):
            measurements["ood_distance"] = round(float(distance), 4)
        yield {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(box)),
            "properties": {"objectType": "tile", "measurements": measurements},
        }
