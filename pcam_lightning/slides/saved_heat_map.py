"""SavedHeatMap: what `heatmap` has written about a slide, read again."""

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
    """A slide's folder of results, read.

    Attributes:
        folder: where they are.
        slide: its file.
        content: of the slide, as `content_sha256` identifies it.
        score: of the slide.
        heat_map: the logits, corrected as its options say.
        network: what slide.json says of it.
        options: of `SlideOptions`.
        detections: confidence, x and y, as in lesions.csv.
        origin: of GeoJSON, as `SlideReader.bounds_origin` has it.
        ood_fraction: of `HeatMap.ood_fraction`.
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
            UserError: one is damaged, or they do not belong together.
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
            raise UserError(f"{folder / 'logits.npz'}: not of {file}; remove both and run heatmap again.")
        heat_map = HeatMap(grid, logit, correction["scale"], correction["shift"])
        slide, origin = Path(summary["slide"]), (left, top)
        return cls(folder, slide, content, score, heat_map, network, options, detections, origin, ood)

    def check_slide(self) -> None:
        """Check that the slide is there, and is the one that was predicted.

        Raises:
            UserError: it is missing, or another.
        """
        if not self.slide.is_file():
            raise UserError(f"{self.slide}: no such slide; move it back to where {self.folder} was predicted from.")
        if content_sha256(self.slide) != self.content:
            raise UserError(f"{self.slide}: is not the slide that {self.folder} was predicted from; run heatmap again.")


def read_summary(file: Path) -> dict[str, Any]:
    """Read a slide.json.

    Raises:
        UserError: it is damaged.
    """
    try:
        summary: dict[str, Any] = json.loads(file.read_text())
        Path(summary["slide"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}); remove it and run heatmap again.") from None
    return summary


def read_heat_maps(heatmaps: Path) -> list[SavedHeatMap]:
    """Read the heat maps of a folder, by the names of the slides.

    Raises:
        UserError: there is none, or they are not comparable.
    """
    found = [SavedHeatMap.read(file.parent) for file in heatmaps.glob("*/slide.json")]
    maps = sorted(found, key=lambda one: one.slide.stem)
    if not maps:
        raise UserError(f"{heatmaps}: no heat maps there; the heatmap command writes them.")
    for one, other in itertools.pairwise(maps):
        if one.slide.stem == other.slide.stem:
            raise UserError(f"{heatmaps}: two heat maps of {one.slide.stem}.")
        if any(one.network.get(name) != other.network.get(name) for name in ("sha256", "tta")):
            raise UserError(f"{heatmaps}: {one.slide.name} and {other.slide.name} are of different networks.")
        for name in ("stride", "threshold", "prior"):
            if one.options.get(name) != other.options.get(name):
                raise UserError(f"{heatmaps}: {one.slide.name} and {other.slide.name} differ in `{name}`.")
        if (one.options.get("regions") is None) != (other.options.get("regions") is None):
            raise UserError(f"{heatmaps}: {one.slide.name} and {other.slide.name} differ in `regions`.")
        if (one.heat_map.scale, one.heat_map.shift) != (other.heat_map.scale, other.heat_map.shift):
            raise UserError(f"{heatmaps}: {one.slide.name} and {other.slide.name} differ in what `calibration` holds.")
    return maps
