"""predict_slide: predict every tissue square of a slide, and write the results."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openslide
import pandas as pd
import shapely
import torch

from pcam_lightning import __version__
from pcam_lightning.slides.annotations import regions_of_interest
from pcam_lightning.slides.correction import logit_correction
from pcam_lightning.slides.heat_map import HeatMap, ood_warning
from pcam_lightning.slides.outlines import Geometry, outline_mask, write_geojson
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.region_predictor import Logits, predict_squares, read_logits
from pcam_lightning.slides.saved_heat_map import read_summary
from pcam_lightning.slides.slide_files import content_sha256, dates
from pcam_lightning.slides.slide_images import encode, mask_png, overlay, write_tiff
from pcam_lightning.slides.slide_network import SlideNetwork
from pcam_lightning.slides.slide_options import SlideOptions
from pcam_lightning.slides.slide_page import write_page
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.slides.slide_scale import check_given, given_mpp
from pcam_lightning.slides.tissue_mask import tissue_mask
from pcam_lightning.training.feature_distance import FeatureDistance
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, is_rank_zero, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.system import quiet_lightning, supported_precision

FILES = ("tissue.png", "patches.csv", "heatmap.geojson", "heatmap.tif", "heatmap.html", "overlay.png", "thumbnail.jpg")
CAUTION = (
    "About half of the selected patches that trained the network are tumor. Tumor is rarer in slides, so probabilities "
    "are too high without a prior, and a threshold chosen on patches gives too many false positives."
)


class SlideResult(NamedTuple):
    """A predicted slide.

    Attributes:
        folder: folder of the files.
        heat_map: heat map of the slide.
        lesions: content of lesions.csv.
        summary: content of slide.json.
    """

    folder: Path
    heat_map: HeatMap
    lesions: pd.DataFrame
    summary: dict[str, Any]


@quiet_lightning()
def predict_slide(
    slide: Path | str,
    ckpt_path: SlideNetwork | LoadedRun | Path | str = "pcam",
    output: Path | str | None = None,
    **options: Any,
) -> SlideResult:
    """Predict every tissue square of 32 x 32 pixels of a slide, and write the heat map for other programs.

    Args:
        slide: file that OpenSlide or Pillow can read.
        ckpt_path: pcam or pcam-small (bundled with the package), a run, a checkpoint, or a loaded network.
        output: folder of the results; by default `heatmaps/<slide name>`. Complete or partial results of the same
            slide, network and options are reused.
        options: fields of `SlideOptions`.

    Raises:
        UserError: the slide, the network or an option cannot be used, no tissue is found, or `output` contains the
            results of another slide.
    """
    path = Path(slide).expanduser()
    reader, choices = _open(path, SlideOptions(**options))
    grid = PatchGrid(reader.width, reader.height, reader.mpp, choices.stride)
    if reader.mpp > 1.5 * grid.mpp:
        rank_zero_warn(f"{path}: {reader.mpp:g} um per pixel is coarser than the training patches ({grid.mpp:.3g}).")
    network = SlideNetwork.load(ckpt_path, choices.tta)
    regions = None
    if choices.regions is not None:
        regions = regions_of_interest(choices.regions, path, grid, reader.bounds_origin)
    folder = (Path("heatmaps") / path.stem if output is None else Path(output)).expanduser()
    content = content_sha256(path)
    _check_folder(folder, path, content)
    folder.mkdir(parents=True, exist_ok=True)
    distance = network.distance
    key = _fingerprint(path, content, network, grid, choices)
    correction = logit_correction(choices, network)
    same = {
        "key": key,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(choices).items()},
        "correction": correction,
        "regions": regions and hashlib.sha256(shapely.to_wkb(regions)).hexdigest(),
        "geojson_origin": [*reader.bounds_origin],
    }
    if finished := _finished(folder, grid, same, distance):
        rank_zero_info(f"{path}: already predicted, see {folder}.")
        _update_finished(path, finished)
        _warn_ood(path, finished.heat_map)
        return finished
    if is_rank_zero():
        (folder / "slide.json").unlink(missing_ok=True)  # written last, once all files are consistent
    squares = _find_tissue(reader, grid, choices, regions, folder)
    found = predict_squares(path, grid, squares, network.classifier, folder / "logits.npz", key, choices, distance)
    heat_map = _heat_map(grid, found, correction, distance)
    lesions = heat_map.lesions(choices.threshold)
    summary = {
        "slide": str(path.absolute()),
        "content_sha256": content,
        "format": reader.vendor,
        "width": reader.width,
        "height": reader.height,
        "mpp": reader.mpp,
        "patch_mpp": grid.mpp,
        **_findings(heat_map, choices.threshold),
        "lesions": len(lesions),
        "damaged_squares": int(found.damaged.sum()),
        **same,
        "network": network.describe(),
        "versions": {
            "pcam_lightning": __version__,
            "torch": torch.__version__,
            "openslide": openslide.__library_version__,
        },
        "caution": CAUTION,
    }
    result = SlideResult(folder, heat_map, lesions, summary)
    if is_rank_zero():
        _write(result, reader, choices.threshold)
    _warn_ood(path, heat_map)
    return result


def _update_finished(path: Path, finished: SlideResult) -> None:
    """Repeat the warning about damage of a finished slide, and record its current path."""
    summary = finished.summary
    if damaged := summary["damaged_squares"]:
        rank_zero_warn(f"{path}: {damaged:,} squares cannot be read and stay empty.")
    recorded = Path(summary["slide"])
    if not (recorded.exists() and recorded.samefile(path)):
        summary["slide"] = str(path.absolute())
        if is_rank_zero():
            atomic_write(finished.folder / "slide.json", json.dumps(summary, indent=2) + "\n")


def _warn_ood(path: Path, heat_map: HeatMap) -> None:
    if warning := ood_warning(heat_map.ood_fraction):
        rank_zero_warn(f"{path}: {warning}")


def _open(path: Path, options: SlideOptions) -> tuple[SlideReader, SlideOptions]:
    """Open a slide, and resolve the options for its scale and for the precision of this machine."""
    mpp = given_mpp(options.mpp, path)
    reader = SlideReader(path, mpp)
    check_given(options.mpp, mpp, reader.stated, path)
    return reader, replace(options, mpp=mpp, precision=supported_precision(options.accelerator, options.precision))


def _check_folder(folder: Path, slide: Path, content: str) -> None:
    """Check that a folder does not contain results of another slide; a moved slide is the same slide.

    Raises:
        UserError: it contains results of another slide.
    """
    file = folder / "slide.json"
    if not file.is_file():
        return
    summary = read_summary(file)
    other = Path(summary["slide"])
    if other.exists() and other.samefile(slide):
        return
    recorded = summary.get("content_sha256")
    still_there = other.exists() and content_sha256(other) == recorded  # a copy, not a moved slide
    if recorded != content or still_there:
        raise UserError(f"{folder}: contains the results of {other}; choose another `output` folder.")


def _heat_map(
    grid: PatchGrid, found: Logits, correction: Mapping[str, float], distance: FeatureDistance | None
) -> HeatMap:
    scale, shift = correction["scale"], correction["shift"]
    if distance is None:
        return HeatMap(grid, found.logit, scale, shift)
    return HeatMap(grid, found.logit, scale, shift, found.ood_distance, distance.threshold)


def _finished(
    folder: Path, grid: PatchGrid, same: Mapping[str, Any], distance: FeatureDistance | None
) -> SlideResult | None:
    """Return the results of an earlier call if they are complete and nothing has changed, else None."""
    try:
        summary = json.loads((folder / "slide.json").read_text())
        lesions = pd.read_csv(folder / "lesions.csv")
    except (OSError, ValueError):
        return None
    found = read_logits(folder / "logits.npz", same["key"], (grid.rows, grid.columns))
    whole = all((folder / name).is_file() for name in FILES) and not np.isnan(found.logit).all()
    whole &= distance is None or bool(np.array_equal(np.isnan(found.ood_distance), np.isnan(found.logit)))
    if not whole or any(summary.get(name) != value for name, value in same.items()):
        return None
    return SlideResult(folder, _heat_map(grid, found, same["correction"], distance), lesions, summary)


def _find_tissue(
    reader: SlideReader, grid: PatchGrid, options: SlideOptions, regions: Geometry | None, folder: Path
) -> np.ndarray:
    """Return the squares to predict, bool (rows, columns), and write the tissue mask.

    Raises:
        UserError: no tissue is found.
    """
    mask = tissue_mask(reader, grid)
    squares = grid.squares_with(mask)
    picture = folder / "tissue.png"
    atomic_write(picture, mask_png(mask))
    rank_zero_info(f"{reader.path}: {squares.mean():.1%} of {squares.size:,} squares contain tissue, see {picture}.")
    if options.tissue == "none":
        squares = np.ones_like(squares)
    if not squares.any():
        raise UserError(f"{reader.path}: no tissue found, see {picture}. Set `tissue` none to predict the whole slide.")
    if regions is not None:
        squares &= outline_mask(regions, grid.width, grid.height, grid.square)
        rank_zero_info(f"{reader.path}: {squares.sum():,} of them have centers inside {options.regions}.")
        if not squares.any():
            raise UserError(f"{options.regions}: contains no tissue of {reader.path}, see {picture}.")
    return squares


def _fingerprint(path: Path, content: str, network: SlideNetwork, grid: PatchGrid, options: SlideOptions) -> str:
    """Return the SHA-256 of all inputs that logits and distances depend on, except the selection of squares."""
    plain = [__version__, content, dates(path), repr(grid), network.sha256, network.tta, options.precision]
    digest = hashlib.sha256(json.dumps(plain).encode())
    if (distance := network.distance) is not None:
        digest.update(distance.mean.numpy().tobytes() + distance.whiten.numpy().tobytes())
        digest.update(str(distance.threshold).encode())
    return digest.hexdigest()


def _findings(heat_map: HeatMap, threshold: float) -> dict[str, Any]:
    """Return the slide score, and areas in mm2."""
    prob, square_mm2 = heat_map.prob, heat_map.grid.square_mm2
    return {
        "score": heat_map.score,
        "squares": int((~np.isnan(prob)).sum()),
        "tissue_mm2": float((~np.isnan(prob)).sum() * square_mm2),
        "tumor_mm2": float((prob >= threshold).sum() * square_mm2),
        "ood_mm2": None if heat_map.ood is None else float(heat_map.ood.sum() * square_mm2),
        "ood_fraction": heat_map.ood_fraction,
    }


def _write(result: SlideResult, reader: SlideReader, threshold: float) -> None:
    """Write the files of a slide, slide.json last."""
    folder, heat_map = result.folder, result.heat_map
    atomic_write(folder / "patches.csv", heat_map.patches().to_csv(index=False, lineterminator="\n"))
    atomic_write(folder / "lesions.csv", result.lesions.to_csv(index=False, lineterminator="\n"))
    write_geojson(folder / "heatmap.geojson", heat_map, threshold, reader.bounds_origin)
    write_tiff(folder / "heatmap.tif", heat_map)
    atomic_write(folder / "overlay.png", encode(overlay(reader, heat_map), "png"))
    write_page(folder, reader, heat_map, result.lesions, result.summary)
    atomic_write(folder / "slide.json", json.dumps(result.summary, indent=2) + "\n")
