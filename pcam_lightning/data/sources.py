"""The layouts of data folders: their protocol, their registration, and detection."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pandas as pd

from pcam_lightning.data.chunks import Chunk
from pcam_lightning.data.class_folders import ClassFolders, class_folders
from pcam_lightning.data.csv_tables import HOW_TO_GET
from pcam_lightning.data.image_files import JPEGS, SUFFIXES, ImageFolder, is_hidden, subfolders
from pcam_lightning.data.kaggle import KaggleFolder
from pcam_lightning.data.patch_folder import PatchFolder
from pcam_lightning.data.pcam_h5 import PCamH5
from pcam_lightning.data.resize import Resize
from pcam_lightning.data.table_file import TableFile, is_table
from pcam_lightning.data.wilds import Wilds
from pcam_lightning.utils.errors import UserError

# How folders of a part are called elsewhere; a slide's own folder, such as test_001, is none of them.
_PART = r"(?i){}(ing)?([ _-]?(images?|imgs?|patches|data|set))?"
_DEPTH = 4  # levels below a folder that are searched for a data folder
_MOST_FOLDERS = 10_000  # that are searched: somebody may name a home folder


class PatchSource(Protocol):
    """A layout of a data folder: the tables of its parts, and how their pixels are read.

    Attributes:
        own_split: name of the split that comes with the layout, which then also names the slides; None without one.
    """

    own_split: str | None
    root: Path

    def __init__(self, root: Path) -> None: ...

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Return whether a folder has this layout, by the names in it."""

    def parts(self) -> list[str]:
        """Return which of train and test there are.

        Raises:
            UserError: there is neither.
        """

    def knows_slides(self) -> bool:
        """Return whether the files of the layout name the slides, without reading the patches."""

    def read_train(self, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
        """Read the labeled patches.

        Args:
            slides: CSV with columns id and wsi; where it is None, one that lies in the folder (`find_slides`).
            unknown_slides: what to do with ids that `slides` does not name: "error" or "as_one_slide".

        Returns:
            One row a patch with columns `id`, `label` (int8, 0 or 1), `path` (of its file, below `root`), where known
            `slide`, and with `own_split` `val` (bool). Ids are unique, and a layout
            may add columns that it reads pixels by.

        Raises:
            UserError: something is missing or malformed; the message names the file and the row.
        """

    def read_test(self, *, answers: bool = False) -> pd.DataFrame:
        """Read the patches to predict in the order of the submission: `id`, `path` and, with `answers`, `label`.

        Raises:
            UserError: something is missing or malformed; the message names the file and the row.
        """

    def scratch_patches(self, table: pd.DataFrame) -> int:
        """Return the number of patches that are unpacked to disk while a table is packed."""

    def open(self, table: pd.DataFrame, scratch: Path) -> AbstractContextManager[Sequence[Chunk]]:
        """Cut a table into chunks, in its order, that can be read within the context.

        Args:
            table: what `read_train` or `read_test` returns, or rows of it.
            scratch: folder for temporary files.

        Raises:
            UserError: a file is missing or damaged.
        """


# The first that detects its layout counts; KaggleFolder takes any folder with train/ or test/, PatchFolder any other.
SOURCES: list[type[PatchSource]] = [TableFile, PCamH5, Wilds, ClassFolders, KaggleFolder, PatchFolder]
_MARKS: dict[type[PatchSource], str] = {
    PCamH5: "PCam's .h5 files",
    Wilds: "metadata.csv and patches/",
    ClassFolders: "class folders in train/",
}


def open_source(
    root: Path, *needed: str, resize: Resize | None = None, columns: Mapping[str, str] | None = None
) -> PatchSource:
    """Find the layout of a data folder; the error for a folder without one names the folder that was probably meant.

    Args:
        root: the folder.
        needed: which of train and test are going to be read.
        resize: how patches are made of images of another size; None where they are of 96 x 96 pixels.
        columns: of a CSV of patches: what its columns are called, by what they hold.

    Raises:
        UserError: it is missing, a file, a folder above or within a data folder, or names a part in another way; or
            `resize` or `columns` do not go with its layout.
    """
    if columns and not TableFile.detect(root):
        raise UserError(
            f"`data.columns`: goes with a CSV of patches, and `data.root` {root} is none; null takes no columns."
        )
    source: PatchSource = TableFile(root, columns) if columns else _open_layout(root, *needed)
    if resize is not None:
        if not isinstance(source, ImageFolder):
            raise UserError(f"{root}: its patches are not image files; leave `data.resize` and `data.mpp` out.")
        source.resize = resize
        source.cache_name = os.path.join(source.cache_name, resize.name)  # packed images beside those of other sizes
    return source


def _open_layout(root: Path, *needed: str) -> PatchSource:
    if root.is_file() and not TableFile.detect(root):
        unzip = "unzip it and name" if root.suffix.lower() == ".zip" else "name"
        raise UserError(f"{root}: is a file, not a folder or a .csv; {unzip} the data folder with `data.root`.")
    if not root.exists() and root.suffix.lower() == ".csv":
        raise UserError(f"{root}: no such file.")
    if not root.exists():
        raise UserError(f"{root}: no such folder; {HOW_TO_GET}.")
    detected = [layout for layout in SOURCES if layout.detect(root)]  # each once: it may list a folder of all patches
    layout = detected[0]
    marks = [mark for other, mark in _MARKS.items() if other in detected]
    marks += ["train_labels.csv"] if (root / "train_labels.csv").is_file() else []
    if len(marks) > 1:
        raise UserError(f"{root}: has two layouts, {marks[0]} and {marks[1]}; move one of them to a folder of its own.")
    if layout not in (KaggleFolder, PatchFolder):
        return layout(root)
    if needed == ("train",) and not marks:
        _check_labels(root)
    names = subfolders(root)
    for part in needed:
        if part not in names and (like := next(filter(re.compile(_PART.format(part)).fullmatch, names), None)):
            raise UserError(f"{root}: has a folder {like}/ and none called {part}/; rename it to {part}/.")
    if layout is not PatchFolder:
        if needed == ("train",) and not marks:
            _check_unlabeled(root, root / "train")
        return layout(root)
    if root.resolve().name == "train" and (root.resolve().parent / "train_labels.csv").is_file():
        outer = root.resolve().parent if root.name != "train" else root.parent
        raise UserError(f"{root}: is the training part of {outer}; use `data.root` {outer}.")
    if found := _find_inner(root):
        raise UserError(f"{root}: is not a data folder, and {found} looks like one; use `data.root` {found}.")
    if needed == ("train",):
        _check_unlabeled(root, root)
    return layout(root)


def _check_labels(root: Path) -> None:
    """Check that a folder is not one of the other labeled layouts with something missing.

    Raises:
        UserError: it is; the message says what to do.
    """
    if (root / "metadata.csv").is_file():
        raise UserError(
            f"{root}: has metadata.csv, as Camelyon17-WILDS does, and no patches/; unpack the whole archive."
        )
    if names := sorted(class_folders(root)):
        raise UserError(f"{root}: class folders, here {names[0]}/, should be in {root / 'train'}; move them there.")
    if names := sorted(class_folders(root / "train")):
        raise UserError(
            f"{root / 'train'}: has a folder {names[0]}/ and none for the other class; the names are 0 or normal, and "
            "1 or tumor."
        )
    if not (root / "train").is_dir() and (tables := sorted(filter(is_table, root.glob("*.csv")))):
        raise UserError(
            f"{root}: is not a data folder, and {tables[0].name} is a CSV of patches; use `data.root` {tables[0]}."
        )


def _check_unlabeled(root: Path, part: Path) -> None:
    """Check that the images of a part do not lie in folders that may stand for labels, and are none of a layout.

    Raises:
        UserError: they do; the message says where, and how labels are given.
    """
    for number, (folder, folders, names) in enumerate(os.walk(part)):
        folders[:] = [name for name in folders if not is_hidden(name)]
        images = [name for name in names if name.lower().endswith((*SUFFIXES, *JPEGS)) and not is_hidden(name)]
        if images and folder != str(part):
            raise UserError(
                f"{root}: has images in {Path(folder).relative_to(root)}/ and no labels. Class folders are called "
                "train/0 and train/1, or train/normal and train/tumor; for any other layout write a CSV with columns "
                "path, label and, where known, patient and slide, and name it with `data.root`."
            )
        if number > _MOST_FOLDERS:
            return


def layout_of(root: Path) -> type[PatchSource]:
    """Return the layout of a folder, which may be missing."""
    return next(layout for layout in SOURCES if layout.detect(root))


def read_train(root: Path, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
    """Read the labeled patches of a data folder, see `PatchSource.read_train`."""
    return open_source(root, "train").read_train(slides, unknown_slides)


def read_test(root: Path, *, answers: bool = False) -> pd.DataFrame:
    """Read the patches to predict of a data folder, see `PatchSource.read_test`."""
    return open_source(root, "test").read_test(answers=answers)


def parts(root: Path, columns: Mapping[str, str] | None = None) -> list[str]:
    """Return which of train and test a data folder has; `columns` as in `open_source`.

    Raises:
        UserError: it is no data folder, or has neither.
    """
    return open_source(root, "train", "test", columns=columns).parts()


def _find_inner(root: Path) -> Path | None:
    """Return the first folder below `root` that looks like a data folder, the outermost before others."""
    part = re.compile(_PART.format("(train|test)"))
    folders = [(root, 0)]  # and their levels; grows while it is read, level by level
    for folder, level in folders:
        names = subfolders(folder)
        if folder != root and (layout_of(folder) is not PatchFolder or any(map(part.fullmatch, names))):
            return folder
        if level < _DEPTH and len(folders) < _MOST_FOLDERS:
            folders += [(folder / name, level + 1) for name in names]
    return None
