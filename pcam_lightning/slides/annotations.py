"""Slide annotations: tumor outlines, regions of interest, and the squares that they intersect."""

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import shapely

from pcam_lightning.slides.outlines import UNCLASSIFIED, Geometry, Outline, read_outlines
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn, shorten

SUFFIXES = (".xml", ".geojson", ".json")
_TUMOR = {"_0", "_1", "tumor", "tumour", "metastasis", "metastases"}  # lower-case names of groups and classes
_NORMAL = {"_2", "exclusion", "normal", "hole"}  # subtracted from tumor
_EXCLUDED = {"_2", "exclusion", "hole", "ignore*"}  # subtracted from regions of interest
_MOST = 5  # number of files that a message lists


def find_annotation(folder: Path, slide: Path) -> Path | None:
    """Return the annotation file of a slide: the slide's name or stem with the suffix .xml, .geojson or .json.

    Raises:
        UserError: the slide has two annotation files.
    """
    names = [f"{name}{suffix}" for name in dict.fromkeys((slide.stem, slide.name)) for suffix in SUFFIXES]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{found[0]}, {found[1]}: {slide.name} has two annotation files; remove one of them.")
    return found[0] if found else None


def list_unmatched(folder: Path, slides: Iterable[Path]) -> bool:
    """Warn about annotation files that match none of the slides; return whether any file matches.

    Raises:
        UserError: a slide has two annotation files.
    """
    matched = {find_annotation(folder, slide) for slide in slides} - {None}
    rest = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path not in matched]
    if rest:
        more = f" and {len(rest) - _MOST:,} more" if len(rest) > _MOST else ""
        rank_zero_warn(f"{folder}: these annotation files match none of the slides: {', '.join(rest[:_MOST])}{more}.")
    return bool(matched)


def tumor_outlines(
    path: Path,
    grid: PatchGrid,
    origin: tuple[int, int] = (0, 0),
    tumor_class: Collection[str] = (),
    label: int | None = None,
) -> Geometry:
    """Read the tumor outlines of a slide, and report the area of each class.

    Outlines named tumor, metastasis, metastases, `_0` or `_1` (CAMELYON16) are tumor. Outlines named `_2`, exclusion,
    normal or hole are subtracted from them. All others are ignored.

    Args:
        path: annotation file that `read_outlines` can read.
        grid: patch grid of the slide.
        origin: origin of GeoJSON coordinates, see `read_outlines`.
        tumor_class: names of additional tumor classes; `none` selects outlines without a class.
        label: 1 for a slide with metastases, 0 for a slide without; None if unknown.

    Returns:
        Polygons in level-0 pixels; empty if there is no tumor.

    Raises:
        UserError: the file is damaged, a tumor outline lies outside the slide, or no outline is tumor although the
            label is not 0.
    """
    found = read_outlines(path, origin)
    names = _TUMOR | {name.strip().lower() for name in tumor_class}
    kinds = {
        one.name: "tumor" if one.name in names else "subtracted" if one.name in _NORMAL else "ignored" for one in found
    }
    _check_inside(path, [one for one in found if one.name in names], grid)
    tumor: Geometry = _union(found, names) - _union(found, _NORMAL - names)
    unclear = {one.name for one in found if one.name in names or (kinds[one.name] == "ignored" and one.polygon.area)}
    if unclear and not tumor.area and label != 0:
        raise UserError(
            f"{path}: no polygon has a tumor class; classes found: {', '.join(map(_shown, sorted(unclear)))}. Name "
            "the tumor class in `tumor_class` (none for outlines without a class), or set label 0 in `reference`."
        )
    if found:
        _report_areas(path, found, kinds, tumor, grid)
    return tumor


def _report_areas(path: Path, found: list[Outline], kinds: dict[str, str], tumor: Geometry, grid: PatchGrid) -> None:
    """Report the tumor area, and the area of each class by its role."""
    scale = grid.slide_mpp**2 / 1e6
    mm2 = {name: _union(found, {name}).area * scale for name in sorted(kinds)}
    texts = (
        f"{kind}: " + ", ".join(f"{_shown(name)} {area:.4g}" for name, area in mm2.items() if kinds[name] == kind)
        for kind in ("tumor", "subtracted", "ignored")
        if kind in kinds.values()
    )
    rank_zero_info(f"{path}: {tumor.area * scale:.4g} mm2 of tumor ({'; '.join(texts)}).")


def regions_of_interest(path: Path, slide: Path, grid: PatchGrid, origin: tuple[int, int]) -> Geometry:
    """Read the regions of interest of a slide: outlines of any class except exclusion, hole and Ignore*.

    Args:
        path: annotation file that `read_outlines` can read, or a folder of such files named after the slides.
        slide: path of the slide.
        grid: patch grid of the slide.
        origin: origin of GeoJSON coordinates, see `read_outlines`.

    Returns:
        Polygons in level-0 pixels.

    Raises:
        UserError: the file is missing or damaged, or an outline lies outside the slide.
    """
    file = find_annotation(path, slide) if path.is_dir() else path
    if file is None:
        raise UserError(f"`regions` {path}: no file for {slide.name}. Add {slide.stem}.geojson or {slide.stem}.xml.")
    found = read_outlines(file, origin)
    counted = [one for one in found if one.name not in _EXCLUDED]
    _check_inside(file, counted, grid)
    regions: Geometry = _union(counted, {one.name for one in counted}) - _union(found, _EXCLUDED)
    if not regions.area:
        raise UserError(f"`regions` {file}: contains no region polygon.")
    return regions


def _check_inside(path: Path, outlines: list[Outline], grid: PatchGrid) -> None:
    """Check that no outline lies outside the slide.

    Raises:
        UserError: an outline lies outside.
    """
    polygons = [one.polygon for one in outlines if one.polygon.area]
    outside = [one for one in polygons if not one.intersects(shapely.box(0, 0, grid.width, grid.height))]
    if outside:
        x, y = (round(value) for value in outside[0].bounds[:2])
        raise UserError(
            f"{path}: {len(outside):,} of {len(polygons):,} outlines lie outside the slide of {grid.width:,} x "
            f"{grid.height:,} pixels; the first starts at x {x:,}, y {y:,}. Does the "
            "file belong to this slide, and is its unit pixels?"
        )


def _union(outlines: Iterable[Outline], names: Collection[str]) -> Geometry:
    union: Geometry = shapely.union_all([one.polygon for one in outlines if one.name in names])
    return union


def _shown(name: str) -> str:
    return "no class" if name == UNCLASSIFIED else shorten(name)


def reaches(outlines: Geometry, x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    """Mark the squares that outlines intersect; a square spans the centers of its corner pixels.

    Args:
        outlines: polygons in level-0 pixels.
        x: x of the upper left corners, in level-0 pixels, shape (N,).
        y: y of the upper left corners, shape (N,).
        side: side of the squares, in level-0 pixels.

    Returns:
        bool, (N,).
    """
    left, top, right, bottom = outlines.bounds  # NaN if there are no outlines
    mask = (x + side > left) & (x < right) & (y + side > top) & (y < bottom)
    x, y = x[mask] + 0.5, y[mask] + 0.5
    shapely.prepare(outlines)
    mask[mask] = shapely.intersects(outlines, shapely.box(x, y, x + side - 1, y + side - 1))
    return mask
