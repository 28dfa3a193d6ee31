"""Generate folders of synthetic lymph-node tissue, as patches in several layouts or as whole slides."""

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

PER_PROCESS = 100  # patches; generating fewer takes less time than starting a worker process
MARK = "SYNTHETIC.txt"
_MARK_TEXT = "pcam_lightning generated these synthetic images and labels. None of them is real.\n"


def _slides(count: int, seed: int, slide_effect: float) -> dict[tuple[str, int], list[Slide]]:
    """Sample the slides of each split, "train" or "test", and each side, 1 with tumor and 0 without."""
    slides: dict[tuple[str, int], list[Slide]] = {}
    tumors = round(0.41 * count)  # 88 of CAMELYON16's 216 training slides have tumors
    for side, of_side in enumerate((count - tumors, tumors)):
        sampled = []
        for number in np.random.default_rng([seed, 2, side]).permutation(of_side) + 1:
            rng = np.random.default_rng([seed, 3, side, number])
            name = f"camelyon16_train_{('normal', 'tumor')[side]}_{number:03d}"
            sampled.append(sample_slide(rng, name, slide_effect))
        tests = max(1, round(of_side / 4))
        slides["test", side], slides["train", side] = sampled[:tests], sampled[tests:]
    return slides


def sample_slide(rng: np.random.Generator, name: str, slide_effect: float) -> Slide:
    """Sample the stains, glass and sharpness of a slide."""
    towards = 0.5 + slide_effect * (rng.choice([-0.3, 0.35, 0.35]) + rng.normal(0, 0.15))
    stains = RUIFROK + towards * (BROWNER - RUIFROK)
    stains = (stains * np.exp(slide_effect * rng.normal(0, 0.15, (2, 1)))).clip(0.02).astype(np.float32)
    white = 0.98 - slide_effect * abs(rng.normal(0, 0.04)) * np.array([[[1]], [[1.1]], [[0.7]]])
    sharpening = max(0.0, 0.7 + slide_effect * rng.uniform(-0.4, 0.4))
    return Slide(name, stains, white.clip(0.3).astype(np.float32), sharpening)


def _place(index: int) -> tuple[int, int, int]:
    """Return a patch's label, its side, and its number on that side; the slides of a side take turns."""
    before = (2 * index + 2) // 5  # two in five are positive
    if (2 * index + 4) // 5 > before:
        return 1, 1, before
    negatives = index - before  # a third of the negatives are on slides with tumor
    return (0, 1, negatives // 3) if negatives % 3 == 2 else (0, 0, negatives - negatives // 3)


def _write_patch(
    folder: Path, slides: dict[tuple[str, int], list[Slide]], seed: int, split: str, index: int, attempt: int = 0
) -> tuple[str, int, str]:
    """Write a synthetic patch, and return its id, label and slide."""
    label, side, number = _place(index)
    slide = slides[split, side][number % len(slides[split, side])]
    patch, _ = synthesize_patch(np.random.default_rng([seed, int(split == "test"), index, attempt]), slide, label)
    patch_id = hashlib.sha1(patch.tobytes()).hexdigest()
    Image.fromarray(patch).save(folder / split / f"{patch_id}.tif")
    return patch_id, label, slide.name


def _write_tables(folder: Path, table: pd.DataFrame) -> None:
    """Write the CSVs of a folder, and the file that marks it as synthetic."""
    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    files = {"train_labels.csv": train[["id", "label"]], "patch_id_wsi_full.csv": train[["id", "wsi"]]}
    if len(test):
        files["answers.csv"] = test[["id", "label"]]
        files["sample_submission.csv"] = test[["id", "label"]].assign(label=0)
    for file, part in files.items():
        atomic_write(folder / file, part.to_csv(index=False, lineterminator="\n"))
    atomic_write(folder / MARK, _MARK_TEXT)


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
    """Generate a folder of synthetic lymph-node tissue in Kaggle's layout, to run the project without real data.

    In addition to Kaggle's files, the folder contains `answers.csv` (labels of test), `patch_id_wsi_full.csv` (slides
    of train) and `SYNTHETIC.txt`, which marks it as synthetic. Two in five patches are positive. Test patches come from
    other slides than training patches. The same arguments generate the same patches.

    Args:
        dest: folder to create; an existing folder must be empty.
        train: number of training patches, at least 1.
        test: number of test patches; with 0, test/ and its CSVs are not written.
        slides: number of slides, at least 4; a quarter of them is used for test.
        seed: random seed, at least 0.
        slide_effect: variation of stain, brightness and sharpness between slides, from 0 (none) to 3.
        layout: kaggle; classes (one folder per class); table (one CSV of patches); or wilds (Camelyon17-WILDS: a total
            of `train` and `test` patches from five hospitals with ten slides each).
        whole: generate whole slides instead of patches: pyramidal TIFFs, outlines of metastases as .xml, and
            reference.csv (slide,label). Two in five slides have metastases.
        side_mm: side of whole slides, from 0.5 to 4 mm; a slide of 2 mm takes ten seconds and 13 MB.

    Raises:
        UserError: an argument is out of range, `dest` is not empty, or it cannot be written.
    """
    least = {"train": (train, 1), "test": (test, 0), "slides": (slides, 3 if whole else 4), "seed": (seed, 0)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise UserError(f"{name} {value} is too small. Set at least {bound}.")
    if not 0 <= slide_effect <= 3:
        raise UserError(f"slide_effect {slide_effect} is out of range. Set a number from 0 to 3.")
    if not 0.5 <= side_mm <= 4:
        raise UserError(f"side_mm {side_mm} is out of range. Set a number from 0.5 to 4.")
    try:
        with atomic_folder(Path(os.path.realpath(dest.expanduser()))) as folder:
            if layout == "wilds" and not whole:
                synthesize_hospitals(folder, train + test, seed)
                atomic_write(folder / MARK, _MARK_TEXT)
            elif whole:
                _write_whole_slides(folder, dest, slides, partial(_whole_slide, seed, slide_effect, side_mm))
            else:
                _write_patches(folder, dest, {"train": train, "test": test}, _slides(slides, seed, slide_effect), seed)
                {"kaggle": lambda folder: None, "classes": as_class_folders, "table": as_table}[layout](folder)
    except FileExistsError:
        raise UserError(f"{dest} exists and is not empty. Name a new folder, or remove it.") from None
    except OSError as error:
        raise UserError(f"{dest} cannot be written: {error.strerror or error}. Name another folder.") from error
    if whole:
        rank_zero_info(f"{dest}: {slides:,} synthetic slides, their annotations, and reference.csv.")
    elif layout == "wilds":
        rank_zero_info(f"{dest}: {train + test:,} synthetic patches of five hospitals.")
    else:
        rank_zero_info(f"{dest}: {train:,} synthetic training patches" + (f", {test:,} in test/." if test else "."))


def _write_patches(
    folder: Path, dest: Path, counts: dict[str, int], slides: dict[tuple[str, int], list[Slide]], seed: int
) -> None:
    """Write synthetic patches, the given number for each split."""
    write = partial(_write_patch, folder, slides, seed)
    splits = [split for split, count in counts.items() for _ in range(count)]
    indices = [index for count in counts.values() for index in range(count)]
    for split in dict.fromkeys(splits):  # only splits with patches: an empty test/ is an error
        (folder / split).mkdir()
    rows: dict[str, tuple[str, int, str, str]] = {}
    with process_map(len(splits) // PER_PROCESS, chunksize=16) as map_on_cores:
        results = map_on_cores(write, splits, indices)
        progress = tqdm(results, desc=f"generating {dest}", total=len(splits), unit="patch")
        for split, index, row in zip(splits, indices, progress, strict=True):
            attempt = 0
            while row[0] in rows:  # identical patches, such as bare glass
                attempt += 1
                row = write(split, index, attempt)
            rows[row[0]] = (*row, split)
    _write_tables(folder, pd.DataFrame(sorted(rows.values()), columns=["id", "label", "wsi", "split"]))


def _whole_slide(seed: int, slide_effect: float, side_mm: float, number: int) -> tuple[str, Array, Array]:
    """Generate a whole slide; return its name, its pixels and the mask of its metastases."""
    from pcam_lightning.synthetic.whole_slide import MPP, synthesize_whole_slide

    label = int(number % 5 < 2)
    rng = np.random.default_rng([seed, 4, number])
    name = f"{('normal', 'tumor')[label]}_{number + 1:03d}"
    image, metastases = synthesize_whole_slide(
        rng, sample_slide(rng, name, slide_effect), round(side_mm * 1000 / MPP), tumor=bool(label)
    )
    return name, image, metastases


def _write_whole_slides(
    folder: Path, dest: Path, count: int, generate: Callable[[int], tuple[str, Array, Array]]
) -> None:
    """Write synthetic whole slides; the first two of every five have metastases."""
    from pcam_lightning.synthetic.whole_slide import write_whole_slide

    rows = []
    with process_map(min(count, 4)) as map_on_cores:  # a slide of 4 mm takes 3 GB
        results = map_on_cores(generate, range(count))
        # This process writes the slides, because libvips already compresses on all cores.
        for name, image, metastases in tqdm(results, desc=f"generating {dest}", total=count, unit="slide"):
            write_whole_slide(folder / f"{name}.tif", image, metastases)
            rows.append((name, int(metastases.any())))
    table = pd.DataFrame(rows, columns=["slide", "label"])
    atomic_write(folder / "reference.csv", table.to_csv(index=False, lineterminator="\n"))
    atomic_write(folder / MARK, _MARK_TEXT)
