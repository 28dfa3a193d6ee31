"""SavedHeatMap: a slide's results, read from the folder that `heatmap` wrote."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.region_predictor import read_logits
from pcam_lightning.slides.slide_files import content_sha256
from pcam_lightning.utils.errors import UserError


@dataclass(frozen=True)
class SavedHeatMap:
    """The results of a slide.

    Attributes:
        folder: folder of the results.
        slide: path of the slide.
        content: identifier of the slide's content, see `content_sha256`.
        score: slide score.
        heat_map: the logits, with the recorded correction.
        network: record of the network in slide.json.
        options: recorded `SlideOptions`.
        detections: columns confidence, x and y of lesions.csv.
        origin: origin of GeoJSON coordinates, see `SlideReader.bounds_origin`.
        ood_fraction: `HeatMap.ood_fraction`.
    """

    folder: Path
    slide: Path
    content: str
    score: float
    heat_map: HeatMap
    network: dict[str, Any]
    options: dict[str, Any]
    detections: pd.DataFrame
    origin: tuple[int, int]
    ood_fraction: float | None = None

    @classmethod
    def read(cls, folder: Path) -> "SavedHeatMap":
        """Read the files of a slide.

        Raises:
            UserError: a file is damaged, or the files do not belong together.
        """
        file = folder / "slide.json"
        summary = read_summary(file)
        try:
            options = summary["options"]
            grid = PatchGrid(summary["width"], summary["height"], summary["mpp"], options["stride"])
            logit = read_logits(folder / "logits.npz", summary["key"], (grid.rows, grid.columns)).logit
            detections = pd.read_csv(folder / "lesions.csv")[["confidence", "x", "y"]]
            correction = {name: float(summary["correction"][name]) for name in ("scale", "shift")}
            score, network = float(summary["score"]), dict(summary["network"])
            left, top = map(int, summary["geojson_origin"])
            content, ood = str(summary["content_sha256"]), summary["ood_fraction"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: damaged ({error}); remove it and run heatmap again.") from None
        if np.isnan(logit).all():
            raise UserError(f"{folder / 'logits.npz'}: does not belong to {file}; remove both and run heatmap again.")
        heat_map = HeatMap(grid, logit, correction["scale"], correction["shift"])
        slide, origin = Path(summary["slide"]), (left, top)
        return cls(folder, slide, content, score, heat_map, network, options, detections, origin, ood)

    def check_slide(self) -> None:
        """Check that the slide exists and has not changed since it was predicted.

        Raises:
            UserError: the slide is missing or has changed.
        """
        if not self.slide.is_file():
            raise UserError(f"{self.slide}: no such slide. {self.folder} was predicted from this file; move it back.")
        if content_sha256(self.slide) != self.content:
            raise UserError(f"{self.slide}: has changed since {self.folder} was predicted; run heatmap again.")


def read_summary(file: Path) -> dict[str, Any]:
    """Read a slide.json.

    Raises:
        UserError: the file is damaged.
    """
    try:
        summary: dict[str, Any] = json.loads(file.read_text())
        Path(summary["slide"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}); remove it and run heatmap again.") from None
    return summary


def read_heat_maps(heatmaps: Path) -> list[SavedHeatMap]:
    """Read the heat maps of a folder, sorted by slide name.

    Raises:
        UserError: the folder has no heat maps, or they are not comparable.
    """
    found = [SavedHeatMap.read(file.parent) for file in heatmaps.glob("*/slide.json")]
    maps = sorted(found, key=lambda one: one.slide.stem)
    if not maps:
        raise UserError(f"{heatmaps}: contains no heat maps; run heatmap first.")
    for one, other in itertools.pairwise(maps):
        if one.slide.stem == other.slide.stem:
            raise UserError(f"{heatmaps}: contains two heat maps of {one.slide.stem}.")
        if any(one.network.get(name) != other.network.get(name) for name in ("sha256", "tta")):
            raise UserError(f"{heatmaps}: {one.slide.name} and {other.slide.name} have different networks.")
        for name in ("stride", "threshold", "prior"):
            if one.options.get(name) != other.options.get(name):
                raise UserError(f"{heatmaps}: {one.slide.name} and {other.slide.name} differ in `{name}`.")
        if (one.options.get("regions") is None) != (other.options.get("regions") is None):
            raise UserError(f"{heatmaps}: {one.slide.name} and {other.slide.name} differ in `regions`.")
        if (one.heat_map.scale, one.heat_map.shift) != (other.heat_map.scale, other.heat_map.shift):
            raise UserError(f"{heatmaps}: {one.slide.name} and {other.slide.name} differ in `calibration`.")
    return maps
