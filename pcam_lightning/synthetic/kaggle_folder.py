"""A folder of drawn lymph-node tissue, in Kaggle's layout or as whole slides: for those without data, and for tests."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from pcam_lightning.synthetic.hospitals import synthesize_hospitals
from pcam_lightning.synthetic.layouts import as_class_folders, as_table
from pcam_lightning.synthetic.tissue import BROWNER, RUIFROK, Array, Slide, synthesize_patch
from pcam_lightning.utils.atomic_io import atomic_folder, atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.parallel import process_map

WORTH_A_PROCESS = 100  # patches; fewer are drawn sooner than a worker process starts
MARK = "SYNTHETIC.txt"


def _slides(count: int, seed: int, slide_effect: float) -> dict[tuple[str, int], list[Slide]]:
    """Draw the slides of each split, "train" or "test", and each side, 1 with and 0 without tumor."""
    slides: dict[tuple[str, int], list[Slide]] = {}
    tumors = round(0.41 * count)  # of CAMELYON16's 216, 88 have tumors
    for side, of_side in enumerate((count - tumors, tumors)):
        drawn = []
        for number in np.random.default_rng([seed, 2, side]).permutation(of_side) + 1:
            rng = np.random.default_rng([seed, 3, side, number])
            drawn.append(sample_slide(rng, f"camelyon16_train_{('normal', 'tumor')[side]}_{number:03d}", slide_effect))
        tests = max(1, round(of_side / 4))
        slides["test", side], slides["train", side] = drawn[:tests], drawn[tests:]
    return slides


def sample_slide(rng: np.random.Generator, name: str, slide_effect: float) -> Slide:
    """Draw what a laboratory and a scanner do to a slide."""
    towards = 0.5 + slide_effect * (rng.choice([-0.3, 0.35, 0.35]) + rng.normal(0, 0.15))
    stains = RUIFROK + towards * (BROWNER - RUIFROK)
    stains = (stains * np.exp(slide_effect * rng.normal(0, 0.15, (2, 1)))).clip(0.02).astype(np.float32)
    white = 0.98 - slide_effect * abs(rng.normal(0, 0.04)) * np.array([[[1]], [[1.1]], [[0.7]]])
    sharpening = max(0.0, 0.7 + slide_effect * rng.uniform(-0.4, 0.4))
    return Slide(name, stains, white.clip(0.3).astype(np.float32), sharpening)


def _place(index: int) -> tuple[int, int, int]:
    """Compute the label of patch 0, 1, ..., its slide's side, and its number there: slides of a side take turns."""
    before = (2 * index + 2) // 5  # two of five are positive
    if (2 * index + 4) // 5 > before:
        return 1, 1, before
    negatives = index - before  # and a third of the others lies on slides with a tumor
    return (0, 1, negatives // 3) if negatives % 3 == 2 else (0, 0, negatives - negatives // 3)


def _write_patch(
    folder: Path, slides: dict[tuple[str, int], list[Slide]], seed: int, split: str, index: int, attempt: int = 0
) -> tuple[str, int, str]:
    """Draw a patch into its file and return its id, label and slide."""
    label, side, number = _place(index)
    slide = slides[split, side][number % len(slides[split, side])]
    patch, _ = synthesize_patch(np.random.default_rng([seed, int(split == "test"), index, attempt]), slide, label)
    patch_id = hashlib.sha1(patch.tobytes()).hexdigest()
    Image.fromarray(patch).save(folder / split / f"{patch_id}.tif")
    return patch_id, label, slide.name


def _write_tables(folder: Path, table: pd.DataFrame) -> None:
    """Write the CSVs of a folder, and the file that marks it as synthetic."""
    of_train, of_test = table[table["split"] == "train"], table[table["split"] == "test"]
    files = {"train_labels.csv": of_train[["id", "label"]], "patch_id_wsi_full.csv": of_train[["id", "wsi"]]}
    if len(of_test):
        files["answers.csv"] = of_test[["id", "label"]]
        files["sample_submission.csv"] = of_test[["id", "label"]].assign(label=0)
    for file, part in files.items():
        atomic_write(folder / file, part.to_csv(index=False, lineterminator="\n"))
    atomic_write(folder / MARK, "Tissue, slides and labels were drawn by pcam_lightning: none is real.\n")


def synthesize(
    dest: Path,
    train: int = 2000,
    test: int = 500,
    slides: int = 24,
    seed: int = 0,
    slide_effect: float = 1.0,
    layout: Literal["kaggle", "classes", "table", "wilds"] = "kaggle",
    whole: bool = False,
    side_mm: float = 2.0,
) -> None:
    """Draw believable lymph-node tissue into a folder in Kaggle's layout, so that the project runs without its data.

    Beside Kaggle's files it holds `answers.csv`, the labels of test, `patch_id_wsi_full.csv`, the slides of train, and
    `SYNTHETIC.txt`, which marks the folder as one of synthetic tissue.
    Two of five patches are positive. Test comes from other slides than train. The same arguments draw the same patches.

    Args:
        dest: the folder to make; one that is there must be empty.
        train: patches to draw for training, at least 1.
        test: patches to draw for test; with 0 there is no test/, and none of its CSVs.
        slides: slides that they come from, at least 4; a quarter of them is kept for test.
        seed: of the draw, at least 0.
        slide_effect: how far slides differ in stain, brightness and sharpness; 0 makes all alike, 3 is the most.
        layout: kaggle; classes, a folder for each class; table, one CSV of patches; or wilds, that of Camelyon17-WILDS:
            patches of five hospitals with other stains, scanners and shares of tumor, `train` and `test` of them in
            all, of ten slides each.
        whole: draw whole slides instead of patches: pyramidal TIFFs with the outlines of their metastases as .xml, and
            reference.csv (slide,label). Two of five have metastases.
        side_mm: side of whole slides, from 0.5 to 4 mm; 2 mm take ten seconds and 13 MB each.

    Raises:
        UserError: an argument is out of range, `dest` holds something, or it cannot be written.
    """
    least = {"train": (train, 1), "test": (test, 0), "slides": (slides, 3 if whole else 4), "seed": (seed, 0)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise UserError(f"{name} {value} is too small. Give at least {bound}.")
    if not 0 <= slide_effect <= 3:
        raise UserError(f"slide_effect {slide_effect} is out of range. Give a number from 0 to 3.")
    if not 0.5 <= side_mm <= 4:
        raise UserError(f"side_mm {side_mm} is out of range. Give a number from 0.5 to 4.")
    try:
        with atomic_folder(Path(os.path.realpath(dest.expanduser()))) as folder:
            if layout == "wilds" and not whole:
                synthesize_hospitals(folder, train + test, seed)
                atomic_write(folder / MARK, "Tissue, slides and labels were drawn by pcam_lightning: none is real.\n")
            elif whole:
                _draw_whole_slides(folder, dest, slides, partial(_draw_whole_slide, seed, slide_effect, side_mm))
            else:
                _draw_patches(folder, dest, {"train": train, "test": test}, _slides(slides, seed, slide_effect), seed)
                {"kaggle": lambda folder: None, "classes": as_class_folders, "table": as_table}[layout](folder)
    except FileExistsError:
        raise UserError(f"{dest} is there already, and is no empty folder. Name a new one, or remove it.") from None
    except OSError as error:
        raise UserError(f"{dest} cannot be written: {error.strerror or error}. Name another folder.") from error
    if whole:
        rank_zero_info(f"{dest}: {slides:,} drawn slides, their annotations, and reference.csv.")
    elif layout == "wilds":
        rank_zero_info(f"{dest}: {train + test:,} drawn patches of five hospitals.")
    else:
        rank_zero_info(f"{dest}: {train:,} drawn patches to train on" + (f", {test:,} in test/." if test else "."))


def _draw_patches(
    folder: Path, dest: Path, counts: dict[str, int], slides: dict[tuple[str, int], list[Slide]], seed: int
) -> None:
    """Draw patches into a folder, by the number for each split."""
    write = partial(_write_patch, folder, slides, seed)
    splits = [split for split, count in counts.items() for _ in range(count)]
    indices = [index for count in counts.values() for index in range(count)]
    for split in dict.fromkeys(splits):  # an empty test/ would be a folder to complain of
        (folder / split).mkdir()
    rows: dict[str, tuple[str, int, str, str]] = {}
    with process_map(len(splits) // WORTH_A_PROCESS, chunksize=16) as map_on_cores:
        drawn = map_on_cores(write, splits, indices)
        progress = tqdm(drawn, desc=f"drawing {dest}", total=len(splits), unit="patch")
        for split, index, row in zip(splits, indices, progress, strict=True):
            attempt = 0
            while row[0] in rows:  # two patches of bare glass, say
                attempt += 1
                row = write(split, index, attempt)
            rows[row[0]] = (*row, split)
    _write_tables(folder, pd.DataFrame(sorted(rows.values()), columns=["id", "label", "wsi", "split"]))


def _draw_whole_slide(seed: int, slide_effect: float, side_mm: float, number: int) -> tuple[str, Array, Array]:
    """Draw a whole slide: its name, its pixels and where its metastases are."""
    from pcam_lightning.synthetic.whole_slide import MPP, synthesize_whole_slide

    label = int(number % 5 < 2)
    rng = np.random.default_rng([seed, 4, number])
    name = f"{('normal', 'tumor')[label]}_{number + 1:03d}"
    image, metastases = synthesize_whole_slide(
        rng, sample_slide(rng, name, slide_effect), round(side_mm * 1000 / MPP), tumor=bool(label)
    )
    return name, image, metastases


def _draw_whole_slides(folder: Path, dest: Path, count: int, draw: Callable[[int], tuple[str, Array, Array]]) -> None:
    """Draw whole slides into a folder, the first two of each five with metastases."""
    from pcam_lightning.synthetic.whole_slide import write_whole_slide

    rows = []
    with process_map(min(count, 4)) as map_on_cores:  # one of 4 mm takes 3 GB
        drawn = map_on_cores(draw, range(count))
        # Written by this process: libvips compresses on all cores itself.
        for name, image, metastases in tqdm(drawn, desc=f"drawing {dest}", total=count, unit="slide"):
            write_whole_slide(folder / f"{name}.tif", image, metastases)
            rows.append((name, int(metastases.any())))
    table = pd.DataFrame(rows, columns=["slide", "label"])
    atomic_write(folder / "reference.csv", table.to_csv(index=False, lineterminator="\n"))
    atomic_write(folder / MARK, "Slides and annotations were drawn by pcam_lightning: none is real.\n")
