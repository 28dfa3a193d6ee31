"""CSV files with one row a patch -> tables; each message names the file and the row."""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pcam_lightning.utils.errors import UserError, shorten

HOW_TO_GET = "download and unzip Kaggle's histopathologic-cancer-detection, or name its folder with `data.root`"
_SUFFIX = re.compile(r"\.(tiff?|png|jpe?g)$", re.IGNORECASE)
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


def read_text(path: Path, hint: str = "", rows: int | None = None) -> pd.DataFrame:
    """Read a CSV whose cells stay the text that they are: an id may be NA or 007.

    Blank lines are dropped, cells that are missing are empty, and a comma at the end of each row is no cell. The index
    is the line number in the file, as an editor shows it.

    Args:
        path: the file.
        hint: what it should look like, for the message.
        rows: how many to read at most; 0 reads the names of the columns.

    Raises:
        UserError: it cannot be read, or a row has more cells than the first line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more cells in a row than in the header
            # Of objects alone pandas knows which cells are empty, and takes a comma at the end of each row for nothing.
            frame = pd.read_csv(
                path,
                dtype=object,
                keep_default_na=False,
                skip_blank_lines=False,
                encoding="utf-8-sig",
                index_col=False,
                nrows=rows,
            )
    except pd.errors.ParserWarning:
        raise UserError(f"{path}: not a CSV file: a row has more columns than its first line.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a CSV file ({str(error).strip()}).{hint and ' '}{hint}") from None
    frame = frame.fillna("")
    frame.index += 2
    return frame.loc[(frame != "").any(axis=1)]


def read_csv(
    path: Path, columns: tuple[str, ...], hint: str = HOW_TO_GET, *, keep_suffix: bool = False
) -> pd.DataFrame:
    """Read columns of a CSV of ids as text, see `read_text`.

    An id is a file's name without suffix; one with a suffix loses it, unless it is to be kept.

    Args:
        path: the file.
        columns: that it must have; others are left out.
        hint: what to do where there is no such file.
        keep_suffix: whether ids keep the suffix of an image file.

    Raises:
        UserError: it is missing or malformed, or an id is unusable or there twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {hint}.")
    frame = read_text(path, f"It should start with the line {','.join(columns)}.")
    if missing := [name for name in columns if name not in frame.columns]:
        header = shorten(",".join(map(str, frame.columns)))
        raise UserError(
            f"{path}: no column {' nor '.join(missing)}; its first line is {header!r}, and should have "
            f"{','.join(columns)}."
        )
    frame = pd.DataFrame({name: frame[name].str.strip() for name in columns})
    frame = frame.loc[(frame != "").any(axis=1)]
    if frame.empty:
        raise UserError(f"{path}: no rows below the header; no patches at all.")
    if not keep_suffix:
        frame["id"] = without_suffix(frame["id"])
    _check_ids(frame["id"], path)
    return frame


def read_labels(path: Path, hint: str = HOW_TO_GET) -> pd.DataFrame:
    """Read a CSV of labels; return columns `id` and `label` (int8), each row under its line number.

    Args:
        path: the file, with columns id and label.
        hint: what to do where there is no such file.

    Raises:
        UserError: it is missing or malformed; the message names the row.
    """
    frame = read_csv(path, ("id", "label"), hint)
    label = frame["label"].map(_LABELS)
    invalid = frame.loc[label.isna(), "label"]
    if len(invalid):
        raise UserError(
            f'{path}, row {invalid.index[0]}: label "{shorten(invalid.iloc[0])}" is neither 0 nor 1. '
            "Labels come as id,label with 0 for normal and 1 for tumor."
        )
    return frame.assign(label=label.astype("int8"))


def without_suffix(ids: "pd.Series[str]") -> "pd.Series[str]":
    """Return ids without the suffix of an image file, which some CSVs give them."""
    if not any("." in patch_id for patch_id in ids.tolist()):  # a tenth of the time that the expression takes
        return ids
    return ids.str.replace(_SUFFIX, "", regex=True)


def looks_like_sha1(ids: "pd.Series[str]") -> "pd.Series[bool]":
    """Return which ids have the form of a SHA-1, 40 lower-case hexadecimal digits."""
    return ids.str.fullmatch(re.compile("[0-9a-f]{40}"))


def check_none_missing(ids: Iterable[str], csv: Path, problem: str) -> None:
    """Raise an error where some ids of a CSV lack something.

    Args:
        ids: those that lack it.
        csv: the file.
        problem: such as "have no label there".

    Raises:
        UserError: there is one.
    """
    if missing := list(ids):
        named = ", ".join(map(shorten, missing[:3]))
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(
            f"{csv}: {len(missing):,} of the ids {problem}: {named}{more}. Unzip the download again, or drop them."
        )


def _check_ids(ids: "pd.Series[str]", path: Path) -> None:
    invalid = ids[(ids == "") | ids.str.contains(r"[/\\\x00]") | ids.isin([".", ".."])]
    if len(invalid):
        raise UserError(
            f"{path}, row {invalid.index[0]}: id {shorten(invalid.iloc[0])!r} is empty or has a path separator in it. "
            "An id is the file's name without folder and suffix."
        )
    repeated = ids[ids.duplicated()]
    if len(repeated):
        first, second = ids.index[ids == repeated.iloc[0]][:2]
        raise UserError(
            f"{path}, row {second}: id {shorten(repeated.iloc[0])} is in row {first} already. Remove one of the two."
        )
