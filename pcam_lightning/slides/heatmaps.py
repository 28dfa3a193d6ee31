"""heatmap: slides one after another, and the table of all."""

from pathlib import Path
from typing import Any

import pandas as pd

from pcam_lightning.slides.options import SlideOptions
from pcam_lightning.slides.predict import predict_slide
from pcam_lightning.slides.reader import is_slide
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, is_rank_zero, rank_zero_warn


def heatmap(
    slides: list[Path], ckpt_path: Path | str = "pcam", output: Path = Path("heatmaps"), **options: Any
) -> pd.DataFrame:
    """Predict slides one after another: where tumor is probable, as tables, pictures and QuPath's objects.

    A slide that is finished is skipped, and one that was interrupted is resumed.

    Args:
        slides: files that OpenSlide or Pillow reads, or folders of them.
        ckpt_path: pcam or pcam-small, which come with the package, or a checkpoint of this project.
        output: folder of the results, a folder for each slide and `slides.csv` of all.
        options: of `SlideOptions`.

    Returns:
        As in slides.csv: slide, score, tissue_mm2, tumor_mm2, lesions, folder.

    Raises:
        UserError: an option or the network cannot be used; or, after all others have been predicted, a slide.
    """
    SlideOptions(**options)
    found = list_slides(slides)
    output.mkdir(parents=True, exist_ok=True)
    rows, failures = [], []
    columns = ["slide", "score", "tissue_mm2", "tumor_mm2", "lesions"]
    for path in found:
        try:
            result = predict_slide(path, ckpt_path, output / path.stem, **options)
        except UserError as error:
            if len(found) == 1:
                raise
            failures.append(str(error))
            rank_zero_warn(str(error))
            continue
        rows.append([*(result.summary[name] for name in columns), str(result.folder)])
        table = pd.DataFrame(rows, columns=[*columns, "folder"])
        if is_rank_zero():
            atomic_write(output / "slides.csv", table.to_csv(index=False, lineterminator="\n"))
    if failures:
        raise UserError(f"{len(failures)} of {len(found)} slides could not be predicted; the first: {failures[0]}")
    return table


def list_slides(paths: list[Path]) -> list[Path]:
    """Return slides, and for each folder those that are in it, by name.

    Raises:
        UserError: a folder holds none, or two slides have the same name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        files = sorted(file for file in path.iterdir() if is_slide(file)) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path}: no slide in this folder.")
        for file in files:
            if other := found.get(file.stem):
                raise UserError(f"{other}, {file}: the results of both would be in the same folder; rename one.")
            found[file.stem] = file
    return list(found.values())
