"""Where patches are cut: squares that tile a slide, each predicted by the patch around its center."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pcam_lightning.data.image_io import MPP
from pcam_lightning.slides.slide_reader import Box, SlideReader

PATCH = 96  # side of a patch, in pixels of MPP
CENTER = 32  # side of the center that a patch's label is about
BLOCK = 16  # squares along a side of a region that is read at once


@dataclass(frozen=True)
class Region:
    """A block of squares that is read at once, by its first square and its numbers of squares."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def slice(self) -> tuple[slice, slice]:
        """What picks its squares out of an array (rows, columns) of the grid."""
        return slice(self.row, self.row + self.rows), slice(self.column, self.column + self.columns)


@dataclass(frozen=True)
class PatchGrid:
    """Squares that tile a slide from its upper left corner, and the patches around their centers.

    All coordinates are whole pixels of level 0. So the scale of the patches, `mpp`, is not `MPP` exactly; for slides of
    up to 0.8 um per pixel it differs by 1.3 % at most.

    Args:
        width: of level 0, in pixels.
        height: of level 0, in pixels.
        slide_mpp: um per pixel of level 0.
        stride: distance of neighboring patches in pixels of `MPP`, a multiple of 32; more than 32 leaves gaps.
    """

    width: int
    height: int
    slide_mpp: float
    stride: int = CENTER

    @property
    def center(self) -> int:
        """Side of the center of a patch, in pixels of level 0."""
        return max(1, round(CENTER * MPP / self.slide_mpp))

    @property
    def mpp(self) -> float:
        """Um per pixel of the patches."""
        return self.slide_mpp * self.center / CENTER

    @property
    def square(self) -> int:
        """Side of a square, in pixels of level 0."""
        return self.center * (self.stride // CENTER)

    @property
    def square_mm2(self) -> float:
        """Area of a square."""
        return (self.square * self.slide_mpp / 1000) ** 2

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels of level 0."""
        return self.center * (PATCH // CENTER)

    @property
    def rows(self) -> int:
        """Number of rows of squares; the last one may reach beyond the slide."""
        return math.ceil(self.height / self.square)

    @property
    def columns(self) -> int:
        """Number of columns of squares."""
        return math.ceil(self.width / self.square)

    @property
    def offset(self) -> int:
        """From the corner of a square to that of its patch, in pixels of level 0; negative where patches overlap."""
        return (self.square - self.patch) // 2

    def squares_with(self, mask: np.ndarray) -> np.ndarray:
        """Mark the squares in which any pixel of a mask is set, bool (rows, columns).

        Args:
            mask: bool, (rows * n, columns * n).
        """
        cells = len(mask) // self.rows
        return np.asarray(mask.reshape(self.rows, cells, self.columns, cells).any(axis=(1, 3)))

    def corners(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of the patches' upper left corners, in pixels of level 0; negative beyond the border."""
        return column * self.square + self.offset, row * self.square + self.offset

    def damaged(self, boxes: Iterable[Box], row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Mark the squares whose patches reach into parts of the slide that cannot be read, bool (N,).

        Args:
            boxes: of `SlideReader.damaged`.
            row: of the squares, (N,).
            column: of the squares, (N,).
        """
        x, y = self.corners(row, column)
        found = np.zeros(len(row), dtype=bool)
        for box in boxes:
            found |= (x < box.right) & (x + self.patch > box.left) & (y < box.bottom) & (y + self.patch > box.top)
        return found

    def regions(self, tissue: np.ndarray) -> Iterator[Region]:
        """Yield the blocks that have tissue, row by row.

        Args:
            tissue: which squares have, bool, (rows, columns).
        """
        side = max(1, BLOCK * CENTER // self.stride)  # patches that lie apart make a block no larger
        for row in range(0, self.rows, side):
            for column in range(0, self.columns, side):
                block = tissue[row : row + side, column : column + side]
                if block.any():
                    yield Region(row, column, *block.shape)

    def read(self, slide: SlideReader, region: Region) -> np.ndarray:
        """Read the pixels of all patches of a region, around what is damaged.

        Returns:
            uint8, (H, W, 3), at `mpp`: a patch begins every `stride` pixels.
        """
        level = slide.level_for(self.mpp)
        downsample = slide.levels[level].downsample
        scale = self.center / CENTER / downsample  # pixels of the level for one of the patches
        height, width = ((count - 1) * self.stride + PATCH for count in (region.rows, region.columns))
        left, top = (number * self.square + self.offset for number in (region.column, region.row))
        if math.isclose(scale, 1, rel_tol=1e-3):  # half a pixel at the far side of a region
            return slide.read_around(left, top, width, height, level)
        # A level's pixels begin where its downsample says: read from a whole one, and resample from a fraction of it.
        x, y = left / downsample, top / downsample
        column, row = math.floor(x), math.floor(y)
        box = (x - column, y - row, x - column + width * scale, y - row + height * scale)
        start = round(column * downsample), round(row * downsample)
        pixels = slide.read_around(*start, math.ceil(box[2]), math.ceil(box[3]), level=level)
        how = Image.Resampling.BOX if scale > 1 and math.isclose(scale, round(scale)) else Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(pixels).resize((width, height), how, box))
