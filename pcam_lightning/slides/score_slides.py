"""evaluate_slides: how well heat maps tell slides with metastases from others, and how many lesions they find."""

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

MASK_MPP = 7.776  # um per pixel of masks: level 5 of slides with 0.243
CAMELYON16_MPP = 0.243  # um per pixel that CAMELYON16's script takes for all slides, though some have 0.226


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
    tumor_class: Collection[str] = (),
    camelyon16: bool = False,
) -> SlideScores:
    """Score the heat maps of slides: AUROC of slides, and the FROC of their lesions by CAMELYON16's rules.

    Writes `slide_scores.json` and `slide_scores.csv` into the folder; with annotations `calibration.json` too, by which
    `heatmap` corrects the probabilities of other slides. Each square is tumor there if an outline reaches the center of
    its patch, as PCam's labels say it.

    Args:
        heatmaps: folder that `heatmap` has written.
        reference: CSV with slide,label, 1 for slides with metastases; or CAMELYON16's, with the name and Tumor or
            Normal. By default, slides with annotations of tumor are those with metastases.
        annotations: folder with the outlines of metastases, for each slide that has any: its name with .xml (ASAP's) or
            .geojson.
        bootstrap_samples: for the intervals.
        seed: of the bootstrap.
        tumor_class: classes of outlines that are tumor, besides tumor, metastases, _0 and _1; none is outlines without
            class.
        camelyon16: compute the FROC as CAMELYON16's own script does, and write `camelyon16/<slide>.csv` for it.

    Raises:
        UserError: a file is missing or malformed, or the heat maps are not of one network and one set of options.
    """
    check_number("bootstrap_samples", bootstrap_samples, 1, whole=True)
    truth = Reference(reference, annotations, tumor_class)
    maps = read_heat_maps(heatmaps)
    if caution := maps[0].network.get("caution"):
        rank_zero_warn(f"{heatmaps}: the network was {caution}: scores may be optimistic.")
    if unusable := [one.slide.stem for one in maps if ood_warning(one.ood_fraction)]:
        rank_zero_warn(
            f"{heatmaps}: most of the tissue of {len(unusable):,} of {len(maps):,} slides is out of distribution, "
            f"{unusable[0]} first: do not use their scores."
        )
    truth.check([one.slide for one in maps])
    if truth.labels is not None and (missing := len(truth.labels) - len(maps)) > 0:
        rank_zero_warn(
            f"{missing:,} of {len(truth.labels):,} slides of {reference} have no finished heat map in {heatmaps}."
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
    if camelyon16 and not label:  # all detections of such a slide are false there
        tumor = shapely.Polygon()
    downsample = 2.0 ** round(np.log2(MASK_MPP / slide_mpp))
    mask = outline_mask(tumor, one.heat_map.grid.width, one.heat_map.grid.height, downsample)
    numbered, ignored = number_lesions(mask, slide_mpp * downsample)
    row, column = ((one.detections[axis].to_numpy() / downsample).astype(np.int64) for axis in ("y", "x"))
    return match_detections(numbered, ignored, one.detections["confidence"].to_numpy(), row, column)


def _write_camelyon16(folder: Path, maps: list[SavedHeatMap]) -> None:
    """Write the detections of each slide as CAMELYON16's script reads them: confidence, x and y, without a header."""
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*.csv"):  # the script takes all that it finds there
        file.unlink()
    for one in maps:
        table = one.detections[["confidence", "x", "y"]]
        atomic_write(folder / f"{one.slide.stem}.csv", table.to_csv(header=False, index=False, lineterminator="\n"))


def _write_calibration(heatmaps: Path, maps: list[SavedHeatMap], outlines: list[Geometry]) -> None:
    """Fit scale and shift of the logits of all squares, by the labels of the centers of their patches."""
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
        "stride": maps[0].heat_map.grid.stride,
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


def _froc(
    detections: list[SlideDetections], samples: int, seed: int, camelyon16: bool
) -> tuple[Interval | None, dict[float, float]]:
    if not sum(slide.lesions for slide in detections):
        if detections:
            rank_zero_info("FROC: none, since no lesion is as long as 275 um.")
        return None, {}
    curve = froc(detections, camelyon16)
    draws = ([detections[row] for row in rows] for rows in bootstrap_rows(np.arange(len(detections)), samples, seed))
    drawn = [froc(slides, camelyon16).score for slides in draws if any(slide.lesions for slide in slides)]
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
