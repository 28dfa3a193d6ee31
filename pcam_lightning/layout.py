"""Is a folder a data folder, in Kaggle's layout, of PCam's own files, or of patches alone? Which one was meant?"""

import os
import re
from pathlib import Path

from pcam_lightning.messages import UserError, warn
from pcam_lightning.official import has_part, is_official

HOW_TO_GET = "download and unzip Kaggle's histopathologic-cancer-detection, or name its folder with --data.root"
# How folders of a part are called elsewhere; a slide's own folder, such as test_001, is none of them.
_PART = r"(?i){}(ing)?([ _-]?(images?|imgs?|patches|data|set))?"
_DEPTH = 4  # levels below a folder that are searched for a data folder
_MOST_FOLDERS = 10_000  # that are searched: somebody may name a home folder


def check_layout(root: Path, *needed: str) -> None:
    """Refuse a folder that is no data folder, naming the one that was probably meant.

    Args:
        root: folder in Kaggle's layout, of PCam's own files, or of patches alone.
        needed: which of train and test are going to be read.

    Raises:
        UserError: it is missing, a file, a folder above or within a data folder, or names a part in another way.
    """
    if root.is_file():
        unzip = "unzip it and name" if root.suffix.lower() == ".zip" else "name"
        raise UserError(f"{root}: is a file, not a folder; {unzip} the data folder with --data.root.")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; {HOW_TO_GET}.")
    if is_official(root):
        return
    folders = _folders(root)
    for part in needed:
        if part not in folders and (like := next(filter(re.compile(_PART.format(part)).fullmatch, folders), None)):
            raise UserError(f"{root}: has a folder {like}/ and none called {part}/; rename it to {part}/.")
    if _is_kaggle(root):
        return
    if root.resolve().name == "train" and (root.resolve().parent / "train_labels.csv").is_file():
        outer = root.resolve().parent if root.name != "train" else root.parent
        raise UserError(f"{root}: is the training part of {outer}; use --data.root {outer}.")
    if found := _find_inner(root):
        raise UserError(f"{root}: is not a data folder, and {found} looks like one; use --data.root {found}.")


def parts(root: Path) -> list[str]:
    """Return which of train and test a data folder has; patches alone are there to be predicted.

    Raises:
        UserError: it is no data folder, or has neither.
    """
    check_layout(root, "train", "test")
    if is_official(root):
        found = [part for part in ("train", "test") if has_part(root, part)]
        if not found:
            raise UserError(f"{root}: has neither PCam's train nor its test files; valid alone is of no use here.")
        return found
    if (root / "train_labels.csv").is_file() and not (root / "train").is_dir():
        warn(f"{root}: has a train_labels.csv and no train/; only its test part is used.")
    return [part for part in ("train", "test") if (root / part).is_dir()] or ["test"]


def _find_inner(root: Path) -> Path | None:
    """Return the first folder below `root` that looks like a data folder, the outermost before others."""
    part = re.compile(_PART.format("(train|test)"))
    folders = [(root, 0)]  # and their levels; grows while it is read, level by level
    for folder, level in folders:
        names = _folders(folder)
        if folder != root and (_is_kaggle(folder) or is_official(folder) or any(map(part.fullmatch, names))):
            return folder
        if level < _DEPTH and len(folders) < _MOST_FOLDERS:
            folders += [(folder / name, level + 1) for name in names]
    return None


def _is_kaggle(root: Path) -> bool:
    return (root / "train_labels.csv").is_file() or (root / "train").is_dir() or (root / "test").is_dir()


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
