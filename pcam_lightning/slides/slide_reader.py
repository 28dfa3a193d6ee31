"""SlideReader: size, scale and pixels of a whole-slide image."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openslide
from PIL import Image

from pcam_lightning.data.tiff_pages import TiffPage, check_pages, read_pages
from pcam_lightning.slides.plain_image import check_orientation, decode_image
from pcam_lightning.slides.slide_files import CONVERT, FOREIGN
from pcam_lightning.slides.slide_scale import StatedScale, check_range
from pcam_lightning.utils.errors import UserError

_MOST_PIXELS = 2**24  # pixels per read: 64 MB as RGBA
_SMALLEST = 96  # pixels: damaged regions are not divided below this side


class Level(NamedTuple):
    """One level of a slide's pyramid: width and height in pixels, and level-0 pixels per pixel."""

    width: int
    height: int
    downsample: float


class Box(NamedTuple):
    """A rectangle of a slide, in level-0 pixels."""

    left: float
    top: float
    right: float
    bottom: float


class _DamagedError(UserError):
    """A region cannot be read; other regions may be readable."""


class SlideReader:
    """A whole-slide image, opened with OpenSlide, or with Pillow if it is a plain image.

    Each process and thread needs its own reader.

    Args:
        path: path of the slide.
        mpp: um per pixel of level 0; by default the scale stated by the file.

    Attributes:
        mpp: um per pixel of level 0.
        stated: scale stated by the file.
        levels: levels from the finest to the coarsest.
        vendor: format name of OpenSlide or Pillow.
        damaged: rectangles that `read_around` could not read.

    Raises:
        UserError: the file cannot be read, is inconsistent or does not state its scale.
    """

    def __init__(self, path: Path | str, mpp: float | None = None) -> None:
        self.path = Path(path)
        self.damaged: set[Box] = set()
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such slide.")
        vendor = openslide.OpenSlide.detect_format(self.path)
        if vendor is None:
            _check_format(self.path)
        pages = self._check_pages(vendor)
        if vendor is None:
            image, self.vendor = decode_image(self.path)
            self._slide: openslide.AbstractSlide = openslide.ImageSlide(image)
        else:
            self.vendor, self._slide = vendor, self._open()
        sizes = zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        self.levels = [Level(width, height, downsample) for (width, height), downsample in sizes]
        # Plain and tiled TIFFs state their scale in the same tags; OpenSlide reads the scale of other formats.
        self.stated = StatedScale.of_page(pages[0]) if pages else StatedScale.of_properties(self._slide.properties)
        self.mpp = self.stated.mpp(self.path) if mpp is None else check_range(mpp)
        self._check_levels()

    @property
    def width(self) -> int:
        """Width of level 0, in pixels."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Height of level 0, in pixels."""
        return self.levels[0].height

    @property
    def bounds_origin(self) -> tuple[int, int]:
        """X and y of the corner of QuPath's image in level-0 pixels: the corner of the bounds, if any."""
        names = ("x", "y", "width", "height")  # QuPath crops if all four are present
        bounds = [self._slide.properties.get(f"openslide.bounds-{name}", "") for name in names]
        return (int(bounds[0]), int(bounds[1])) if all(map(str.isdecimal, bounds)) else (0, 0)

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self.path)
        except openslide.OpenSlideError as error:
            hint = f" {CONVERT}" if self.path.suffix.lower() in FOREIGN else ""
            raise UserError(f"{self.path}: cannot be read as a slide ({error}).{hint}") from None

    def _check_pages(self, vendor: str | None) -> list[TiffPage]:
        """Return the pages of a generic TIFF, and an empty list for other formats.

        Raises:
            UserError: the pixels to read are ambiguous.
        """
        if vendor not in (None, "generic-tiff"):
            return []
        try:
            with self.path.open("rb") as file:
                pages = read_pages(file)
            check_pages(pages)
        except ValueError as error:
            raise UserError(f"{self.path}: cannot be read as a slide ({error}).") from None
        if pages:
            check_orientation(self.path, pages[0].orientation)
        return pages

    def _check_levels(self) -> None:
        """Check that all levels have the aspect ratio of level 0."""
        first = self.levels[0]
        for number, level in enumerate(self.levels):
            for side, whole in ((level.width, first.width), (level.height, first.height)):
                expected = whole / level.downsample
                if side < 1 or abs(side - expected) > 1 + expected / 100:
                    size = f"{level.width:,} x {level.height:,}"
                    raise UserError(
                        f"{self.path}: level {number} has {size} pixels, which does not match level 0 "
                        f"({first.width:,} x {first.height:,}) downsampled by {level.downsample:g}."
                    )

    def level_for(self, mpp: float) -> int:
        """Return the coarsest level that is at least as fine as a scale, or else the finest level.

        Args:
            mpp: um per pixel.
        """
        fine = [number for number, level in enumerate(self.levels) if self.mpp * level.downsample <= mpp * (1 + 1e-3)]
        return max(fine, key=lambda number: self.levels[number].downsample, default=0)

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Read a region; pixels outside the slide are white.

        Args:
            x: left border, in level-0 pixels.
            y: upper border, in level-0 pixels.
            width: width in pixels of the level.
            height: height in pixels of the level.
            level: level of the pyramid.

        Returns:
            uint8, (height, width, 3).

        Raises:
            UserError: the region is damaged.
        """
        try:
            region = self._slide.read_region((x, y), level, (width, height))
        except openslide.OpenSlideError as error:
            self._slide.close()
            self._slide = self._open()  # after an error, OpenSlide cannot read from the same handle
            raise _DamagedError(f"{self.path}: damaged at x {x:,}, y {y:,} of level {level} ({error}).") from None
        white = Image.new("RGBA", region.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, region).convert("RGB"))

    def read_around(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Read a region like `read`; damaged parts are white and are added to `damaged`."""
        try:
            return self.read(x, y, width, height, level)
        except _DamagedError:
            pass
        downsample, half, wide = self.levels[level].downsample, max(width, height) // 2, width >= height
        if max(width, height) <= _SMALLEST:
            self.damaged.add(Box(x, y, x + width * downsample, y + height * downsample))
            return np.full((height, width, 3), 255, dtype=np.uint8)
        beyond = round(half * downsample)
        if wide:
            parts = (x, y, half, height), (x + beyond, y, width - half, height)
        else:
            parts = (x, y, width, half), (x, y + beyond, width, height - half)
        return np.concatenate([self.read_around(*part, level) for part in parts], axis=1 if wide else 0)

    def read_scaled(self, region: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
        """Read a region as RGB at another size, in strips to bound memory.

        Pixels come from the coarsest level that is fine enough; damaged parts are white.

        Args:
            region: x, y, width and height in level-0 pixels.
            size: width and height of the result.
        """
        x, y, width, height = region
        level = self.level_for(self.mpp * height / size[1])
        downsample = self.levels[level].downsample
        columns = width / downsample  # columns of the level, possibly fractional
        step = height / downsample / size[1]  # rows of the level per row of the result
        whole = Image.new("RGB", size)
        rows = max(1, int(_MOST_PIXELS / columns / step))
        for top in range(0, size[1], rows):
            bottom = min(size[1], top + rows)
            start = int(top * step)
            count = max(1, math.ceil(bottom * step - 1e-6) - start)
            pixels = self.read_around(x, y + round(start * downsample), math.ceil(columns), count, level)
            box = (0, top * step - start, columns, min(count, bottom * step - start))
            strip = Image.fromarray(pixels).resize((size[0], bottom - top), Image.Resampling.BOX, box)
            whole.paste(strip, (0, top))
        return whole


def _check_format(path: Path) -> None:
    """Check that a file that OpenSlide does not recognize may be an image.

    Raises:
        UserError: the file is empty or incomplete, or has an unsupported slide format.
    """
    suffix = path.suffix.lower()
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty.")
    if suffix in FOREIGN:
        raise UserError(f"{path}: OpenSlide cannot read this {suffix} file. {CONVERT}")
    if suffix == ".mrxs" and not path.with_suffix("").is_dir():
        raise UserError(f"{path}: the folder with its pixels, {path.with_suffix('')}, is missing.")
