"""Annotations of slides: which outlines are of tumor or of regions of interest, and what they reach."""

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import shapely

from pcam_lightning.slides.outlines import UNCLASSIFIED, Geometry, Outline, read_outlines
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn, shorten

SUFFIXES = (".xml", ".geojson", ".json")
_TUMOR = {"_0", "_1", "tumor", "tumour", "metastasis", "metastases"}  # groups and classes, in lower case
_NORMAL = {"_2", "exclusion", "normal", "hole"}  # cut out of tumor
_EXCLUDED = {"_2", "exclusion", "hole", "ignore*"}  # cut out of regions of interest
_MOST = 5  # files that a message lists


def find_annotation(folder: Path, slide: Path) -> Path | None:
    """Return the annotations of a slide in a folder: its name, with or without suffix, with .xml, .geojson or .json.

    Raises:
        UserError: there are two.
    """
    names = [f"{name}{suffix}" for name in dict.fromkeys((slide.stem, slide.name)) for suffix in SUFFIXES]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{found[0]}, {found[1]}: both are annotations of {slide.name}; remove one of them.")
    return found[0] if found else None


def list_unmatched(folder: Path, slides: Iterable[Path]) -> bool:
    """Warn of the annotations in a folder that are of none of the slides; return whether others are.

    Raises:
        UserError: a slide has two.
    """
    matched = {find_annotation(folder, slide) for slide in slides} - {None}
    rest = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path not in matched]
    if rest:
        more = f" and {len(rest) - _MOST:,} more" if len(rest) > _MOST else ""
        rank_zero_warn(f"{folder}: annotations of none of the slides: {', '.join(rest[:_MOST])}{more}.")
    return bool(matched)


def tumor_outlines(
    path: Path,
    grid: PatchGrid,
    origin: tuple[int, int] = (0, 0),
    tumor_class: Collection[str] = (),
    label: int | None = None,
) -> Geometry:
    """Read the outlines of tumor of a slide, and report the area of each class.

    Outlines called tumor, metastasis or metastases are tumor, or `_0` or `_1` as in CAMELYON16. Those called `_2`,
    exclusion, normal or hole are cut out. Others are neither.

    Args:
        path: as `read_outlines` takes it.
        grid: of the slide.
        origin: as `read_outlines` takes it.
        tumor_class: names of other classes of tumor; `none` is outlines without class.
        label: 1 for a slide with metastases, 0 for one without; None where it is not known.

    Returns:
        Polygons in pixels of level 0; empty where there is no tumor.

    Raises:
        UserError: the file is damaged, an outline of tumor lies outside the slide, or all outlines are of classes that
            may be tumor or not, while the label is not 0.
    """
    found = read_outlines(path, origin)
    names = _TUMOR | {name.strip().lower() for name in tumor_class}
    kinds = {
        one.name: "tumor" if one.name in names else "cut out" if one.name in _NORMAL else "ignored" for one in found
    }
    _check_inside(path, [one for one in found if one.name in names], grid)
    tumor: Geometry = _union(found, names) - _union(found, _NORMAL - names)
    unclear = {one.name for one in found if one.name in names or (kinds[one.name] == "ignored" and one.polygon.area)}
    if unclear and not tumor.area and label != 0:
        raise UserError(
            f"{path}: no polygon is tumor; its classes: {', '.join(map(_shown, sorted(unclear)))}. `tumor_class` names "
            "that of tumor, or none for outlines without class; a slide without tumor has a 0 in `reference`."
        )
    if found:
        _report_areas(path, found, kinds, tumor, grid)
    return tumor


def _report_areas(path: Path, found: list[Outline], kinds: dict[str, str], tumor: Geometry, grid: PatchGrid) -> None:
    """Report the area of tumor, and of each class by what it is taken for."""
    scale = grid.slide_mpp**2 / 1e6
    mm2 = {name: _union(found, {name}).area * scale for name in sorted(kinds)}
    texts = (
        f"{kind}: " + ", ".join(f"{_shown(name)} {area:.4g}" for name, area in mm2.items() if kinds[name] == kind)
        for kind in ("tumor", "cut out", "ignored")
        if kind in kinds.values()
    )
    rank_zero_info(f"{path}: {tumor.area * scale:.4g} mm2 of tumor ({'; '.join(texts)}).")


def regions_of_interest(path: Path, slide: Path, grid: PatchGrid, origin: tuple[int, int]) -> Geometry:
    """Read the regions of interest of a slide: outlines of any class, but those called exclusion, hole or Ignore*.

    Args:
        path: as `read_outlines` takes it, or a folder of such files by the names of the slides.
        slide: its file.
        grid: of the slide.
        origin: as `read_outlines` takes it.

    Returns:
        Polygons in pixels of level 0.

    Raises:
        UserError: the file is missing or damaged, or an outline lies outside the slide.
    """
    file = find_annotation(path, slide) if path.is_dir() else path
    if file is None:
        raise UserError(f"`regions` {path}: no regions of {slide.name}; should be {slide.stem}.geojson or .xml.")
    found = read_outlines(file, origin)
    counted = [one for one in found if one.name not in _EXCLUDED]
    _check_inside(file, counted, grid)
    regions: Geometry = _union(counted, {one.name for one in counted}) - _union(found, _EXCLUDED)
    if not regions.area:
        raise UserError(f"`regions` {file}: no polygon of a region.")
    return regions


def _check_inside(path: Path, outlines: list[Outline], grid: PatchGrid) -> None:
    """Check that no outline lies outside the slide.

    Raises:
        UserError: one does.
    """
    polygons = [one.polygon for one in outlines if one.polygon.area]
    outside = [one for one in polygons if not one.intersects(shapely.box(0, 0, grid.width, grid.height))]
    if outside:
        x, y = (round(value) for value in outside[0].bounds[:2])
        raise UserError(
            f"{path}: {len(outside):,} of {len(polygons):,} outlines lie outside the slide of {grid.width:,} x "
            f"{grid.height:,} pixels, one at x {x:,}, y {y:,}. Is it of another slide, or in other units than pixels?"
        )


def _union(outlines: Iterable[Outline], names: Collection[str]) -> Geometry:
    union: Geometry = shapely.union_all([one.polygon for one in outlines if one.name in names])
    return union


def _shown(name: str) -> str:
    return "no class" if name == UNCLASSIFIED else shorten(name)


def reaches(outlines: Geometry, x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    """Mark the squares that outlines reach, from the center of a corner pixel to that of the opposite one.

    Args:
        outlines: in pixels of level 0.
        x: of the squares' upper left corners, in pixels of level 0, shape (N,).
        y: of the corners, shape (N,).
        side: of the squares.

    Returns:
        bool, (N,).
    """
    left, top, right, bottom = outlines.bounds  # NaN where there are none
    mask = (x + side > left) & (x < right) & (y + side > top) & (y < bottom)
    x, y = x[mask] + 0.5, y[mask] + 0.5
    shapely.prepare(outlines)
    mask[mask] = shapely.intersects(outlines, shapely.box(x, y, x + side - 1, y + side - 1))
    return mask
