"""Reference: labels and tumor outlines of slides."""

from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd
import shapely

from pcam_lightning.slides.annotations import find_annotation, list_unmatched, tumor_outlines
from pcam_lightning.slides.outlines import Geometry
from pcam_lightning.slides.saved_heat_map import SavedHeatMap
from pcam_lightning.utils.errors import UserError, rank_zero_warn

_NAMES = ("slide", "image", "name", "filename")  # names of the slide column, including CAMELYON's
_LABELS = ("label", "type", "class", "stage")
_TUMOR = {
    **dict.fromkeys(("1", "tumor", "tumour", "macro", "micro", "itc"), 1),
    **dict.fromkeys(("0", "normal", "negative"), 0),
}


class Reference:
    """Labels and tumor outlines of slides.

    Args:
        labels: CSV for `read_reference`; by default, slides with tumor outlines are those with metastases.
        annotations: folder of outlines, named after the slides.
        tumor_class: additional tumor classes, see `tumor_outlines`.

    Attributes:
        labels: 1 or 0 by the slide name in the CSV; None without a CSV.

    Raises:
        UserError: both are None, or a file is missing or malformed.
    """

    def __init__(
        self, labels: Path | str | None, annotations: Path | str | None, tumor_class: Collection[str] = ()
    ) -> None:
        labels, annotations = (None if path is None else Path(path).expanduser() for path in (labels, annotations))
        if labels is None and annotations is None:
            raise UserError("`reference`, `annotations`: one of them is required, because the slides have no labels.")
        if annotations is not None and not annotations.is_dir():
            raise UserError(f"`annotations` {annotations}: no such folder.")
        self.path, self.annotations = labels, annotations
        self.tumor_class = [tumor_class] if isinstance(tumor_class, str) else tumor_class
        self.labels = None if labels is None else read_reference(labels)

    def check(self, slides: Iterable[Path]) -> None:
        """Warn about annotation files that match none of the slides.

        Raises:
            UserError: no file matches a slide, and there is no CSV of labels.
        """
        if self.annotations is not None and not list_unmatched(self.annotations, slides) and self.labels is None:
            raise UserError(
                f"`annotations` {self.annotations}: no file matches a slide. Name each file after its slide, such as "
                "SLIDE.geojson or SLIDE.xml."
            )

    def label(self, slide: Path) -> int | None:
        """Return 1 for a slide with metastases, 0 for a slide without, or None if there is no CSV.

        Raises:
            UserError: the CSV has no row for the slide.
        """
        return None if self.labels is None else label_of(self.labels, slide, self.path)

    def tumor(self, one: SavedHeatMap) -> Geometry | None:
        """Return the tumor outlines of a slide, empty without metastases; None for a slide without a reference.

        Raises:
            UserError: the slide has metastases but no outlines, or its annotations cannot be used.
        """
        label = self.label(one.slide)
        if self.annotations is None:
            return shapely.Polygon() if label == 0 else None
        file = find_annotation(self.annotations, one.slide)
        if file is None:
            if label:
                raise UserError(f"{self.annotations}: no annotation file for {one.slide.stem}, which has metastases.")
            return None if label is None else shapely.Polygon()
        tumor = tumor_outlines(file, one.heat_map.grid, one.origin, self.tumor_class, label)
        if label and not tumor.area:
            raise UserError(f"{file}: no tumor outline, but {one.slide.stem} has metastases.")
        if label == 0 and tumor.area:
            rank_zero_warn(f"{self.path}: {one.slide.stem} has label 0, but {file} contains tumor outlines.")
        return tumor


def read_reference(path: Path) -> dict[str, int]:
    """Read the labels of slides: 1 (metastases) or 0 by slide name.

    Accepts a CSV with the header slide,label, and CAMELYON16's reference.csv without a header: name, Tumor or Normal,
    and further columns.

    Raises:
        UserError: the file is missing or malformed, or has two rows for one slide.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, header=None)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a CSV of slides and labels ({error}).") from None
    first = 1
    if table.shape[1] < 2:
        raise UserError(f"{path}: has one column; expected slide,label.")
    if str(table.iloc[0, 1]).strip().lower() not in _TUMOR:
        table.columns = pd.Index(table.iloc[0].str.strip().str.lower())
        table, first = table.iloc[1:], 2
        name = next((one for one in _NAMES if one in table), None)
        label = next((one for one in _LABELS if one in table), None)
        if name is None or label is None:
            raise UserError(f"{path}: has the columns {','.join(table.columns)}; expected slide,label.")
        table = table[[name, label]]
    found: dict[str, int] = {}
    for number, (slide, value) in enumerate(zip(table.iloc[:, 0], table.iloc[:, 1], strict=True), start=first):
        slide, value = slide.strip(), value.strip()
        if value.lower() not in _TUMOR:
            raise UserError(f"{path}, row {number}: label {value!r} is neither 0 (normal) nor 1 (tumor).")
        if slide in found:
            raise UserError(f"{path}, row {number}: {slide} has another row above.")
        found[slide] = _TUMOR[value.lower()]
    return found


def label_of(labels: dict[str, int], slide: Path, reference: Path | None) -> int:
    """Return the label of a slide by its file name, with or without suffix.

    Raises:
        UserError: the reference has no row for the slide.
    """
    for name in (slide.name, slide.stem):
        if name in labels:
            return labels[name]
    raise UserError(f"{reference}: no row for {slide.stem}.")
