"""evaluate_slides: how well heat maps tell slides with metastases from others, and how many lesions they find."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pcam_lightning.metrics.bootstrap import Interval, bootstrap_rows, bootstrap_scores, percentile_interval
from pcam_lightning.metrics.calibration import fit_platt
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.metrics.froc import FALSE_POSITIVES, SlideDetections, froc, match_detections
from pcam_lightning.slides.annotations import (
    MASK_MPP,
    Geometry,
    lesions,
    slide_outlines,
    tumor_mask,
)
from pcam_lightning.slides.heat_map_folder import HeatMapFolder, read_folders
from pcam_lightning.slides.reference import label_of, read_reference
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, check_number, rank_zero_info, rank_zero_warn

CELLS = 4  # along a side of a square, of the mask by which it counts as tumor


@dataclass(frozen=True)
class SlideScores:
    """Scores of slides.

    Attributes:
        auroc: of the slides' scores, with a 95 % interval by a bootstrap over slides; None where all are of one kind.
        froc: CAMELYON16's score, with such an interval; None without annotations of a lesion that counts.
        sensitivity: at each number of false positives a slide.
        slides: one row a slide: slide, label, score, lesions, found, false.
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
) -> SlideScores:
    """Score the slides of a folder of heat maps: AUROC of slides, and the FROC of their lesions by CAMELYON16's rules.

    Writes `slide_scores.json` and `slide_scores.csv` into the folder; with annotations `calibration.json` too, by which
    `heatmap` corrects the probabilities of other slides.

    Args:
        heatmaps: folder that `heatmap` has written.
        reference: CSV with slide,label, 1 for slides with metastases; or CAMELYON16's, with the name and Tumor or
            Normal. By default, slides with annotations of tumor are those with metastases.
        annotations: folder with the outlines of metastases, for each slide that has any: its name with .xml (ASAP's) or
            .geojson.
        bootstrap_samples: for the intervals.
        seed: of the bootstrap.

    Raises:
        UserError: a file is missing or malformed, or the heat maps are not of one network and one set of options.
    """
    check_number("bootstrap_samples", bootstrap_samples, 1, whole=True)
    if reference is None and annotations is None:
        raise UserError("`reference`, `annotations`: one of them is required, to know which slides have metastases.")
    if annotations is not None and not annotations.is_dir():
        raise UserError(f"`annotations` {annotations}: no such folder.")
    maps = read_folders(heatmaps)
    labels = None if reference is None else read_reference(reference)
    if labels is not None and (missing := len(labels) - len(maps)) > 0:
        rank_zero_warn(f"{missing:,} of {len(labels):,} slides of {reference} have no finished heat map in {heatmaps}.")
    rows, detections, outlines = [], [], []
    for one in maps:
        label = None if labels is None else label_of(labels, one.slide, reference)
        if annotations is not None:
            outlines.append(slide_outlines(annotations, one.slide.stem, label))
            detections.append(_detections(one, outlines[-1]))
            label = int(not outlines[-1].is_empty) if label is None else label
        rows.append({"slide": one.slide.stem, "label": label, "score": one.score})
    table = pd.DataFrame(rows)
    if detections:
        table["lesions"] = [one.lesions for one in detections]
        table["found"] = [len(one.found) for one in detections]
        table["false"] = [len(one.false) for one in detections]
    area = _auroc(table, bootstrap_samples, seed)
    scores = SlideScores(area, *_froc(detections, bootstrap_samples, seed), slides=table)
    _write(heatmaps, scores)
    if outlines:
        _write_calibration(heatmaps, maps, outlines)
    return scores


def _detections(one: HeatMapFolder, tumor: Geometry) -> SlideDetections:
    """Match a slide's lesions.csv with its annotations."""
    downsample = 2.0 ** round(np.log2(MASK_MPP / one.heat_map.grid.slide_mpp))
    mask = tumor_mask(tumor, one.heat_map.grid.width, one.heat_map.grid.height, downsample)
    numbered, ignored = lesions(mask, one.heat_map.grid.slide_mpp * downsample)
    row, column = ((one.detections[axis].to_numpy() / downsample).astype(np.int64) for axis in ("y", "x"))
    return match_detections(numbered, ignored, one.detections["confidence"].to_numpy(), row, column)


def _write_calibration(heatmaps: Path, maps: list[HeatMapFolder], outlines: list[Geometry]) -> None:
    """Fit scale and shift of the logits of all squares, a square being tumor where an outline reaches it."""
    file = heatmaps / "calibration.json"
    file.unlink(missing_ok=True)
    labels, logits = [], []
    for one, tumor in zip(maps, outlines, strict=True):
        grid, known = one.heat_map.grid, ~np.isnan(one.heat_map.logit)
        cells = tumor_mask(tumor, grid.columns * grid.square, grid.rows * grid.square, grid.square / CELLS)
        labels.append(grid.squares_with(cells)[known])
        logits.append(one.heat_map.logit[known])
    label, logit = np.concatenate(labels).astype(np.int64), np.concatenate(logits).astype(np.float64)
    if len(np.unique(label)) < 2:
        rank_zero_info(f"{file}: not written, all squares are of one kind.")
        return
    scale, shift = fit_platt(label, logit)
    if scale <= 0:
        rank_zero_warn(f"{file}: not written, squares with tumor have lower logits than the others.")
        return
    content = {
        "scale": scale,
        "shift": shift,
        "network": maps[0].network,
        "slides": [one.slide.stem for one in maps],
        "squares": len(label),
        "tumor": float(label.mean()),
    }
    atomic_write(file, json.dumps(content, indent=2) + "\n")


def _auroc(table: pd.DataFrame, samples: int, seed: int) -> Interval | None:
    label, score = table["label"].to_numpy(), table["score"].to_numpy()
    if len(np.unique(label)) < 2:
        rank_zero_info("slides: all of one kind, so that there is no AUROC.")
        return None
    drawn, _ = bootstrap_scores(label, score, np.arange(len(label)), samples, seed)
    return percentile_interval(auroc(label, score), drawn)


def _froc(detections: list[SlideDetections], samples: int, seed: int) -> tuple[Interval | None, dict[float, float]]:
    if not sum(slide.lesions for slide in detections):
        if detections:
            rank_zero_info("FROC: none, since no lesion is as long as 275 um.")
        return None, {}
    curve = froc(detections)
    draws = ([detections[row] for row in rows] for rows in bootstrap_rows(np.arange(len(detections)), samples, seed))
    drawn = [froc(slides).score for slides in draws if any(slide.lesions for slide in slides)]
    at = np.interp(FALSE_POSITIVES, curve.false_positives, curve.sensitivity)
    return percentile_interval(curve.score, np.array(drawn)), dict(zip(FALSE_POSITIVES, map(float, at), strict=True))


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
