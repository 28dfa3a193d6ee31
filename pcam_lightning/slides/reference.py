"""The reference: which slides have metastases, and where."""

from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd
import shapely

from pcam_lightning.slides.annotations import find_annotation, list_unmatched, tumor_outlines
from pcam_lightning.slides.outlines import Geometry
from pcam_lightning.slides.saved_heat_map import SavedHeatMap
from pcam_lightning.utils.errors import UserError, rank_zero_warn

_NAMES = ("slide", "image", "name", "filename")  # columns, CAMELYON's among them
_LABELS = ("label", "type", "class", "stage")
_TUMOR = {
    **dict.fromkeys(("1", "tumor", "tumour", "macro", "micro", "itc"), 1),
    **dict.fromkeys(("0", "normal", "negative"), 0),
}


class Reference:
    """What is known of slides: which have metastases, and their outlines.

    Args:
        labels: CSV of `read_reference`; by default slides with outlines of tumor are those with metastases.
        annotations: folder with the outlines of slides.
        tumor_class: as `tumor_outlines` takes it.

    Attributes:
        labels: 1 or 0 by the name of the slide as it stands in the CSV; None without one.

    Raises:
        UserError: neither is given, or one is missing or malformed.
    """

    def __init__(
        self, labels: Path | str | None, annotations: Path | str | None, tumor_class: Collection[str] = ()
    ) -> None:
        labels, annotations = (None if path is None else Path(path).expanduser() for path in (labels, annotations))
        if labels is None and annotations is None:
            raise UserError("`reference`, `annotations`: one of them is required, to know where there is tumor.")
        if annotations is not None and not annotations.is_dir():
            raise UserError(f"`annotations` {annotations}: no such folder.")
        self.path, self.annotations = labels, annotations
        self.tumor_class = [tumor_class] if isinstance(tumor_class, str) else tumor_class
        self.labels = None if labels is None else read_reference(labels)

    def check(self, slides: Iterable[Path]) -> None:
        """Warn of annotations that are of none of the slides.

        Raises:
            UserError: none is of any of them, and there is no other reference.
        """
        if self.annotations is not None and not list_unmatched(self.annotations, slides) and self.labels is None:
            raise UserError(
                f"`annotations` {self.annotations}: of none of the slides. A file should have the name of its slide, "
                "such as SLIDE.geojson or SLIDE.xml."
            )

    def label(self, slide: Path) -> int | None:
        """Return 1 for a slide with metastases, 0 for one without, None where the CSV is not given.

        Raises:
            UserError: the CSV does not name it.
        """
        return None if self.labels is None else label_of(self.labels, slide, self.path)

    def tumor(self, one: SavedHeatMap) -> Geometry | None:
        """Return a slide's outlines of tumor, empty of one without metastases; None where nothing is known of it.

        Raises:
            UserError: it has metastases and no outlines, or `tumor_outlines` raises it.
        """
        label = self.label(one.slide)
        if self.annotations is None:
            return shapely.Polygon() if label == 0 else None
        file = find_annotation(self.annotations, one.slide)
        if file is None:
            if label:
                raise UserError(f"{self.annotations}: no annotations of {one.slide.stem}, which has metastases.")
            return None if label is None else shapely.Polygon()
        tumor = tumor_outlines(file, one.heat_map.grid, one.origin, self.tumor_class, label)
        if label and not tumor.area:
            raise UserError(f"{file}: no outline of tumor of {one.slide.stem}, which has metastases.")
        if label == 0 and tumor.area:
            rank_zero_warn(f"{self.path}: says 0 of {one.slide.stem}, which has outlines of tumor in {file}.")
        return tumor


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
