"""A heat map as QuPath's objects: tiles with their probabilities, and outlines of what is above a threshold."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.utils.atomic_io import atomic_open


def write_geojson(path: Path, heat_map: HeatMap, threshold: float) -> None:
    """Write a FeatureCollection, in pixels of level 0, that QuPath's File > Import objects reads.

    Args:
        path: of the file.
        heat_map: of the slide.
        threshold: probability from which squares are outlined, as annotations of class Tumor.
    """
    with atomic_open(path) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(_features(heat_map, threshold)):
            file.write((",\n" if number else "\n").encode() + json.dumps(feature).encode())
        file.write(b"\n]}\n")


def _features(heat_map: HeatMap, threshold: float) -> Iterator[dict[str, Any]]:
    grid, prob = heat_map.grid, heat_map.prob
    row, column = np.nonzero(~np.isnan(prob))
    left, top = column * grid.square, row * grid.square
    right, bottom = np.minimum(left + grid.square, grid.width), np.minimum(top + grid.square, grid.height)
    boxes = shapely.box(left, top, right, bottom)
    above = boxes[prob[row, column] >= threshold]
    for outline in shapely.get_parts(shapely.coverage_union_all(above)) if len(above) else ():
        yield {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(outline)),
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
        }
    distance = np.full(len(row), np.nan) if heat_map.distance is None else heat_map.distance[row, column]
    for box, value, far in zip(boxes, prob[row, column], distance, strict=True):
        measurements = {"prob_tumor": round(float(value), 6)}
        if not np.isnan(far):
            measurements["distance"] = round(float(far), 4)  # from the training patches
        yield {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(box)),
            "properties": {"objectType": "tile", "measurements": measurements},
        }
