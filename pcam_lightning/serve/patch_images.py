"""PNG images for the page."""

import base64
import io

import matplotlib as mpl
import numpy as np
from PIL import Image

_OPACITY = (0.15, 0.75)  # opacity of the overlay at heat 0 and 1, as in `explain`


def as_png(pixels: np.ndarray) -> bytes:
    """Encode an image, uint8 (H, W, 3) or (H, W, 4), as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def data_uri(pixels: np.ndarray) -> str:
    """Encode an image, uint8 (H, W, 3) or (H, W, 4), as a PNG data URI."""
    return f"data:image/png;base64,{base64.b64encode(as_png(pixels)).decode()}"


def heat_overlay(heat: np.ndarray) -> np.ndarray:
    """Color heat, float (96, 96) in [0, 1], with viridis: uint8 (96, 96, 4); higher heat is more opaque."""
    rgba = mpl.colormaps["viridis"](heat)
    low, high = _OPACITY
    rgba[..., 3] = low + (high - low) * heat
    overlay: np.ndarray = (255 * rgba).round().astype(np.uint8)
    return overlay
