"""Images of a heat map: a pyramidal TIFF of the probabilities, and an overlay on the slide."""

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

OVERLAY = 2000  # longer side of overlay.png, in pixels
_OPACITY = 0.45
_QUALITY = 75  # JPEG quality


def mask_png(mask: np.ndarray) -> bytes:
    """Return a mask as PNG bytes, with white tissue."""
    return encode(Image.fromarray(mask), "png")


def write_tiff(path: Path, heat_map: HeatMap) -> None:
    """Write the probabilities as a tiled, pyramidal uint8 TIFF: 255 is 1; squares without a prediction are 0.

    One pixel of the finest level is one square, and the TIFF states this resolution, so viewers can overlay it.
    """
    level = np.nan_to_num(255 * heat_map.prob).round().astype(np.uint8)
    per_mm = 1000 / (heat_map.grid.square * heat_map.grid.slide_mpp)
    image = pyvips.Image.new_from_array(level)
    content = image.tiffsave_buffer(
        tile=True, pyramid=True, compression="deflate", xres=per_mm, yres=per_mm, resunit="cm"
    )
    atomic_write(path, content)


def colors(prob: np.ndarray, opacity: float) -> np.ndarray:
    """Return a probability map as RGBA, uint8 (rows, columns, 4); NaN is transparent."""
    rgba: np.ndarray = (colormaps["turbo"](np.nan_to_num(prob)) * 255).astype(np.uint8)
    rgba[..., 3] = np.where(np.isnan(prob), 0, round(255 * opacity))
    return rgba


def thumbnail(slide: SlideReader, longest: int) -> Image.Image:
    """Return the whole slide as RGB, with sides of at most `longest` pixels."""
    factor = max(1.0, max(slide.width, slide.height) / longest)
    size = max(1, round(slide.width / factor)), max(1, round(slide.height / factor))
    return slide.read_scaled((0, 0, slide.width, slide.height), size)


def overlay(slide: SlideReader, heat_map: HeatMap, longest: int = OVERLAY) -> Image.Image:
    """Overlay the map on the slide, from blue (0) to red (1); squares without a prediction are transparent."""
    below = thumbnail(slide, longest).convert("RGBA")
    grid = heat_map.grid
    scale = below.width / slide.width
    width, height = (max(1, round(count * grid.square * scale)) for count in (grid.columns, grid.rows))
    over = Image.fromarray(colors(heat_map.prob, _OPACITY)).resize((width, height), Image.Resampling.NEAREST)
    layer = Image.new("RGBA", below.size)
    layer.paste(over, (0, 0))
    return Image.alpha_composite(below, layer).convert("RGB")


def encode(image: Image.Image, kind: Literal["png", "jpeg"]) -> bytes:
    """Encode an image as PNG or JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": _QUALITY} if kind == "jpeg" else {}))
    return buffer.getvalue()
