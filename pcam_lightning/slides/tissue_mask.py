"""Tissue mask of a slide."""

import math

import numpy as np

from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.slide_reader import SlideReader

# Glass is white or gray; stained tissue is colored and absorbs light. The thresholds are fixed, because a threshold
# from the slide's histogram misses the few cells of a sparse slide.
SATURATION = 0.07  # minimum of (max - min) / max over the channels
DENSITY = 0.04  # minimum of the mean optical density of the channels
CELLS = 4  # mask pixels along a side of a patch center: 8 um each
_ROWS = 256  # rows of the mask per step, to bound memory


def is_tissue(pixels: np.ndarray) -> np.ndarray:
    """Classify pixels as tissue by saturation and optical density.

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
    """Find the tissue of a slide at low resolution; damaged parts count as tissue, as finer levels may be readable.

    Returns:
        bool, (rows * cells, columns * cells) of the grid; the side of a cell is a quarter of a patch center, 8 um.
    """
    cells = CELLS * (grid.square // grid.center)
    region = (0, 0, grid.columns * grid.square, grid.rows * grid.square)
    pixels = np.asarray(slide.read_scaled(region, (grid.columns * cells, grid.rows * cells)))
    mask = np.concatenate([is_tissue(pixels[top : top + _ROWS]) for top in range(0, len(pixels), _ROWS)])
    side = grid.square / cells
    for box in slide.damaged:
        left, top = int(box.left / side), int(box.top / side)
        mask[max(0, top) : math.ceil(box.bottom / side), max(0, left) : math.ceil(box.right / side)] = True
    return mask
