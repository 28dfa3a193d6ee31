"""What lies on disk -> one table, a row a patch; every complaint about a data folder is made here."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pcam_lightning.messages import UserError, warn

SUFFIXES = (".tif", ".tiff", ".png")  # the earlier one wins where an id has several
SLIDES_FILE = "patch_id_wsi_full.csv"
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
_HOW_TO_GET = "download and unzip Kaggle's histopathologic-cancer-detection, or name its folder with --data.root"


def read_train(root: Path) -> pd.DataFrame:
    """Read the labelled patches of a folder in Kaggle's layout.

    Args:
        root: folder with `train_labels.csv` (id,label) and the images anywhere below `train/`. Where
            `patch_id_wsi_full.csv` (id,wsi) lies there too, its slides are merged on id.

    Returns:
        One row a patch, sorted by id, with columns `id`, `label` (int8, 0 or 1), `path` (below `root`) and, where a
        slide file is there, `slide` (missing for ids it does not know).

    Raises:
        UserError: something is missing, malformed or of one class only; the message names the file and the row.
    """
    files = _find_images(_existing_folder(root), "train")
    labels = _read_labels(root / "train_labels.csv")
    table = _join_files(labels, files, root / "train_labels.csv", root / "train")
    unlabelled = len(files) - len(table)
    if unlabelled:
        warn(f"{root / 'train'}: {unlabelled:,} image files have no label in train_labels.csv; not used.")
    present = sorted(set(table["label"]))
    if len(present) < 2:
        raise UserError(
            f"{root / 'train_labels.csv'}: every label is {present[0]}; training needs patches of both classes, "
            "0 for normal and 1 for tumour."
        )
    table = table.sort_values("id", ignore_index=True)
    if (root / SLIDES_FILE).is_file():
        table["slide"] = table["id"].map(_read_slides(root / SLIDES_FILE))
        if unknown := int(table["slide"].isna().sum()):
            warn(f"{root / SLIDES_FILE}: {unknown:,} of {len(table):,} training ids have no slide there.")
    return table


def read_test(root: Path, *, answers: bool = False) -> pd.DataFrame:
    """Read the patches to predict.

    Args:
        root: folder with the images anywhere below `test/`, or, where it has neither `test/` nor `train/`, anywhere
            below itself. `sample_submission.csv` gives ids and order where it is there; else the ids are sorted.
        answers: read labels from `answers.csv` too.

    Returns:
        One row a patch in the order of the submission, with columns `id`, `path` (below `root`) and, with
        `answers`, `label` (int8).

    Raises:
        UserError: something is missing or malformed; the message names the file and the row.
    """
    _existing_folder(root)
    part = "test" if (root / "test").is_dir() or (root / "train").is_dir() else "."
    files = _find_images(root, part)
    sample = root / "sample_submission.csv"
    if sample.is_file():
        table = _join_files(_read_csv(sample, ("id",))[["id"]], files, sample, root / part)
        if len(files) > len(table):
            warn(f"{root / part}: {len(files) - len(table):,} image files are not in {sample}; not predicted.")
    else:
        table = pd.DataFrame({"id": sorted(files)})
        table["path"] = table["id"].map(files)
    if answers:
        path = root / "answers.csv"
        if not path.is_file():
            raise UserError(f"{path}: no such file. Scoring test/ needs its labels there, as id,label.")
        truth = _read_labels(path).set_index("id")["label"]
        _complain_of_missing(table.loc[~table["id"].isin(truth.index), "id"], path, "have no label there")
        table["label"] = table["id"].map(truth).astype("int8")
        if table["label"].nunique() < 2:
            raise UserError(f"{path}: all labels are the same; AUROC needs patches of both classes.")
    return table


def _existing_folder(root: Path) -> Path:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; {_HOW_TO_GET}.")
    return root


def _find_images(root: Path, part: str) -> dict[str, str]:
    """Map id to path below `root` for all images below `root/part`; folders are listed, no file is opened."""
    if not (root / part).is_dir():
        raise UserError(f"{root / part}: no such folder; {_HOW_TO_GET}.")
    found: dict[str, str] = {}
    folders = ["" if part == "." else part + "/"]  # below root, each with a slash at its end
    while folders:
        folder = folders.pop()
        for entry in os.scandir(root / folder):
            if entry.name.startswith("."):  # what macOS leaves beside files, and our own cache folder
                continue
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() in SUFFIXES:
                path = folder + entry.name
                other = found.setdefault(stem, path)
                if other != path:
                    found[stem] = _preferred(root, other, path)
            elif entry.is_dir():
                folders.append(folder + entry.name + "/")
    if not found:
        raise UserError(f"{root / part}: no .tif or .png file in it or below; {_HOW_TO_GET}.")
    return found


def _preferred(root: Path, first: str, second: str) -> str:
    def rank(path: str) -> int:
        return SUFFIXES.index(os.path.splitext(path)[1].lower())

    if rank(first) == rank(second):
        raise UserError(f"{root / first} and {root / second} have the same id; remove or rename one of them.")
    return min(first, second, key=rank)


def _read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV as text, blank lines dropped; the index is the line number in the file, as an editor shows it."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; {_HOW_TO_GET}.")
    try:
        frame = pd.read_csv(
            path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig", index_col=False
        )
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"{path}: not a CSV file ({error}). It should start with the line {','.join(columns)}."
        ) from None
    if missing := [name for name in columns if name not in frame.columns]:
        raise UserError(
            f"{path}: no column {' nor '.join(missing)}; its first line is {','.join(map(str, frame.columns))!r}, "
            f"and should have {','.join(columns)}."
        )
    frame = pd.DataFrame({name: frame[name].fillna("").str.strip() for name in columns})
    frame.index += 2
    frame = frame.loc[(frame != "").any(axis=1)]
    if frame.empty:
        raise UserError(f"{path}: no rows below the header; no patches at all.")
    _complain_of_ids(frame["id"], path)
    return frame


def _complain_of_ids(ids: "pd.Series[str]", path: Path) -> None:
    odd = ids[(ids == "") | ids.str.contains(r"[/\\\x00]") | ids.isin([".", ".."])]
    if len(odd):
        raise UserError(
            f"{path}, row {odd.index[0]}: id {odd.iloc[0]!r} is empty or has a path separator in it. "
            "An id is the file's name without folder and suffix."
        )
    twice = ids[ids.duplicated()]
    if len(twice):
        first, second = ids.index[ids == twice.iloc[0]][:2]
        raise UserError(
            f"{path}, row {second}: id {twice.iloc[0]} stands in row {first} already. Remove one of the two rows."
        )


def _read_labels(path: Path) -> pd.DataFrame:
    frame = _read_csv(path, ("id", "label"))
    label = frame["label"].map(_LABELS)
    odd = frame.loc[label.isna(), "label"]
    if len(odd):
        raise UserError(
            f'{path}, row {odd.index[0]}: label "{odd.iloc[0]}" is neither 0 nor 1. '
            "Labels come as id,label with 0 for normal and 1 for tumour."
        )
    return frame.assign(label=label.astype("int8"))


def _read_slides(path: Path) -> "pd.Series[str]":
    frame = _read_csv(path, ("id", "wsi"))
    return frame.set_index("id")["wsi"].replace("", pd.NA)


def _join_files(rows: pd.DataFrame, files: dict[str, str], csv: Path, folder: Path) -> pd.DataFrame:
    table = rows.assign(path=rows["id"].map(files))
    _complain_of_missing(table.loc[table["path"].isna(), "id"], csv, f"have no .tif or .png file in {folder}")
    return table.reset_index(drop=True)


def _complain_of_missing(ids: Iterable[str], csv: Path, what: str) -> None:
    if missing := list(ids):
        named = ", ".join(missing[:3])
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(
            f"{csv}: {len(missing):,} of the ids {what}: {named}{more}. Unzip the download again, or drop them."
        )


def looks_like_sha1(ids: "pd.Series[str]") -> "pd.Series[bool]":
    """Tell which ids have the form of a SHA-1, 40 lower-case hexadecimal digits."""
    return ids.str.fullmatch(re.compile("[0-9a-f]{40}"))
