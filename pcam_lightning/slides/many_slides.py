"""heatmap: slides one after another, and the table of all."""

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
    """Predict slides one after another: where tumor is probable, as tables, pictures and QuPath's objects.

    A slide that is finished is skipped, and one that was interrupted is resumed.

    Args:
        slides: files that OpenSlide or Pillow reads, or folders of them, with those below.
        ckpt_path: pcam or pcam-small, which come with the package, or a run or a checkpoint of this project.
        output: folder of the results, a folder for each slide; `slides.csv` and `index.html` list all.
        options: of `SlideOptions`.

    Returns:
        The rows of slides.csv that are of these slides: slide, score, tissue_mm2, tumor_mm2, lesions, ood_fraction
        (the share of the tissue that is out of distribution, empty where it is not known), damaged_squares and folder.

    Raises:
        UserError: an option or the network cannot be used; or, after all others have been predicted, a slide.
    """
    choices = SlideOptions(**options)
    options["precision"] = supported_precision(choices.accelerator, choices.precision)  # reported once
    network = SlideNetwork.load(ckpt_path, choices.tta)
    found = list_slides(slides)
    check_table(choices.mpp, found)
    if choices.regions is not None and choices.regions.is_dir():
        list_unmatched(choices.regions, found)
    elif choices.regions is not None and len(found) > 1:
        raise UserError(f"`regions` {choices.regions}: of one slide, not of {len(found):,}; should be a folder.")
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
            failed = [str(path.absolute()) for path in failures]  # what is there of these is of an earlier call
            table = table[~table["slide"].isin(failed)]
            atomic_write(output / "slides.csv", table.to_csv(index=False, lineterminator="\n"))
            write_index(output, table)
    if failures:
        first, *others = failures
        also = f" Also: {', '.join(map(str, others))}." if others else ""
        raise UserError(
            f"{len(failures)} of {len(found)} slides could not be predicted; the first: {failures[first]}{also}"
        )
    table = slide_table(output)
    return table[table["folder"].isin([str(output / path.stem) for path in found])].reset_index(drop=True)


def slide_table(output: Path) -> pd.DataFrame:
    """Return a row for each finished slide of a folder, by name."""
    columns = ["slide", "score", "tissue_mm2", "tumor_mm2", "lesions", "ood_fraction", "damaged_squares"]
    rows = []
    for file in sorted(output.glob("*/slide.json")):
        summary = read_summary(file)
        rows.append([*(summary.get(name) for name in columns), str(file.parent)])
    return pd.DataFrame(rows, columns=[*columns, "folder"]).astype({"ood_fraction": float})


def list_slides(paths: list[Path]) -> list[Path]:
    """Return slides, and for each folder those that are in it and below, readable or not.

    Raises:
        UserError: a folder holds none, or two slides have the same name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        files = find_slides(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path}: no slide in this folder.")
        for file in files:
            if other := found.get(file.stem):
                raise UserError(f"{other}, {file}: the results of both would be in the same folder; rename one.")
            found[file.stem] = file
    return list(found.values())
