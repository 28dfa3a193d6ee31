"""Is a folder a data folder, in Kaggle's layout, of PCam's own files, or of patches alone? Which one was meant?"""

import os
import re
from pathlib import Path

from pcam_lightning.messages import UserError
from pcam_lightning.official import has_part, is_official

HOW_TO_GET = "download and unzip Kaggle's histopathologic-cancer-detection, or name its folder with --data.root"
_PART = r"(?i){}([ _-]?(images?|imgs?|patches|data|set))?"  # how folders of a part are called elsewhere
_MOST_FOLDERS = 100  # within a folder, that are looked into for a data folder


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
    if root.name == "train" and (root.parent / "train_labels.csv").is_file():
        raise UserError(f"{root}: is the training part of {root.parent}; use --data.root {root.parent}.")
    inner = [root / name for name in folders]
    inner += [folder / name for folder in inner[:_MOST_FOLDERS] for name in _folders(folder)]
    if found := next((folder for folder in inner if _is_kaggle(folder) or is_official(folder)), None):
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
    return [part for part in ("train", "test") if (root / part).is_dir()] or ["test"]


def _is_kaggle(root: Path) -> bool:
    return (root / "train_labels.csv").is_file() or (root / "train").is_dir() or (root / "test").is_dir()


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
