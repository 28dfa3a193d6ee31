"""TIFFs of many kinds, written by libvips and then changed."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from PIL import Image


def write_tiff(
    path: Path, pixels: np.ndarray, *, tile: bool, mpp: tuple[float, float] | None = None, **more: Any
) -> None:
    """Write pixels, (H, W, 3), as a TIFF.

    Args:
        path: of the file.
        pixels: uint8 or uint16.
        tile: in tiles, which OpenSlide reads, or in strips, which Pillow reads.
        mpp: um per pixel across and down, as tags.
        more: `orientation`, `description`, and what libvips takes.
    """
    image = pyvips.Image.new_from_array(pixels)
    if "orientation" in more:
        image.set_type(pyvips.GValue.gint_type, "orientation", more.pop("orientation"))
    if "description" in more:
        image.set_type(pyvips.GValue.gstr_type, "image-description", more.pop("description"))
    if mpp is not None:
        more |= {"xres": 1000 / mpp[0], "yres": 1000 / mpp[1], "resunit": "cm"}
    image.tiffsave(str(path), tile=tile, tile_width=256, tile_height=256, **more)


def damage_tile(path: Path, level: int, tile: int) -> None:
    """Overwrite a tile of a pyramidal TIFF with zeros."""
    with Image.open(path) as image:
        image.seek(level)
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        start, size = tags[324][tile], tags[325][tile]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(size))


def put_second_level_first(path: Path) -> None:
    """Let a pyramidal TIFF begin with its second level, followed by the first one alone."""
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (second,) = struct.unpack_from("<I", content, _next(content, first))
    struct.pack_into("<I", content, 4, second)
    struct.pack_into("<I", content, _next(content, second), first)
    struct.pack_into("<I", content, _next(content, first), 0)
    path.write_bytes(content)


def _next(content: bytearray, directory: int) -> int:
    return int(directory + 2 + 12 * struct.unpack_from("<H", content, directory)[0])
