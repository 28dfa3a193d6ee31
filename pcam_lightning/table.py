"""What lies on disk -> one table, a row a patch; every complaint about a data folder is made here."""

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pcam_lightning.layout import HOW_TO_GET, check_layout
from pcam_lightning.messages import UserError, shorten, warn
from pcam_lightning.official import is_official, read_part

SUFFIXES = (".tif", ".tiff", ".png")  # the earlier one wins where an id has several
_SUFFIX = re.compile(r"\.(tiff?|png)$", re.IGNORECASE)
SLIDES_FILES = ("patch_id_wsi_full.csv", "patch_id_wsi.csv")  # the community's, and what `slides` writes
UNKNOWN_SLIDE = "unknown"  # of patches that a map of slides does not name, taken for one slide
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


def read_train(root: Path, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
    """Read the labelled patches of a folder in Kaggle's layout.

    Args:
        root: folder with `train_labels.csv` (id,label) and the images anywhere below `train/`.
        slides: CSV with columns id and wsi, merged on id; where it is None, what `find_slides` finds.
        unknown_slides: what to do with ids that `slides` does not name: "error", or "group", which takes them for
            patches of one more slide.

    Returns:
        One row a patch, sorted by id, with columns `id`, `label` (int8, 0 or 1), `path` (below `root`) and, where
        slides are known, `slide` (missing for ids that a file found in `root` does not name).

    Raises:
        UserError: something is missing, malformed or of one class only; the message names the file and the row.
    """
    check_layout(root, "train")
    if is_official(root):
        parts = {part: read_part(root, part) for part in ("train", "valid")}
        table = pd.concat([part.assign(val=name == "valid") for name, part in parts.items()], ignore_index=True)
        if "slide" in table and table["slide"].isna().any():
            warn(f"{root}: one of its meta.csv files is missing, so that no slides are used.")
            table = table.drop(columns="slide")
        return table
    files = _find_images(root, "train")
    labels = read_labels(root / "train_labels.csv")
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
    named = slides or find_slides(root)
    if named is not None:
        table["slide"] = table["id"].map(read_slides(named))
        unknown = table["id"][table["slide"].isna()]
        if len(unknown):
            told = (
                f"{named}: {len(unknown):,} of {len(table):,} training ids have no slide there, {unknown.iloc[0]} first"
            )
            if slides and unknown_slides == "error":
                raise UserError(
                    f"{told}; complete the file, or let --data.unknown_slides group take them for one slide."
                )
            warn(f"{told}.")
            if slides:
                table["slide"] = table["slide"].fillna(UNKNOWN_SLIDE)
    return table


def find_slides(root: Path) -> Path | None:
    """Return the map of ids to slides that lies in a data folder; None where there is none."""
    return next((root / name for name in SLIDES_FILES if (root / name).is_file()), None)


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
    check_layout(root, "test")
    if is_official(root):
        return read_part(root, "test", labels=answers)
    bare = not any((root / name).exists() for name in ("test", "train", "train_labels.csv"))
    part = "." if bare else "test"
    files = _find_images(root, part)
    sample = root / "sample_submission.csv"
    if sample.is_file():
        # Kaggle wants its own ids back, with a suffix or without.
        table = _join_files(_read_csv(sample, ("id",), keep_suffix=True)[["id"]], files, sample, root / part)
        if len(files) > len(table):
            warn(f"{root / part}: {len(files) - len(table):,} image files are not in {sample}; not predicted.")
    else:
        table = pd.DataFrame({"id": sorted(files)})
        table["path"] = table["id"].map(files)
    if answers:
        path = root / "answers.csv"
        if not path.is_file():
            raise UserError(f"{path}: no such file. Scoring test/ needs its labels there, as id,label.")
        truth = read_labels(path).set_index("id")["label"]
        label = without_suffix(table["id"]).map(truth)
        _complain_of_missing(table.loc[label.isna(), "id"], path, "have no label there")
        table["label"] = label.astype("int8")
        if table["label"].nunique() < 2:
            raise UserError(f"{path}: all labels are the same; AUROC needs patches of both classes.")
    return table


def _find_images(root: Path, part: str) -> dict[str, str]:
    """Map id to path below `root` for all images below `root/part`; folders are listed, no file is opened."""
    if not (root / part).is_dir():
        raise UserError(f"{root / part}: no such folder; {HOW_TO_GET}.")
    found: dict[str, str] = {}
    jpegs = 0
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
            else:
                jpegs += suffix.lower() in (".jpg", ".jpeg")
    if not found:
        way_on = f"{jpegs:,} .jpg: convert to PNG, 96 x 96 pixels" if jpegs else HOW_TO_GET
        raise UserError(f"{root / part}: no .tif or .png file in it or below; {way_on}.")
    return found


def _preferred(root: Path, first: str, second: str) -> str:
    def rank(path: str) -> int:
        return SUFFIXES.index(os.path.splitext(path)[1].lower())

    if rank(first) == rank(second):
        raise UserError(f"{root / first} and {root / second} have the same id; remove or rename one of them.")
    return min(first, second, key=rank)


def _read_csv(
    path: Path, columns: tuple[str, ...], way_on: str = HOW_TO_GET, *, keep_suffix: bool = False
) -> pd.DataFrame:
    """Read a CSV as text, blank lines dropped; the index is the line number in the file, as an editor shows it.

    An id is a file's name without suffix; one with a suffix loses it, unless it is to be kept.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {way_on}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more columns in a row than in the header
            frame = pd.read_csv(
                path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig", index_col=False
            )
    except pd.errors.ParserWarning:
        raise UserError(f"{path}: not a CSV file: a row has more columns than its first line.") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"{path}: not a CSV file ({error}). It should start with the line {','.join(columns)}."
        ) from None
    if missing := [name for name in columns if name not in frame.columns]:
        header = shorten(",".join(map(str, frame.columns)))
        raise UserError(
            f"{path}: no column {' nor '.join(missing)}; its first line is {header!r}, and should have "
            f"{','.join(columns)}."
        )
    frame = pd.DataFrame({name: frame[name].fillna("").str.strip() for name in columns})
    frame.index += 2
    frame = frame.loc[(frame != "").any(axis=1)]
    if frame.empty:
        raise UserError(f"{path}: no rows below the header; no patches at all.")
    if not keep_suffix:
        frame["id"] = without_suffix(frame["id"])
    _complain_of_ids(frame["id"], path)
    return frame


def without_suffix(ids: "pd.Series[str]") -> "pd.Series[str]":
    """Return ids without the suffix of an image file, which some CSVs give them."""
    if not any("." in one for one in ids.tolist()):  # a tenth of the time that the expression takes
        return ids
    return ids.str.replace(_SUFFIX, "", regex=True)


def _complain_of_ids(ids: "pd.Series[str]", path: Path) -> None:
    odd = ids[(ids == "") | ids.str.contains(r"[/\\\x00]") | ids.isin([".", ".."])]
    if len(odd):
        raise UserError(
            f"{path}, row {odd.index[0]}: id {shorten(odd.iloc[0])!r} is empty or has a path separator in it. "
            "An id is the file's name without folder and suffix."
        )
    twice = ids[ids.duplicated()]
    if len(twice):
        first, second = ids.index[ids == twice.iloc[0]][:2]
        raise UserError(
            f"{path}, row {second}: id {shorten(twice.iloc[0])} stands in row {first} already. Remove one of the two."
        )


def read_labels(path: Path, way_on: str = HOW_TO_GET) -> pd.DataFrame:
    """Read a CSV of labels; return columns `id` and `label` (int8), each row under its line number.

    Args:
        path: the file, with columns id and label.
        way_on: what the complaint says to do where there is no such file.

    Raises:
        UserError: it is missing or malformed; the message names the row.
    """
    frame = _read_csv(path, ("id", "label"), way_on)
    label = frame["label"].map(_LABELS)
    odd = frame.loc[label.isna(), "label"]
    if len(odd):
        raise UserError(
            f'{path}, row {odd.index[0]}: label "{shorten(odd.iloc[0])}" is neither 0 nor 1. '
            "Labels come as id,label with 0 for normal and 1 for tumour."
        )
    return frame.assign(label=label.astype("int8"))


def read_slides(path: Path) -> "pd.Series[str]":
    """Read a CSV with id,wsi; return the slide by id, missing where the CSV names none.

    Raises:
        UserError: it is missing or malformed; the message names the row.
    """
    frame = _read_csv(path, ("id", "wsi"), "python -m pcam_lightning slides makes one from PCam's own files")
    return frame.set_index("id")["wsi"].replace("", pd.NA)


def _join_files(rows: pd.DataFrame, files: dict[str, str], csv: Path, folder: Path) -> pd.DataFrame:
    path = rows["id"].map(files)
    if path.isna().any():
        path = path.where(path.notna(), without_suffix(rows["id"]).map(files))
    table = rows.assign(path=path)
    _complain_of_missing(table.loc[table["path"].isna(), "id"], csv, f"have no .tif or .png file in {folder}")
    return table.reset_index(drop=True)


def _complain_of_missing(ids: Iterable[str], csv: Path, what: str) -> None:
    if missing := list(ids):
        named = ", ".join(map(shorten, missing[:3]))
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(
            f"{csv}: {len(missing):,} of the ids {what}: {named}{more}. Unzip the download again, or drop them."
        )


def looks_like_sha1(ids: "pd.Series[str]") -> "pd.Series[bool]":
    """Tell which ids have the form of a SHA-1, 40 lower-case hexadecimal digits."""
    return ids.str.fullmatch(re.compile("[0-9a-f]{40}"))
