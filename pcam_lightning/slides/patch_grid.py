"""PatchGrid: squares that tile a slide, each predicted from the patch around its center."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pcam_lightning.data.image_io import MPP
from pcam_lightning.slides.slide_reader import Box, SlideReader

PATCH = 96  # side of a patch, in pixels of MPP
CENTER = 32  # side of the labeled center of a patch
BLOCK = 16  # squares along a side of a region; a region is read in one call


@dataclass(frozen=True)
class Region:
    """A block of squares that is read in one call: its first square and its numbers of rows and columns."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def slice(self) -> tuple[slice, slice]:
        """Index of its squares in an array (rows, columns) of the grid."""
        return slice(self.row, self.row + self.rows), slice(self.column, self.column + self.columns)


@dataclass(frozen=True)
class PatchGrid:
    """Squares that tile a slide from its upper left corner, and the patches around their centers.

    All coordinates are whole level-0 pixels, so the scale of the patches, `mpp`, differs slightly from `MPP`: by at
    most 1.3 % for slides of up to 0.8 um per pixel.

    Args:
        width: width of level 0, in pixels.
        height: height of level 0, in pixels.
        slide_mpp: um per pixel of level 0.
        stride: distance between patches in pixels of `MPP`, a multiple of 32; more than 32 leaves gaps.
    """

    width: int
    height: int
    slide_mpp: float
    stride: int = CENTER

    @property
    def center(self) -> int:
        """Side of a patch center, in level-0 pixels."""
        return max(1, round(CENTER * MPP / self.slide_mpp))

    @property
    def mpp(self) -> float:
        """Um per pixel of the patches."""
        return self.slide_mpp * self.center / CENTER

    @property
    def square(self) -> int:
        """Side of a square, in level-0 pixels."""
        return self.center * (self.stride // CENTER)

    @property
    def square_mm2(self) -> float:
        """Area of a square, in mm2."""
        return (self.square * self.slide_mpp / 1000) ** 2

    @property
    def patch(self) -> int:
        """Side of a patch, in level-0 pixels."""
        return self.center * (PATCH // CENTER)

    @property
    def rows(self) -> int:
        """Number of rows of squares; the last row may extend beyond the slide."""
        return math.ceil(self.height / self.square)

    @property
    def columns(self) -> int:
        """Number of columns of squares."""
        return math.ceil(self.width / self.square)

    @property
    def offset(self) -> int:
        """Offset of a patch's corner from its square's corner, in level-0 pixels; negative if patches overlap."""
        return (self.square - self.patch) // 2

    def squares_with(self, mask: np.ndarray) -> np.ndarray:
        """Mark the squares that contain a set pixel of a mask, bool (rows, columns).

        Args:
            mask: bool, (rows * n, columns * n).
        """
        cells = len(mask) // self.rows
        return np.asarray(mask.reshape(self.rows, cells, self.columns, cells).any(axis=(1, 3)))

    def corners(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of the patches' upper left corners, in level-0 pixels; negative outside the slide."""
        return column * self.square + self.offset, row * self.square + self.offset

    def damaged(self, boxes: Iterable[Box], row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Mark the squares whose patches intersect unreadable parts of the slide, bool (N,).

        Args:
            boxes: unreadable parts, see `SlideReader.damaged`.
            row: rows of the squares, (N,).
            column: columns of the squares, (N,).
        """
        x, y = self.corners(row, column)
        found = np.zeros(len(row), dtype=bool)
        for box in boxes:
            found |= (x < box.right) & (x + self.patch > box.left) & (y < box.bottom) & (y + self.patch > box.top)
        return found

    def regions(self, tissue: np.ndarray) -> Iterator[Region]:
        """Yield the blocks that contain tissue, row by row.

        Args:
            tissue: mask of the squares with tissue, bool, (rows, columns).
        """
        side = max(1, BLOCK * CENTER // self.stride)  # a larger stride does not enlarge a block
        for row in range(0, self.rows, side):
            for column in range(0, self.columns, side):
                block = tissue[row : row + side, column : column + side]
                if block.any():
                    yield Region(row, column, *block.shape)

    def read(self, slide: SlideReader, region: Region) -> np.ndarray:
        """Read the pixels of all patches of a region; damaged parts are white.

        Returns:
            uint8, (H, W, 3), at the scale `mpp`; a patch starts every `stride` pixels.
        """
        level = slide.level_for(self.mpp)
        downsample = slide.levels[level].downsample
        scale = self.center / CENTER / downsample  # pixels of the level per patch pixel
        height, width = ((count - 1) * self.stride + PATCH for count in (region.rows, region.columns))
        left, top = (number * self.square + self.offset for number in (region.column, region.row))
        if math.isclose(scale, 1, rel_tol=1e-3):  # an error of half a pixel across a region
            return slide.read_around(left, top, width, height, level)
        # The corner may lie between two pixels of the level: read from a whole pixel, and resample from the fraction.
        x, y = left / downsample, top / downsample
        column, row = math.floor(x), math.floor(y)
        box = (x - column, y - row, x - column + width * scale, y - row + height * scale)
        start = round(column * downsample), round(row * downsample)
        pixels = slide.read_around(*start, math.ceil(box[2]), math.ceil(box[3]), level=level)
        how = Image.Resampling.BOX if scale > 1 and math.isclose(scale, round(scale)) else Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(pixels).resize((width, height), how, box))
