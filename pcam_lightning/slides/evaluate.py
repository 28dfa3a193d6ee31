"""evaluate_slides: how well heat maps tell slides with metastases from others, and how many lesions they find."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pcam_lightning.metrics.bootstrap import Interval, bootstrap_rows, bootstrap_scores, percentile_interval
from pcam_lightning.metrics.calibration import fit_platt
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.metrics.froc import FALSE_POSITIVES, SlideDetections, froc, match_detections
from pcam_lightning.slides.annotations import MASK_MPP, find_annotation, lesions, read_annotations, tumor_mask
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.predictor import read_logits
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, check_number, rank_zero_info, rank_zero_warn

CELLS = 4  # along a side of a square, of the mask by which it counts as tumor
_NAMES = ("slide", "image", "name", "filename")  # columns of a reference, CAMELYON16's among them
_LABELS = ("label", "type", "class")
_TUMOR = {"1": 1, "tumor": 1, "tumour": 1, "macro": 1, "micro": 1, "0": 0, "normal": 0, "negative": 0}


@dataclass(frozen=True)
class SlideScores:
    """Scores of slides.

    Attributes:
        auroc: of the slides' scores, with a 95 % interval by a bootstrap over slides; None where all are of one kind.
        froc: CAMELYON16's score, with such an interval; None without annotations.
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
            Normal. By default, slides with annotations are those with metastases.
        annotations: folder with the outlines of metastases, for each slide that has any: its name with .xml (ASAP's) or
            .geojson.
        bootstrap_samples: for the intervals.
        seed: of the bootstrap.

    Raises:
        UserError: a file is missing or malformed.
    """
    check_number("bootstrap_samples", bootstrap_samples, 1, whole=True)
    if reference is None and annotations is None:
        raise UserError("`reference`, `annotations`: one of them is required, to know which slides have metastases.")
    if annotations is not None and not annotations.is_dir():
        raise UserError(f"`annotations` {annotations}: no such folder.")
    summaries = _read_summaries(heatmaps)
    labels = None if reference is None else read_reference(reference)
    rows, detections = [], []
    for name, (folder, summary) in summaries.items():
        file = None if annotations is None else find_annotation(annotations, name)
        if labels is not None and name not in labels:
            raise UserError(f"{reference}: no row of {name}, which is in {heatmaps}.")
        label = int(file is not None) if labels is None else labels[name]
        if annotations is not None:
            if label and file is None:
                raise UserError(
                    f"{annotations}: no annotations of {name}, which has metastases: {name}.xml or .geojson."
                )
            detections.append(_detections(folder, summary, file))
        rows.append({"slide": name, "label": label, "score": summary["score"]})
    table = pd.DataFrame(rows)
    if detections:
        table["lesions"] = [one.lesions for one in detections]
        table["found"] = [len(one.found) for one in detections]
        table["false"] = [len(one.false) for one in detections]
    scores = SlideScores(
        _auroc(table, bootstrap_samples, seed), *_froc(detections, bootstrap_samples, seed), slides=table
    )
    _write(heatmaps, scores)
    if annotations is not None:
        _write_calibration(heatmaps, summaries, annotations)
    return scores


def read_reference(path: Path) -> dict[str, int]:
    """Read which slides have metastases; return 1 or 0 by the slide's name, without suffix.

    Raises:
        UserError: the file is missing or malformed.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no CSV of slides and labels ({error}).") from None
    columns = {str(name).strip().lower(): name for name in table}
    name = next((columns[one] for one in _NAMES if one in columns), None)
    label = next((columns[one] for one in _LABELS if one in columns), None)
    if name is None or label is None:
        raise UserError(f"{path}: has the columns {','.join(map(str, table))}; should have slide,label.")
    found = {}
    for number, (slide, value) in enumerate(zip(table[name], table[label], strict=True), start=2):
        if value.strip().lower() not in _TUMOR:
            raise UserError(f"{path}, row {number}: label {value!r} is neither 0 (normal) nor 1 (tumor).")
        found[Path(slide.strip()).stem] = _TUMOR[value.strip().lower()]
    return found


def _read_summaries(heatmaps: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return folder and slide.json of each slide, by its name."""
    found = {}
    for file in sorted(heatmaps.glob("*/slide.json")):
        try:
            summary = json.loads(file.read_text())
            found[Path(summary["slide"]).stem] = (file.parent, summary)
        except (ValueError, KeyError) as error:
            raise UserError(f"{file}: damaged ({error}); `heatmap` writes it again once it is removed.") from None
    if not found:
        raise UserError(f"{heatmaps}: no heat maps there; the heatmap command writes them.")
    return found


def _detections(folder: Path, summary: dict[str, Any], annotation: Path | None) -> SlideDetections:
    """Match a slide's lesions.csv with its annotations."""
    table = pd.read_csv(folder / "lesions.csv")
    downsample = 2.0 ** round(np.log2(MASK_MPP / summary["mpp"]))
    outlines = [] if annotation is None else read_annotations(annotation)
    mask = tumor_mask(outlines, summary["width"], summary["height"], downsample)
    numbered, ignored = lesions(mask, summary["mpp"] * downsample)
    row, column = ((table[axis].to_numpy() / downsample).astype(np.int64) for axis in ("y", "x"))
    return match_detections(numbered, ignored, table["confidence"].to_numpy(), row, column)


def _write_calibration(heatmaps: Path, summaries: dict[str, tuple[Path, dict[str, Any]]], annotations: Path) -> None:
    """Fit scale and shift of the logits of all squares, a square being tumor where an outline reaches it."""
    labels, logits = [], []
    for name, (folder, summary) in summaries.items():
        file = find_annotation(annotations, name)
        outlines = [] if file is None else read_annotations(file)
        grid = PatchGrid(summary["width"], summary["height"], summary["mpp"], summary["options"]["stride"])
        logit = read_logits(folder / "logits.npz", summary["key"], (grid.rows, grid.columns))
        cells = tumor_mask(outlines, grid.columns * grid.square, grid.rows * grid.square, grid.square / CELLS)
        tumor = np.asarray(cells.reshape(grid.rows, CELLS, grid.columns, CELLS).any(axis=(1, 3)))
        known = ~np.isnan(logit)
        labels.append(tumor[known])
        logits.append(logit[known])
    label, logit = np.concatenate(labels).astype(np.int64), np.concatenate(logits).astype(np.float64)
    if len(np.unique(label)) < 2:
        rank_zero_info("calibration.json: not written, all squares are of one kind.")
        return
    scale, shift = fit_platt(label, logit)
    if scale <= 0:
        rank_zero_warn("calibration.json: not written, squares with tumor have lower logits than the others.")
        return
    content = {
        "scale": scale,
        "shift": shift,
        "slides": sorted(summaries),
        "squares": len(label),
        "tumor": float(label.mean()),
    }
    atomic_write(heatmaps / "calibration.json", json.dumps(content, indent=2) + "\n")


def _auroc(table: pd.DataFrame, samples: int, seed: int) -> Interval | None:
    label, score = table["label"].to_numpy(), table["score"].to_numpy()
    if len(np.unique(label)) < 2:
        rank_zero_info("slides: all of one kind, so that there is no AUROC.")
        return None
    drawn, _ = bootstrap_scores(label, score, np.arange(len(label)), samples, seed)
    return percentile_interval(auroc(label, score), drawn)


def _froc(detections: list[SlideDetections], samples: int, seed: int) -> tuple[Interval | None, dict[float, float]]:
    if not sum(slide.lesions for slide in detections):
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
