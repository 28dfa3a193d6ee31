"""Pictures of a heat map: a pyramidal TIFF of the probabilities, and the map drawn over the slide."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pyvips
from matplotlib import colormaps
from PIL import Image

from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.utils.atomic_io import atomic_write

OVERLAY = 2000  # largest side of overlay.png, in pixels
_OPACITY = 0.45
_QUALITY = 75  # of JPEGs


def mask_png(mask: np.ndarray) -> bytes:
    """Return a mask as a PNG, tissue white."""
    return encode(Image.fromarray(mask), "png")


def write_tiff(path: Path, heat_map: HeatMap) -> None:
    """Write the probabilities as a tiled, pyramidal TIFF, uint8: 255 is 1, and 0 also where nothing was predicted.

    A pixel of its finest level is a square of the grid, and its resolution says so: viewers can lay it over the slide.
    """
    level = np.nan_to_num(255 * heat_map.prob).round().astype(np.uint8)
    per_mm = 1000 / (heat_map.grid.square * heat_map.grid.slide_mpp)
    image = pyvips.Image.new_from_array(level)
    content = image.tiffsave_buffer(
        tile=True, pyramid=True, compression="deflate", xres=per_mm, yres=per_mm, resunit="cm"
    )
    atomic_write(path, content)


def colors(prob: np.ndarray, opacity: float) -> np.ndarray:
    """Return a probability map as uint8 (rows, columns, 4), transparent where it is NaN."""
    drawn: np.ndarray = (colormaps["turbo"](np.nan_to_num(prob)) * 255).astype(np.uint8)
    drawn[..., 3] = np.where(np.isnan(prob), 0, round(255 * opacity))
    return drawn


def thumbnail(slide: SlideReader, longest: int) -> Image.Image:
    """Return the whole slide, RGB, at most `longest` pixels a side."""
    factor = max(1.0, max(slide.width, slide.height) / longest)
    size = max(1, round(slide.width / factor)), max(1, round(slide.height / factor))
    return slide.read_scaled((0, 0, slide.width, slide.height), size)


def overlay(slide: SlideReader, heat_map: HeatMap, longest: int = OVERLAY) -> Image.Image:
    """Draw the map over the slide, from blue for 0 to red for 1; where nothing was predicted, the slide alone."""
    below = thumbnail(slide, longest).convert("RGBA")
    grid = heat_map.grid
    scale = below.width / slide.width
    width, height = (max(1, round(count * grid.square * scale)) for count in (grid.columns, grid.rows))
    over = Image.fromarray(colors(heat_map.prob, _OPACITY)).resize((width, height), Image.Resampling.NEAREST)
    layer = Image.new("RGBA", below.size)
    layer.paste(over, (0, 0))
    return Image.alpha_composite(below, layer).convert("RGB")


def encode(image: Image.Image, kind: Literal["png", "jpeg"]) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": _QUALITY} if kind == "jpeg" else {}))
    return buffer.getvalue()
