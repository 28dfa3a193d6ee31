"""Which squares of a slide hold tissue."""

import math

import numpy as np
from PIL import Image

from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.reader import MOST_PIXELS, SlideReader

# Glass is white and gray; stained tissue has color and takes up light. Fixed, since a threshold that is chosen from the
# slide's own histogram loses the few cells of a sparse one.
SATURATION = 0.07  # (max - min) / max of the channels, at least
DENSITY = 0.04  # mean optical density of the channels, at least
CELLS = 4  # pixels of the mask along a side of the center of a patch: 8 um each
_STRIP = 64  # rows of squares that are read at once


def is_tissue(pixels: np.ndarray) -> np.ndarray:
    """Mark the pixels that are tissue by color and density.

    Args:
        pixels: uint8, (H, W, 3).

    Returns:
        bool, (H, W).
    """
    values = pixels.astype(np.float32)
    highest, lowest = values.max(axis=2), values.min(axis=2)
    density = -np.log10((values + 1) / 256).mean(axis=2)
    marked: np.ndarray = (highest - lowest >= SATURATION * np.maximum(highest, 1)) & (density >= DENSITY)
    return marked


def tissue_mask(slide: SlideReader, grid: PatchGrid) -> np.ndarray:
    """Find the tissue of a slide at low resolution.

    The slide is read in strips from the coarsest level that is fine enough, so that memory is bounded.

    Returns:
        bool, (rows * cells, columns * cells) of the grid; a cell is a quarter of the side of a patch's center, 8 um.
    """
    cells = CELLS * (grid.square // grid.center)
    level = slide.level_for(grid.mpp * 32 / CELLS)
    downsample = slide.levels[level].downsample
    columns = grid.columns * cells
    width = math.ceil(grid.columns * grid.square / downsample)
    strips = []
    rows = max(1, min(_STRIP, int(MOST_PIXELS / (width * grid.square / downsample))))  # of squares
    for first in range(0, grid.rows, rows):
        count = min(rows, grid.rows - first)
        top = first * grid.square
        height = math.ceil(count * grid.square / downsample)
        pixels = slide.read(0, top, width, height, level)
        box = (0, 0, grid.columns * grid.square / downsample, count * grid.square / downsample)
        reduced = Image.fromarray(pixels).resize((columns, count * cells), Image.Resampling.BOX, box)
        strips.append(is_tissue(np.asarray(reduced)))
    return np.concatenate(strips)


def tissue_squares(mask: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """Mark the squares of a grid that hold any tissue, bool (rows, columns)."""
    cells = len(mask) // grid.rows
    return np.asarray(mask.reshape(grid.rows, cells, grid.columns, cells).any(axis=(1, 3)))
