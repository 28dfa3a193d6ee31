"""PCam's own files, camelyonpatch_level_2_split_*.h5 (or .gz) and meta CSVs -> rows of the table, and pixels."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pcam_lightning.data.chunks import CHUNK, BadFiles
from pcam_lightning.data.csv_tables import read_text
from pcam_lightning.data.h5_files import HOW_TO_GET, PREFIX, find_h5, open_array, open_images, read_images
from pcam_lightning.data.image_io import BYTES
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn

_CENTER = "center_tumor_patch"  # of meta.csv: the label; tumor_patch is of the whole patch


class PCamH5:
    """PCam's own files: train and valid are the labeled part; a meta.csv names the slides.

    Args:
        root: their folder.
    """

    own_split: str | None = "PCam's own parts"

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Return whether a folder has this layout; Kaggle's labels beside such files make it a Kaggle folder."""
        return not (root / "train_labels.csv").is_file() and any(root.glob(f"{PREFIX}*_[xy].h5*"))

    def parts(self) -> list[str]:
        """Return which of train and test there are.

        Raises:
            UserError: there is neither.
        """
        found = [part for part in ("train", "test") if has_part(self.root, part)]
        if not found:
            raise UserError(f"{self.root}: has neither PCam's train nor its test files; valid alone is of no use here.")
        return found

    def knows_slides(self) -> bool:
        """Return whether all labeled parts have a meta.csv."""
        return all(meta_of(self.root, part).is_file() for part in ("train", "valid"))

    def read_train(self, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
        """Read train and valid, see `read_part`; the column `val` marks those of valid.

        Raises:
            UserError: a file is missing or damaged, or `slides` is given.
        """
        if slides is not None:
            raise UserError(f"{self.root}: PCam's own files name their slides; leave `data.slides` out.")
        each = {part: read_part(self.root, part) for part in ("train", "valid")}
        table = pd.concat([part.assign(val=name == "valid") for name, part in each.items()], ignore_index=True)
        if "slide" in table and table["slide"].isna().any():
            rank_zero_warn(f"{self.root}: one of its meta.csv files is missing, so that no slides are used.")
            table = table.drop(columns="slide")
        return table

    def read_test(self, *, answers: bool = False) -> pd.DataFrame:
        """Read test, see `read_part`."""
        return read_part(self.root, "test", labels=answers)

    def scratch_patches(self, table: pd.DataFrame) -> int:
        """Count the patches in compressed files, which are unpacked while they are read."""
        return int(table["path"].str.endswith(".gz").sum())

    @contextmanager
    def open(self, table: pd.DataFrame, scratch: Path) -> Iterator[list["H5Chunk"]]:
        """Cut the table into chunks to read; whole files alone, rows in their order."""
        chunks: list[H5Chunk] = []
        with ExitStack() as stack:
            for name, rows in table.groupby("path", sort=False):
                file = stack.enter_context(open_images(self.root / str(name), len(rows), scratch))
                starts = range(0, len(rows), CHUNK)
                chunks += [H5Chunk(str(file), str(name), start, min(start + CHUNK, len(rows))) for start in starts]
            yield chunks


class H5Chunk(NamedTuple):
    """Some patches in a row of an unpacked x."""

    file: str
    name: str  # of the file in the data folder
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of patches."""
        return self.stop - self.start

    def read(self) -> tuple[bytearray, BadFiles]:
        """Return the RGB bytes of all patches; black, all of them bad, where the file is damaged."""
        try:
            return bytearray(read_images(self.file, self.start, self.stop)), {}
        except OSError as error:
            reason = f"rows {self.start:,} to {self.stop - 1:,} are damaged: {error}"
            return bytearray(self.size * BYTES), dict.fromkeys(range(self.size), (self.name, reason))


def has_part(root: Path, part: str) -> bool:
    """Return whether a folder holds the images of a part: train, valid or test."""
    return any(root.glob(f"{PREFIX}{part}_x.h5*"))


def read_part(root: Path, part: str, *, labels: bool = True) -> pd.DataFrame:
    """Read the labels and slides of one part, or name its patches alone.

    Patches have no names in these files, and exact duplicates among them: an id is the part and the row, such as
    train-000123.

    Args:
        root: folder with the part's x and y (`.h5` or `.h5.gz`) and, for the slides, its `meta.csv`.
        part: train, valid or test.
        labels: whether y and meta are needed; without, x alone is read.

    Returns:
        One row a patch in the files' order, with columns `id`, `path` (of x, below `root`) and, with `labels`,
        `label` (int8) and, where there is a `meta.csv`, `slide`.

    Raises:
        UserError: a file is missing or damaged, or is not what its name says.
    """
    images = find_h5(root, part, "x")
    known = _read_labels(root, part) if labels else {}
    count = len(known["label"]) if labels else _count(root, part)
    if labels and images.suffix == ".h5":  # what is compressed is looked at when it is unpacked
        with open_images(images, count, images.parent):
            pass
    return pd.DataFrame({"id": [f"{part}-{row:06d}" for row in range(count)], **known, "path": images.name})


def _count(root: Path, part: str) -> int:
    """Count a part's patches; by y where x is compressed, which would take a gigabyte to unpack."""
    kind = "x" if find_h5(root, part, "x").suffix == ".h5" else "y"
    with TemporaryDirectory() as scratch, open_array(find_h5(root, part, kind), kind, Path(scratch)) as data:
        return len(data)


def _read_labels(root: Path, part: str) -> dict[str, Any]:
    labels = find_h5(root, part, "y")
    with TemporaryDirectory() as scratch, open_array(labels, "y", Path(scratch)) as data:
        if data.size != len(data):
            raise UserError(f"{labels}: its shape is {data.shape}, one label a patch is due; are x and y swapped?")
        try:
            label = data[:].ravel()
        except OSError as error:
            raise UserError(f"{labels}: damaged ({error}); {HOW_TO_GET}.") from None
    if invalid := sorted(set(np.unique(label).tolist()) - {0, 1}):
        raise UserError(f"{labels}: label {invalid[0]} is neither 0 nor 1; {HOW_TO_GET}.")
    meta = meta_of(root, part)
    if not meta.is_file():
        rank_zero_info(f"{meta}: no such file; the slides of {part} are not known.")
        return {"label": label.astype(np.int8)}
    frame = _read_meta(root, part)
    if len(frame) != len(label):
        raise UserError(f"{meta}: {len(frame):,} rows, and {labels.name} has {len(label):,} labels; {HOW_TO_GET}.")
    if _CENTER in frame:
        other = frame[_CENTER].str.lower().isin(["true", "1"]).to_numpy() != (label == 1)
        if other.any():
            raise UserError(
                f"{labels}: {int(other.sum()):,} labels differ from {_CENTER} in {meta.name}; {HOW_TO_GET}."
            )
    return {"label": label.astype(np.int8), "slide": frame["wsi"]}


def meta_of(root: Path, part: str) -> Path:
    """Return the path of a part's `meta.csv`."""
    return root / f"{PREFIX}{part}_meta.csv"


def read_meta(root: Path, part: str) -> "pd.Series[str]":
    """Read the slide of each patch of a part, in the files' order.

    Raises:
        UserError: the file is missing or malformed.
    """
    return _read_meta(root, part)["wsi"]


def _read_meta(root: Path, part: str) -> pd.DataFrame:
    meta = meta_of(root, part)
    if not meta.is_file():
        raise UserError(f"{meta}: no such file, and it names the slides; {HOW_TO_GET}.")
    frame = read_text(meta, f"{HOW_TO_GET}.")
    if "wsi" not in frame:
        raise UserError(f"{meta}: not a CSV file with a column wsi; {HOW_TO_GET}.")
    return frame.reset_index(drop=True)
