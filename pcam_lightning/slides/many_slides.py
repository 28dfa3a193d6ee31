"""heatmap: predict several slides, and write the table and page that list them."""

from pathlib import Path
from typing import Any

import pandas as pd

from pcam_lightning.slides.annotations import list_unmatched
from pcam_lightning.slides.predict_slide import predict_slide
from pcam_lightning.slides.saved_heat_map import read_summary
from pcam_lightning.slides.slide_files import find_slides
from pcam_lightning.slides.slide_network import SlideNetwork
from pcam_lightning.slides.slide_options import SlideOptions
from pcam_lightning.slides.slide_page import write_index
from pcam_lightning.slides.slide_scale import check_table
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, is_rank_zero, rank_zero_warn
from pcam_lightning.utils.system import supported_precision


def heatmap(
    slides: list[Path], ckpt_path: LoadedRun | Path | str = "pcam", output: Path = Path("heatmaps"), **options: Any
) -> pd.DataFrame:
    """Predict the probability of tumor across slides, and write tables, images and QuPath objects.

    Finished slides are skipped, and interrupted slides are resumed.

    Args:
        slides: files that OpenSlide or Pillow can read, or folders that are searched recursively.
        ckpt_path: pcam or pcam-small (bundled with the package), a run, or a checkpoint.
        output: folder of the results, with one folder per slide; `slides.csv` and `index.html` list all slides.
        options: fields of `SlideOptions`.

    Returns:
        Rows of slides.csv for these slides: slide, score, tissue_mm2, tumor_mm2, lesions, ood_fraction (share of
        out-of-distribution tissue, empty if not measured), damaged_squares and folder.

    Raises:
        UserError: an option or the network cannot be used; or a slide failed, raised after all others were predicted.
    """
    choices = SlideOptions(**options)
    options["precision"] = supported_precision(choices.accelerator, choices.precision)  # reported once
    network = SlideNetwork.load(ckpt_path, choices.tta)
    found = list_slides(slides)
    check_table(choices.mpp, found)
    if choices.regions is not None and choices.regions.is_dir():
        list_unmatched(choices.regions, found)
    elif choices.regions is not None and len(found) > 1:
        raise UserError(f"`regions` {choices.regions}: one file for {len(found):,} slides; pass a folder of files.")
    output.mkdir(parents=True, exist_ok=True)
    failures: dict[Path, str] = {}
    for path in found:
        try:
            predict_slide(path, network, output / path.stem, **options)
        except UserError as error:
            if len(found) == 1:
                raise
            failures[path] = str(error)
            rank_zero_warn(str(error))
        if is_rank_zero():
            table = slide_table(output)
            failed = [str(path.absolute()) for path in failures]  # their files come from an earlier call
            table = table[~table["slide"].isin(failed)]
            atomic_write(output / "slides.csv", table.to_csv(index=False, lineterminator="\n"))
            write_index(output, table)
    if failures:
        first, *others = failures
        also = f" Others: {', '.join(map(str, others))}." if others else ""
        raise UserError(
            f"{len(failures)} of {len(found)} slides could not be predicted. First error: {failures[first]}{also}"
        )
    table = slide_table(output)
    return table[table["folder"].isin([str(output / path.stem) for path in found])].reset_index(drop=True)


def slide_table(output: Path) -> pd.DataFrame:
    """Return one row per finished slide of a folder, sorted by name."""
    columns = ["slide", "score", "tissue_mm2", "tumor_mm2", "lesions", "ood_fraction", "damaged_squares"]
    rows = []
    for file in sorted(output.glob("*/slide.json")):
        summary = read_summary(file)
        rows.append([*(summary.get(name) for name in columns), str(file.parent)])
    return pd.DataFrame(rows, columns=[*columns, "folder"]).astype({"ood_fraction": float})


def list_slides(paths: list[Path]) -> list[Path]:
    """Return slide files, and search folders recursively; unreadable slides are included.

    Raises:
        UserError: a folder contains no slide, or two slides have the same name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        files = find_slides(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path}: contains no slide.")
        for file in files:
            if other := found.get(file.stem):
                raise UserError(f"{other}, {file}: both would write to the same results folder; rename one.")
            found[file.stem] = file
    return list(found.values())
