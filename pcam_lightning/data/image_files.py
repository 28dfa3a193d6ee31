"""Image files of a folder: where they are, and their pixels, chunk by chunk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from pcam_lightning.data.chunks import CHUNK, FileChunk
from pcam_lightning.data.csv_tables import HOW_TO_GET
from pcam_lightning.data.resize import Resize
from pcam_lightning.utils.errors import UserError, rank_zero_warn

SUFFIXES = (".tif", ".tiff", ".png")  # the earlier one wins where an id has several
JPEGS = (".jpg", ".jpeg")  # read with `data.resize` alone
PART_NAMES = {  # in lower case, of folders and of a column split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class ImageFolder:
    """What layouts with a file for each patch have in common.

    Args:
        root: the folder.
    """

    own_split: str | None = None
    cache_name = ""  # of a folder for the packed images, below that of the data folder
    resize: Resize | None = None  # set by `open_source`

    def __init__(self, root: Path) -> None:
        self.root = root

    def scratch_patches(self, table: pd.DataFrame) -> int:
        """Return the number of patches that are unpacked to disk while the table is packed: none."""
        return 0

    def find_images(self, part: str, *, unique: bool = True) -> dict[str, str]:
        """Map id to path for the images of a folder below `root`, see `find_images`."""
        return find_images(self.root, part, unique=unique, jpeg=self.resize is not None)

    def missing_files(self, table: pd.DataFrame) -> "pd.Series[str]":
        """Return the paths of a table that no file has; folders are listed, no file is looked for by itself."""
        folders = table["path"].str.rpartition("/")[0].unique()
        found = {path.removeprefix("./") for folder in folders for path in list_folder(self.root, str(folder) or ".")}
        return table.loc[~table["path"].isin(found), "path"]

    @contextmanager
    def open(self, table: pd.DataFrame, scratch: Path) -> Iterator[list[FileChunk]]:
        """Cut a table with the column `path` into chunks to read."""
        paths = table["path"].tolist()
        starts = range(0, len(paths), CHUNK)
        yield [FileChunk(os.fspath(self.root), paths[start : start + CHUNK], self.resize) for start in starts]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none of the user's: what macOS leaves beside files, or our own cache."""
    return name.startswith(".") or name == "__MACOSX"


def list_folder(root: Path, folder: str) -> list[str]:
    """Return the paths below `root` of what lies in a folder; none where it is missing."""
    try:
        with os.scandir(root / folder) as entries:
            return [f"{folder}/{entry.name}" for entry in entries]
    except OSError:
        return []


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, hidden ones left out; none where it is missing."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.is_file(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(name for name in names if not is_hidden(name) and os.path.isdir(folder / name))


def find_images(root: Path, part: str, *, unique: bool = True, jpeg: bool = False) -> dict[str, str]:
    """Map id to path below `root` for all images below `root/part`; folders are listed, no file is opened.

    Args:
        root: the data folder.
        part: a folder in it.
        unique: whether files in different folders must have different names; else an id is a path without suffix.
        jpeg: whether JPEG files count.

    Raises:
        UserError: there is no such folder, no image in it, a symbolic link that loops, or two files have one id.
    """
    if not (root / part).is_dir():
        raise UserError(f"{root / part}: no such folder; {HOW_TO_GET}.")
    found: dict[str, str] = {}
    suffixes = (*SUFFIXES, *JPEGS) if jpeg else SUFFIXES
    jpegs = 0
    above = frozenset(map(str, Path(os.path.realpath(root / part)).parents))
    for path in _walk(root, "" if part == "." else part + "/", suffixes, above):
        stem, suffix = os.path.splitext(path)
        if suffix.lower() not in suffixes:
            jpegs += suffix.lower() in JPEGS
            continue
        stem = stem.rpartition("/")[2] if unique else stem
        other = found.setdefault(stem, path)
        if other != path:
            found[stem] = _preferred(root, other, path)
    reads = "`data.resize` crop or scale reads JPEG"
    if not found:
        hint = HOW_TO_GET if part in ("train", "test", ".") else "it needs some"
        hint = f"{jpegs:,} .jpg: {reads}" if jpegs else hint
        raise UserError(f"{root / part}: no .tif or .png file in it or below; {hint}.")
    if jpegs:
        rank_zero_warn(f"{root / part}: {jpegs:,} .jpg files in it are not used; {reads}.")
    return found


def _walk(root: Path, folder: str, suffixes: tuple[str, ...], above: frozenset[str]) -> Iterator[str]:
    """Yield the path below `root` of each file of a folder and of those below it, hidden ones left out.

    Args:
        root: the data folder.
        folder: below root, with a slash at its end; empty for root itself.
        suffixes: of files that are no folders, which saves looking.
        above: where the folders above it really are.

    Raises:
        UserError: a symbolic link leads to itself or to a folder above it.
    """
    real = os.path.realpath(root / folder)
    if real in above:
        raise UserError(f"{root / folder}: a symbolic link to a folder in which it lies; remove it.")
    folders = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.name.lower().endswith(suffixes):
                yield folder + entry.name
                continue
            try:
                is_folder = entry.is_dir()
            except OSError as error:
                raise UserError(f"{root / folder / entry.name}: {error.strerror}; remove it.") from None
            if is_folder:
                folders.append(folder + entry.name + "/")
            else:
                yield folder + entry.name
    for one in folders:
        yield from _walk(root, one, suffixes, above | {real})


def _preferred(root: Path, first: str, second: str) -> str:
    def rank(path: str) -> int:
        return (*SUFFIXES, *JPEGS).index(os.path.splitext(path)[1].lower())

    if rank(first) == rank(second):
        raise UserError(f"{root / first} and {root / second} have the same id; remove or rename one of them.")
    return min(first, second, key=rank)
