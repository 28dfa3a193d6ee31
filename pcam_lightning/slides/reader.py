"""One whole-slide image: its size, its scale, and RGB pixels of any region at any level."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openslide
from PIL import Image

from pcam_lightning.utils.errors import UserError

LOWEST_MPP, HIGHEST_MPP = 0.05, 4.0  # um per pixel that a slide may have
_MOST_PIXELS = 2**24  # that are read at once: 64 MB as RGBA
_LARGEST = 178_956_970  # pixels of an image without a pyramid, which each process decodes whole: Pillow's own limit
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_PLAIN = ("PNG", "JPEG", "TIFF", "BMP")  # formats of Pillow's
_TIFF_RESOLUTION, _TIFF_UNIT = 282, 296  # tags: pixels per unit, and the unit
_UM = {2: 25_400.0, 3: 10_000.0}  # um in an inch and in a centimeter, by the number that the tag has for them


class Level(NamedTuple):
    """One level of a slide's pyramid: width and height in pixels, and how many level 0 pixels one of its pixels is."""

    width: int
    height: int
    downsample: float


class SlideReader:
    """A whole-slide image, opened by OpenSlide or, where it is a plain image, by Pillow.

    A reader belongs to one process: others open their own.

    Args:
        path: of the slide.
        mpp: um per pixel of level 0; by default what the file says.

    Attributes:
        mpp: um per pixel of level 0.
        levels: from the finest to the coarsest.
        vendor: format, as OpenSlide names it, or as Pillow does.

    Raises:
        UserError: the file cannot be read, contradicts itself or does not state its scale.
    """

    def __init__(self, path: Path | str, mpp: float | None = None) -> None:
        self.path = Path(path)
        self.vendor: str
        self._read: Callable[[int, int, int, int, int], Image.Image]
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such slide.")
        try:
            vendor = openslide.OpenSlide.detect_format(self.path)
            found = self._open_image() if vendor is None else self._open_slide(vendor, mpp)
        except openslide.OpenSlideError as error:
            raise UserError(f"{self.path}: cannot be read as a slide ({error}).") from None
        self.mpp = self._check_mpp(found if mpp is None else mpp, given=mpp is not None)
        self._check_levels()

    @property
    def width(self) -> int:
        """Of level 0, in pixels."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Of level 0, in pixels."""
        return self.levels[0].height

    def _open_slide(self, vendor: str, mpp: float | None) -> float | None:
        self.vendor = vendor
        slide = openslide.OpenSlide(self.path)
        sizes = zip(slide.level_dimensions, slide.level_downsamples, strict=True)
        self.levels = [Level(width, height, downsample) for (width, height), downsample in sizes]
        self._read = lambda x, y, width, height, level: slide.read_region((x, y), level, (width, height))
        values = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        if mpp is not None or None in values:
            return None
        across, down = (_number(value) for value in values)
        if not math.isclose(across, down, rel_tol=0.05):
            raise UserError(
                f"{self.path}: {across:g} um per pixel across and {down:g} down; pixels should be squares. `mpp` gives "
                "their side."
            )
        return (across + down) / 2

    def _open_image(self) -> float | None:
        try:
            with _open_quietly(self.path) as image:
                if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                    raise UserError(f"{self.path}: pixels of mode {image.mode} are no colors of 8 bits.")
                whole = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
                resolution = _resolution(image)
                self.vendor = str(image.format).lower()
        except Image.DecompressionBombError:
            raise UserError(
                f"{self.path}: more than {_LARGEST:,} pixels without a pyramid are too many to decode at once; convert "
                "it to a tiled, pyramidal TIFF."
            ) from None
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{self.path}: not a slide that OpenSlide reads, and not an image ({error}).") from None
        self.levels = [Level(*whole.size, 1.0)]
        self._read = lambda x, y, width, height, level: _crop(whole, x, y, width, height)
        return resolution

    def _check_mpp(self, mpp: float | None, *, given: bool) -> float:
        if mpp is None:
            raise UserError(
                f"{self.path}: does not state its scale; `mpp` gives the um per pixel of its finest level, such as "
                "0.25."
            )
        if not LOWEST_MPP <= mpp <= HIGHEST_MPP:
            span = f"{LOWEST_MPP:g} to {HIGHEST_MPP:g}"
            if given:
                raise UserError(f"`mpp` {mpp:g}: um per pixel should be from {span}.")
            raise UserError(f"{self.path}: states {mpp:g} um per pixel, not from {span}; `mpp` corrects it.")
        return mpp

    def _check_levels(self) -> None:
        """Check that the levels are one picture in several sizes."""
        first = self.levels[0]
        for number, level in enumerate(self.levels):
            for side, whole in ((level.width, first.width), (level.height, first.height)):
                expected = whole / level.downsample
                if side < 1 or abs(side - expected) > 1 + expected / 100:
                    size = f"{level.width:,} x {level.height:,}"
                    raise UserError(
                        f"{self.path}: level {number} has {size} pixels, which is not level 0 ({first.width:,} x "
                        f"{first.height:,}) downsampled by {level.downsample:g}."
                    )

    def level_for(self, mpp: float) -> int:
        """Return the coarsest level that is at least as fine as a scale, else the finest.

        Args:
            mpp: um per pixel.
        """
        fine = [number for number, level in enumerate(self.levels) if self.mpp * level.downsample <= mpp * (1 + 1e-3)]
        return max(fine, key=lambda number: self.levels[number].downsample, default=0)

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Read a region; what lies outside the slide is white.

        Args:
            x: of its left border, in pixels of level 0.
            y: of its upper border, in pixels of level 0.
            width: in pixels of the level.
            height: in pixels of the level.
            level: of the pyramid.

        Returns:
            uint8, (height, width, 3).

        Raises:
            UserError: the file is damaged there.
        """
        try:
            region = self._read(x, y, width, height, level)
        except openslide.OpenSlideError as error:
            raise UserError(f"{self.path}: damaged at x {x:,}, y {y:,} of level {level} ({error}).") from None
        if region.mode == "RGBA":
            white = Image.new("RGBA", region.size, (255, 255, 255, 255))
            region = Image.alpha_composite(white, region).convert("RGB")
        return np.asarray(region)

    def read_scaled(self, region: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
        """Read a region at another size, RGB, in strips, so that memory is bounded.

        It is read from the coarsest level that is fine enough.

        Args:
            region: x, y, width and height in pixels of level 0.
            size: width and height of the result.
        """
        x, y, width, height = region
        level = self.level_for(self.mpp * height / size[1])
        downsample = self.levels[level].downsample
        columns = width / downsample  # of the level, perhaps not whole
        step = height / downsample / size[1]  # rows of the level for one of the result
        whole = Image.new("RGB", size)
        rows = max(1, int(_MOST_PIXELS / columns / step))
        for top in range(0, size[1], rows):
            bottom = min(size[1], top + rows)
            start = int(top * step)
            count = max(1, math.ceil(bottom * step - 1e-6) - start)
            pixels = self.read(x, y + round(start * downsample), math.ceil(columns), count, level)
            box = (0, top * step - start, columns, min(count, bottom * step - start))
            strip = Image.fromarray(pixels).resize((size[0], bottom - top), Image.Resampling.BOX, box)
            whole.paste(strip, (0, top))
        return whole


def is_slide(path: Path) -> bool:
    """Return whether a file is one that OpenSlide reads, or by its name a plain image."""
    return path.is_file() and (path.suffix.lower() in _SUFFIXES or bool(openslide.OpenSlide.detect_format(path)))


def same_series(paths: list[Path]) -> list[Path]:
    """Return files without those that are of the same slide as an earlier one, as DICOM's are."""
    found: dict[str, Path] = {}
    for path in paths:
        name = str(path)
        if openslide.OpenSlide.detect_format(path) == "dicom":
            with openslide.OpenSlide(path) as slide:
                name = slide.properties.get("openslide.quickhash-1", name)
        found.setdefault(name, path)
    return list(found.values())


@contextmanager
def _open_quietly(path: Path) -> Iterator[Image.Image]:
    """Open a plain image, without Pillow's warning of one that is half as large as its limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=_PLAIN) as image:
            yield image


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):  # a TIFF's rational may be divided by 0
        return math.nan
    return number if math.isfinite(number) else math.nan


def _crop(image: Image.Image, x: int, y: int, width: int, height: int) -> Image.Image:
    """Cut a region out of an image; what lies outside is white."""
    region = Image.new(image.mode, (width, height), (255,) * len(image.mode))
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, image.width), min(y + height, image.height)
    if right > left and bottom > top:
        region.paste(image.crop((left, top, right, bottom)), (left - x, top - y))
    return region


def _resolution(image: Image.Image) -> float | None:
    """Return the um per pixel that the tags of a TIFF state; None of other formats, whose dpi are of no microscope."""
    tags: Any = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    per_unit, unit = _number(tags.get(_TIFF_RESOLUTION)), _UM.get(tags.get(_TIFF_UNIT, 2))
    mpp = unit / per_unit if unit and per_unit > 0 else math.nan
    return mpp if LOWEST_MPP <= mpp <= HIGHEST_MPP else None  # 72 dpi is what programs write that do not know
