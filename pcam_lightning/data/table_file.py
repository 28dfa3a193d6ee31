"""One CSV with a row for each patch: path, label and, where known, slide, patient, center, split and weight."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from pcam_lightning.data.csv_tables import read_text
from pcam_lightning.data.image_files import PART_NAMES, ImageFolder
from pcam_lightning.utils.errors import UserError, rank_zero_info, shorten

# Names that a column may have, the first that is there counts.
_NAMES = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path", "filepath"),
    "label": ("label", "target", "class", "tumor"),
    "id": ("id", "patch_id", "image_id"),
    "slide": ("slide", "wsi", "slide_id"),
    "patient": ("patient", "patient_id", "case", "case_id"),
    "center": ("center", "centre", "hospital", "site"),
    "split": ("split", "part", "subset"),
    "sample_weight": ("sample_weight",),
}
LEVELS = ("center", "patient", "slide")  # from the highest to the lowest
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "normal": 0, "tumor": 1, "tumour": 1, "negative": 0, "positive": 1}


class TableFile(ImageFolder):
    """A CSV of patches, as `data.root`; paths are absolute, or relative to its folder.

    Without labels all of it is to be predicted. The column sample_weight holds a factor of each patch's training loss.

    Args:
        root: the CSV.
        names: what its columns are called, by what they hold, such as label: tumor_present; usual names are found.
    """

    def __init__(self, root: Path, names: Mapping[str, str] | None = None) -> None:
        super().__init__(root.parent)
        self.file = root
        self.names = dict(names or {})
        self.cache_name = root.stem  # several CSVs of one folder have packed images of their own
        columns = _columns(root, self.names)
        self._knows_slides = "slide" in columns
        self._labeled = "label" in columns
        whole = {"train"} if self._labeled else {"test"}
        parts = set(self._rows["split"]) if "split" in columns else whole
        self._parts = [part for part in ("train", "test") if part in parts]
        self.own_split = f"the column {columns['split']}" if "val" in parts else None

    @cached_property
    def _rows(self) -> pd.DataFrame:
        """All rows of the CSV, read once."""
        return _read(self.file, self.names)

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Return whether a path is that of a CSV."""
        return root.suffix.lower() == ".csv" and root.is_file()

    def parts(self) -> list[str]:
        """Return which of train and test there are.

        Raises:
            UserError: there is neither.
        """
        if not self._parts:
            raise UserError(f"{self.file}: no row of split train, and none of test; those of val alone are not enough.")
        return self._parts

    def knows_slides(self) -> bool:
        """Return whether the CSV names the slides."""
        return self._knows_slides

    def read_train(self, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
        """Read the rows that train and validate; `val` marks the latter where the CSV has a split.

        Raises:
            UserError: the CSV is malformed or has no labels, a file is missing, or `slides` is given.
        """
        self._check_labels()
        if slides is not None:
            raise UserError(f"{self.file}: a column slide names the slides; leave `data.slides` out.")
        table = self._rows
        if "split" in table:
            table = table[table["split"] != "test"]
            if self.own_split is not None:
                table = table.assign(val=(table["split"] == "val").to_numpy())
        self._report_weights(table)
        return self._finish(table, "train")

    def read_test(self, *, answers: bool = False) -> pd.DataFrame:
        """Read the rows of split test, of a CSV without labels and splits all, sorted by id.

        Raises:
            UserError: there is none, a file is missing, or labels are asked for and there are none.
        """
        if answers:
            self._check_labels()
        table = self._rows
        if "split" in table:
            table = table[table["split"] == "test"]
        elif self._labeled:
            table = table.iloc[:0]
        table = self._finish(table, "test")
        return table if answers else table.drop(columns="label", errors="ignore")

    def _report_weights(self, table: pd.DataFrame) -> None:
        if "sample_weight" in table:
            low, high = table["sample_weight"].min(), table["sample_weight"].max()
            if not high:
                raise UserError(f"{self.file}: every sample_weight is 0, so that nothing would be learned.")
            rank_zero_info(f"{self.file}: sample_weight, {low:g} to {high:g}, is a factor of the training loss.")
        elif unused := [str(name) for name in table if str(name).lower() in ("weight", "weights", "sample_weights")]:
            rank_zero_info(
                f"{self.file}: column {unused[0]} is not used; `data.columns.sample_weight` {unused[0]} makes it a "
                "factor of the training loss."
            )

    def _check_labels(self) -> None:
        if not self._labeled:
            header = shorten(",".join(map(str, self._rows)))
            names = ", ".join(_NAMES["label"][1:])
            raise UserError(
                f"{self.file}: no column label (or {names}); it has {header}; `data.columns.label` names another."
            )

    def _finish(self, table: pd.DataFrame, part: str) -> pd.DataFrame:
        """Check that a part has rows and files; return it without `split`, sorted by id."""
        if table.empty:
            hint = "" if "split" in table else ", since it has no column split"
            raise UserError(f"{self.file}: no row of split {part}{hint}; `data.root` may name other data.")
        if len(missing := self.missing_files(table)):
            raise UserError(
                f"{self.file}, row {missing.index[0]}: {self.root / shorten(missing.iloc[0])}: no such file; paths are "
                f"absolute or relative to the folder of the CSV ({len(missing):,} of {len(table):,} files are missing)."
            )
        return table.drop(columns="split", errors="ignore").sort_values("id", ignore_index=True)


def _columns(path: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return what the columns of a CSV are called, by what they hold; those that are given count before usual names.

    Raises:
        UserError: it is no CSV, has no path, two columns for one thing, or not one that is given.
    """
    if unknown := next((what for what in given if what not in _NAMES), None):
        raise UserError(f"`data.columns` {unknown}: should be one of {', '.join(_NAMES)}.")
    header = [str(name) for name in read_text(path, rows=0)]
    if twice := next((name for name in given.values() if list(given.values()).count(name) > 1), None):
        raise UserError(f"`data.columns`: gives column {twice} for two things; copy it under another name.")
    if missing := next((name for name in given.values() if name not in header), None):
        raise UserError(f"{path}: no column {missing}, as `data.columns` says; it has {shorten(','.join(header))}.")
    found: dict[str, str] = {}
    for what, names in _NAMES.items():
        if what in given:
            found[what] = given[what]
            continue
        columns = [name for name in header if name.strip().lower() in names and name not in given.values()]
        if len(columns) > 1 and what in columns:
            columns = [what]
        if len(columns) > 1:
            both = " and ".join(columns)
            raise UserError(f"{path}: columns {both} may both be the {what}; `data.columns.{what}` chooses one.")
        if columns:
            found[what] = columns[0]
    if "path" not in found:
        other = next((one for one in ";\t|" if one in header[0]), None) if len(header) == 1 else None
        advice = "`data.columns.path` names another" if other is None else f"separate columns by commas, not {other!r}"
        others = ", ".join(_NAMES["path"][1:])
        raise UserError(f"{path}: no column path (or {others}); it has {shorten(','.join(header))}; {advice}.")
    return found


def is_table(path: Path) -> bool:
    """Return whether a CSV names patches and their labels, by its first line."""
    try:
        return {"path", "label"} <= set(_columns(path, {}))
    except UserError:
        return False


def _read(path: Path, names: Mapping[str, str]) -> pd.DataFrame:
    """Read a CSV; each row stands under its line number.

    Raises:
        UserError: it is malformed; the message names the row.
    """
    columns = _columns(path, names)
    frame = read_text(path)
    others = [column for column in frame if column not in {*columns, *columns.values()}]
    table: pd.DataFrame = pd.concat(
        [frame[list(columns.values())].set_axis(list(columns), axis="columns"), frame[others]], axis=1
    )
    table = table.apply(lambda one: one.str.strip())
    if table.empty:
        raise UserError(f"{path}: no rows below the header; no patches at all.")
    table["path"] = table["path"].str.replace("\\", "/").str.removeprefix(f"{path.absolute().parent.as_posix()}/")
    table["path"] = table["path"].str.removeprefix("./")
    _refuse(path, table["path"], table["path"] == "", "should be the path of an image")
    _refuse(path, table["path"], table["path"].duplicated(), "is listed twice; remove one of the rows")
    if "label" in table:
        label = table["label"].str.lower().map(_LABELS)
        _refuse(path, table["label"], label.isna(), "should be 0 for normal or 1 for tumor")
        table["label"] = label.astype("int8")
    if "split" in table:
        part = table["split"].str.lower().map(PART_NAMES)
        _refuse(path, table["split"], part.isna(), "should be train, val or test")
        table["split"] = part
    if "sample_weight" in table:
        weight = pd.to_numeric(table["sample_weight"], errors="coerce")
        invalid = ~weight.between(0, np.inf, inclusive="left") & (table.get("split") != "test")
        _refuse(path, table["sample_weight"], invalid, "should be a number of at least 0")
        table["sample_weight"] = weight.astype("float32")
    for level in LEVELS:
        if level in table:
            _refuse(path, table[level], table[level] == "", "is empty; each patch needs one, or the column can go")
    if "id" not in table:
        stems = table["path"].str.rpartition("/")[2].str.rpartition(".")[0]
        table["id"] = table["path"].str.rpartition(".")[0].str.replace("/", "_") if stems.duplicated().any() else stems
    _refuse(
        path,
        table["id"],
        (table["id"] == "") | table["id"].str.contains("/", regex=False) | table["id"].str.contains("\\", regex=False),
        "should be a name without folders",
    )
    _refuse(path, table["id"], table["id"].duplicated(), "is listed twice")
    return table


def _refuse(path: Path, values: "pd.Series[str]", mask: "pd.Series[bool]", reason: str) -> None:
    """Raise an error about the first value of a mask."""
    if mask.any():
        first = int(mask.to_numpy().argmax())
        value = shorten(str(values.iloc[first]))
        raise UserError(f"{path}, row {values.index[first]}: {values.name} {value!r} {reason}.")
