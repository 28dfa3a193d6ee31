"""Which squares of a slide hold tissue."""

import math

import numpy as np

from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.slide_reader import SlideReader

# Glass is white and gray; stained tissue has color and takes up light. Fixed, since a threshold that is chosen from the
# slide's own histogram loses the few cells of a sparse one.
SATURATION = 0.07  # (max - min) / max of the channels, at least
DENSITY = 0.04  # mean optical density of the channels, at least
CELLS = 4  # pixels of the mask along a side of the center of a patch: 8 um each
_ROWS = 256  # of the mask that are found at once, to bound memory


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
    """Find the tissue of a slide at low resolution; what is damaged there counts, since finer levels may show it.

    Returns:
        bool, (rows * cells, columns * cells) of the grid; a cell is a quarter of the side of a patch's center, 8 um.
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
