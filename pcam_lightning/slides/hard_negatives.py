"""mine_negatives: false positives of annotated slides, written as a data folder for training."""

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from pcam_lightning.data.slide_map import SLIDES_FILES
from pcam_lightning.slides.annotations import reaches
from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.slides.outlines import Geometry
from pcam_lightning.slides.reference import Reference
from pcam_lightning.slides.saved_heat_map import SavedHeatMap, read_heat_maps
from pcam_lightning.slides.slide_regions import SlideRegions, cut_patches
from pcam_lightning.utils.atomic_io import atomic_folder, atomic_write
from pcam_lightning.utils.errors import UserError, check_number, rank_zero_info, rank_zero_warn


def mine_negatives(
    heatmaps: Path,
    output: Path = Path("hard_negatives"),
    reference: Path | None = None,
    annotations: Path | None = None,
    threshold: float = 0.5,
    per_slide: int = 1000,
    tumor_class: Collection[str] = (),
) -> pd.DataFrame:
    """Write the false positives of annotated slides as a data folder, to train on with `data.extra_train`.

    A false positive is a patch with a probability at or above the threshold that does not intersect a tumor outline.
    PCam labels only the center of a patch, but hand-drawn outlines are inexact, so all intersecting patches are left
    out.

    The folder has Kaggle's layout: train/ with one TIFF per patch, named by the SHA-1 of its pixels,
    train_labels.csv, patch_id_wsi.csv with the slide names, and mined_patches.csv.

    Args:
        heatmaps: folder written by `heatmap`; its slides must be unchanged and in the same place.
        output: folder to create.
        reference: CSV with slide,label, or CAMELYON16's CSV; slides without metastases need no annotations.
        annotations: folder of metastasis outlines, named after the slides, with the suffix .xml (ASAP) or .geojson.
            Slides without a label and annotations are skipped.
        threshold: lowest probability of a positive patch.
        per_slide: maximum number of patches per slide; the most probable are kept.
        tumor_class: additional tumor classes of outlines, besides tumor, metastases, _0 and _1; none selects
            outlines without a class.

    Returns:
        One row per patch, as in mined_patches.csv: id, slide, minx and miny in level-0 pixels, and prob_tumor.

    Raises:
        UserError: a file is missing, malformed or changed, no patch is found, or `output` is not empty.
    """
    check_number("per_slide", per_slide, 1, whole=True)
    check_number("threshold", threshold)
    truth = Reference(reference, annotations, tumor_class)
    maps = read_heat_maps(Path(heatmaps))
    truth.check(one.slide for one in maps)
    chosen: list[tuple[SavedHeatMap, np.ndarray]] = []
    skipped = []
    for one in maps:
        tumor = truth.tumor(one)
        if tumor is None:
            skipped.append(one.slide.stem)
        else:
            one.check_slide()
            chosen.append((one, false_positives(one.heat_map, tumor, threshold, per_slide)))
    if skipped:
        rank_zero_warn(f"{heatmaps}: skipped slides without annotations: {len(skipped):,}, starting with {skipped[0]}.")
    if not sum(int(mask.sum()) for _, mask in chosen):
        raise UserError(
            f"{heatmaps}: no false positive found at `threshold` {threshold:g} (annotated slides: {len(chosen):,})."
        )
    output = Path(output).expanduser()
    try:
        with atomic_folder(output) as folder:
            table = _write(folder, chosen)
    except FileExistsError:
        raise UserError(f"{output} exists and is not empty. Name a new folder, or remove it.") from None
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}. Name another folder.") from error
    rank_zero_info(
        f"{output}: {len(table):,} false positives in {table['slide'].nunique():,} of {len(chosen):,} slides. To train "
        f"on them, run fit with `data.extra_train` {output}."
    )
    return table


def false_positives(heat_map: HeatMap, tumor: Geometry, threshold: float, count: int) -> np.ndarray:
    """Mark the squares of the most probable false positives.

    Args:
        heat_map: heat map of a slide.
        tumor: tumor outlines in level-0 pixels.
        threshold: lowest probability of a positive patch.
        count: maximum number of squares.

    Returns:
        bool, (rows, columns).
    """
    grid, prob = heat_map.grid, heat_map.prob
    row, column = np.nonzero(prob >= threshold)
    x, y = grid.corners(row, column)
    outside = ~reaches(tumor, x, y, grid.patch)
    row, column = row[outside], column[outside]
    first = np.argsort(-prob[row, column], kind="stable")[:count]
    mask = np.zeros(prob.shape, dtype=bool)
    mask[row[first], column[first]] = True
    return mask


def _write(folder: Path, chosen: list[tuple[SavedHeatMap, np.ndarray]]) -> pd.DataFrame:
    """Write the patches and their tables."""
    (folder / "train").mkdir()
    rows = {}
    for one, mask in tqdm(chosen, desc="cutting patches", unit=" slides"):
        for square, patch in _patches(one, mask):
            row, column = divmod(square, mask.shape[1])
            x, y = one.heat_map.grid.corners(np.array(row), np.array(column))
            patch_id = hashlib.sha1(patch.tobytes()).hexdigest()
            if patch_id not in rows:
                Image.fromarray(patch).save(folder / "train" / f"{patch_id}.tif")
                rows[patch_id] = (patch_id, one.slide.stem, int(x), int(y), float(one.heat_map.prob[row, column]))
    table = pd.DataFrame(rows.values(), columns=["id", "slide", "minx", "miny", "prob_tumor"])
    for name, content in (
        ("train_labels.csv", table[["id"]].assign(label=0)),
        (SLIDES_FILES[-1], table[["id", "slide"]].rename(columns={"slide": "wsi"})),
        ("mined_patches.csv", table),
    ):
        atomic_write(folder / name, content.to_csv(index=False, lineterminator="\n"))
    return table


def _patches(one: SavedHeatMap, mask: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index and pixels, uint8 (96, 96, 3), of the marked squares, cut in the same way as for prediction.

    Raises:
        UserError: the slide cannot be read.
    """
    grid = one.heat_map.grid
    regions = SlideRegions(one.slide, grid, list(grid.regions(mask)), mask)
    for index in range(len(regions)):
        region = regions[index]
        if "error" in region:
            raise UserError(region["error"])
        patches = cut_patches(region["image"], region["row"], region["column"], grid.stride).contiguous().numpy()
        yield from zip(region["square"].tolist(), patches, strict=True)
