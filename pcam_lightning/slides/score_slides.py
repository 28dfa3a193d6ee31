"""evaluate_slides: AUROC of slides and FROC of lesions from heat maps."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import shapely

from pcam_lightning.metrics.bootstrap import Interval, bootstrap_rows, bootstrap_scores, percentile_interval
from pcam_lightning.metrics.calibration import fit_platt
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.metrics.froc import FALSE_POSITIVES, SlideDetections, froc, match_detections, number_lesions
from pcam_lightning.slides.annotations import reaches
from pcam_lightning.slides.heat_map import ood_warning
from pcam_lightning.slides.outlines import Geometry, outline_mask
from pcam_lightning.slides.reference import Reference
from pcam_lightning.slides.saved_heat_map import SavedHeatMap, read_heat_maps
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import check_number, rank_zero_info, rank_zero_warn

MASK_MPP = 7.776  # um per pixel of masks: level 5 of a slide with 0.243 um per pixel
CAMELYON16_MPP = 0.243  # um per pixel that CAMELYON16's script assumes for all slides; some have 0.226


@dataclass(frozen=True)
class SlideScores:
    """Scores of slides.

    Attributes:
        auroc: AUROC of the slide scores, with a 95 % bootstrap interval over slides; None if all slides have one label.
        froc: CAMELYON16's FROC score, with a 95 % bootstrap interval; None without an annotated lesion that counts.
        sensitivity: lesion sensitivity by the number of false positives per slide.
        slides: one row per slide: slide, label, score, lesions, found, false.
    """

    auroc: Interval | None
    froc: Interval | None
    sensitivity: dict[float, float]
    slides: pd.DataFrame


def evaluate_slides(
    heatmaps: Path,
    reference: Path | None = None,
    annotations: Path | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    tumor_class: Collection[str] = (),
    camelyon16: bool = False,
) -> SlideScores:
    """Score a folder of heat maps: AUROC of slides, and FROC of lesions by CAMELYON16's rules.

    Writes `slide_scores.json` and `slide_scores.csv` into the folder. With annotations, also writes
    `calibration.json`, with which `heatmap` corrects the probabilities of other slides. As in PCam, a square is tumor
    if an outline intersects the center of its patch.

    Args:
        heatmaps: folder written by `heatmap`.
        reference: CSV with slide,label, where label 1 means metastases; or CAMELYON16's CSV, with the slide name and
            Tumor or Normal. By default, slides with tumor annotations are those with metastases.
        annotations: folder of metastasis outlines, named after the slides, with the suffix .xml (ASAP) or .geojson.
        bootstrap_samples: number of bootstrap samples for the intervals.
        seed: seed of the bootstrap.
        tumor_class: additional tumor classes of outlines, besides tumor, metastases, _0 and _1; none selects
            outlines without a class.
        camelyon16: compute the FROC like CAMELYON16's own script, and write `camelyon16/<slide>.csv` for that script.

    Raises:
        UserError: a file is missing or malformed, or the heat maps have different networks or options.
    """
    check_number("bootstrap_samples", bootstrap_samples, 1, whole=True)
    truth = Reference(reference, annotations, tumor_class)
    maps = read_heat_maps(heatmaps)
    if caution := maps[0].network.get("caution"):
        rank_zero_warn(f"{heatmaps}: the network was {caution}; scores may be optimistic.")
    if unusable := [one.slide.stem for one in maps if ood_warning(one.ood_fraction)]:
        rank_zero_warn(
            f"{heatmaps}: most tissue of {len(unusable):,} of {len(maps):,} slides is out of distribution; do not use "
            f"their scores. The first is {unusable[0]}."
        )
    truth.check([one.slide for one in maps])
    if truth.labels is not None and (missing := len(truth.labels) - len(maps)) > 0:
        rank_zero_warn(
            f"{missing:,} of {len(truth.labels):,} slides in {reference} have no finished heat map in {heatmaps}."
        )
    rows, detections, outlines = [], [], []
    for one in maps:
        label = truth.label(one.slide)
        if truth.annotations is not None:
            tumor = truth.tumor(one) or shapely.Polygon()
            label = int(tumor.area > 0) if label is None else label
            outlines.append(tumor)
            detections.append(_detections(one, tumor, label, camelyon16=camelyon16))
        rows.append({"slide": one.slide.stem, "label": label, "score": one.score})
    table = pd.DataFrame(rows)
    if detections:
        table["lesions"] = [one.lesions for one in detections]
        table["found"] = [len(one.found) for one in detections]
        table["false"] = [len(one.false) for one in detections]
    area = _auroc(table, bootstrap_samples, seed)
    scores = SlideScores(area, *_froc(detections, bootstrap_samples, seed, camelyon16), slides=table)
    _write(heatmaps, scores)
    if camelyon16:
        _write_camelyon16(heatmaps / "camelyon16", maps)
    if outlines:
        _write_calibration(heatmaps, maps, outlines)
    return scores


def _detections(one: SavedHeatMap, tumor: Geometry, label: int, *, camelyon16: bool) -> SlideDetections:
    """Match a slide's lesions.csv with its annotations."""
    slide_mpp = CAMELYON16_MPP if camelyon16 else one.heat_map.grid.slide_mpp
    if camelyon16 and not label:  # CAMELYON16 counts all detections on these slides as false positives
        tumor = shapely.Polygon()
    downsample = 2.0 ** round(np.log2(MASK_MPP / slide_mpp))
    mask = outline_mask(tumor, one.heat_map.grid.width, one.heat_map.grid.height, downsample)
    numbered, ignored = number_lesions(mask, slide_mpp * downsample)
    row, column = ((one.detections[axis].to_numpy() / downsample).astype(np.int64) for axis in ("y", "x"))
    return match_detections(numbered, ignored, one.detections["confidence"].to_numpy(), row, column)


def _write_camelyon16(folder: Path, maps: list[SavedHeatMap]) -> None:
    """Write the detections of each slide for CAMELYON16's script: confidence, x and y, without a header."""
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*.csv"):  # the script reads every CSV in the folder
        file.unlink()
    for one in maps:
        table = one.detections[["confidence", "x", "y"]]
        atomic_write(folder / f"{one.slide.stem}.csv", table.to_csv(header=False, index=False, lineterminator="\n"))


def _write_calibration(heatmaps: Path, maps: list[SavedHeatMap], outlines: list[Geometry]) -> None:
    """Fit the scale and shift of the logits of all squares to the labels of their patch centers."""
    file = heatmaps / "calibration.json"
    labels, logits = [], []
    for one, tumor in zip(maps, outlines, strict=True):
        grid = one.heat_map.grid
        row, column = np.nonzero(~np.isnan(one.heat_map.logit))
        x, y = grid.corners(row, column)
        margin = (grid.patch - grid.center) // 2
        labels.append(reaches(tumor, x + margin, y + margin, grid.center))
        logits.append(one.heat_map.logit[row, column])
    label, logit = np.concatenate(labels).astype(np.int64), np.concatenate(logits).astype(np.float64)
    if len(np.unique(label)) < 2:
        rank_zero_info(f"{file}: not written, because all squares have the same label.")
        return
    scale, shift = fit_platt(label, logit)
    if scale <= 0:
        rank_zero_warn(f"{file}: not written, because tumor squares have lower logits than the others.")
        return
    content = {
        "scale": scale,
        "shift": shift,
        "network": maps[0].network,
        "stride": maps[0].heat_map.grid.stride,
        "slides": [one.slide.stem for one in maps],
        "squares": len(label),
        "tumor": float(label.mean()),
    }
    atomic_write(file, json.dumps(content, indent=2) + "\n")


def _auroc(table: pd.DataFrame, samples: int, seed: int) -> Interval | None:
    label, score = table["label"].to_numpy(), table["score"].to_numpy()
    if len(np.unique(label)) < 2:
        rank_zero_info("slides: AUROC is undefined, because all slides have the same label.")
        return None
    sampled, _ = bootstrap_scores(label, score, np.arange(len(label)), samples, seed)
    return percentile_interval(auroc(label, score), sampled)


def _froc(
    detections: list[SlideDetections], samples: int, seed: int, camelyon16: bool
) -> tuple[Interval | None, dict[float, float]]:
    if not sum(slide.lesions for slide in detections):
        if detections:
            rank_zero_info("FROC: undefined, because no lesion has a major axis of 275 um or more.")
        return None, {}
    curve = froc(detections, camelyon16)
    rows = bootstrap_rows(np.arange(len(detections)), samples, seed)
    resampled = ([detections[row] for row in sample] for sample in rows)
    scores = [froc(slides, camelyon16).score for slides in resampled if any(slide.lesions for slide in slides)]
    at = np.interp(FALSE_POSITIVES, curve.false_positives, curve.sensitivity)
    return percentile_interval(curve.score, np.array(scores)), dict(zip(FALSE_POSITIVES, map(float, at), strict=True))


def _write(heatmaps: Path, scores: SlideScores) -> None:
    """Write the scores."""
    content = {
        "slides": len(scores.slides),
        "with_metastases": int(scores.slides["label"].sum()),
        "auroc": scores.auroc and scores.auroc._asdict(),
        "froc": scores.froc and scores.froc._asdict(),
        "sensitivity_at_false_positives": scores.sensitivity,
    }
    atomic_write(heatmaps / "slide_scores.csv", scores.slides.to_csv(index=False, lineterminator="\n"))
    atomic_write(heatmaps / "slide_scores.json", json.dumps(content, indent=2) + "\n")
