"""The reference: which slides have metastases."""

from pathlib import Path

import pandas as pd

from pcam_lightning.utils.errors import UserError

_NAMES = ("slide", "image", "name", "filename")  # columns, CAMELYON's among them
_LABELS = ("label", "type", "class", "stage")
_TUMOR = {
    **dict.fromkeys(("1", "tumor", "tumour", "macro", "micro", "itc"), 1),
    **dict.fromkeys(("0", "normal", "negative"), 0),
}


def read_reference(path: Path) -> dict[str, int]:
    """Read which slides have metastases; return 1 or 0 by the name of the slide as it stands there.

    Takes slide,label with a header, and CAMELYON16's reference.csv, which has none: name, Tumor or Normal, and more.

    Raises:
        UserError: the file is missing or malformed, or names a slide twice.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, header=None)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no CSV of slides and labels ({error}).") from None
    first = 1
    if table.shape[1] < 2:
        raise UserError(f"{path}: has one column; should have slide,label.")
    if str(table.iloc[0, 1]).strip().lower() not in _TUMOR:
        table.columns = pd.Index(table.iloc[0].str.strip().str.lower())
        table, first = table.iloc[1:], 2
        name = next((one for one in _NAMES if one in table), None)
        label = next((one for one in _LABELS if one in table), None)
        if name is None or label is None:
            raise UserError(f"{path}: has the columns {','.join(table.columns)}; should have slide,label.")
        table = table[[name, label]]
    found: dict[str, int] = {}
    for number, (slide, value) in enumerate(zip(table.iloc[:, 0], table.iloc[:, 1], strict=True), start=first):
        slide, value = slide.strip(), value.strip()
        if value.lower() not in _TUMOR:
            raise UserError(f"{path}, row {number}: label {value!r} is neither 0 (normal) nor 1 (tumor).")
        if slide in found:
            raise UserError(f"{path}, row {number}: {slide} stands there twice.")
        found[slide] = _TUMOR[value.lower()]
    return found


def label_of(labels: dict[str, int], slide: Path, reference: Path | None) -> int:
    """Return the label of a slide, by the name of its file, with or without suffix.

    Raises:
        UserError: the reference does not name it.
    """
    for name in (slide.name, slide.stem):
        if name in labels:
            return labels[name]
    raise UserError(f"{reference}: no row of {slide.stem}.")
