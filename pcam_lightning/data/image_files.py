"""Image files of a folder: where they are, and their pixels, chunk by chunk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from pcam_lightning.data.chunks import CHUNK, FileChunk
from pcam_lightning.data.csv_tables import HOW_TO_GET
from pcam_lightning.data.resize import Resize
from pcam_lightning.utils.errors import UserError

SUFFIXES = (".tif", ".tiff", ".png")  # the earlier one wins where an id has several
JPEGS = (".jpg", ".jpeg")  # read with `data.resize` alone


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


def find_images(root: Path, part: str, *, unique: bool = True, jpeg: bool = False) -> dict[str, str]:
    """Map id to path below `root` for all images below `root/part`; folders are listed, no file is opened.

    Args:
        root: the data folder.
        part: a folder in it.
        unique: whether files in different folders must have different names; else an id is a path without suffix.
        jpeg: whether JPEG files count.

    Raises:
        UserError: there is no such folder, no image in it, or two files have one id.
    """
    if not (root / part).is_dir():
        raise UserError(f"{root / part}: no such folder; {HOW_TO_GET}.")
    found: dict[str, str] = {}
    suffixes = (*SUFFIXES, *JPEGS) if jpeg else SUFFIXES
    jpegs = 0
    numbered_folders = ["" if part == "." else part + "/"]  # below root, each with a slash at its end
    while numbered_folders:
        folder = numbered_folders.pop()
        for entry in os.scandir(root / folder):
            if is_hidden(entry.name):
                continue
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() in suffixes:
                path = folder + entry.name
                stem = stem if unique else folder + stem
                other = found.setdefault(stem, path)
                if other != path:
                    found[stem] = _preferred(root, other, path)
            elif entry.is_dir():
                numbered_folders.append(folder + entry.name + "/")
            else:
                jpegs += suffix.lower() in JPEGS
    if not found:
        hint = HOW_TO_GET if part in ("train", "test", ".") else "it needs some"
        hint = f"{jpegs:,} .jpg: `data.resize` crop or scale reads JPEG" if jpegs else hint
        raise UserError(f"{root / part}: no .tif or .png file in it or below; {hint}.")
    return found


def _preferred(root: Path, first: str, second: str) -> str:
    def rank(path: str) -> int:
        return (*SUFFIXES, *JPEGS).index(os.path.splitext(path)[1].lower())

    if rank(first) == rank(second):
        raise UserError(f"{root / first} and {root / second} have the same id; remove or rename one of them.")
    return min(first, second, key=rank)
