"""The tags of a TIFF's images."""

import io
import struct

import numpy as np
import pytest
import pyvips
from PIL import Image

from pcam_lightning.data.tiff_pages import check_pages, read_pages


def _pyramid(*, bigtiff: bool) -> bytes:
    image = pyvips.Image.new_from_array(np.zeros((200, 300, 3), dtype=np.uint8))
    content: bytes = image.tiffsave_buffer(tile=True, tile_width=64, tile_height=64, pyramid=True, bigtiff=bigtiff)
    return content


@pytest.mark.parametrize("bigtiff", [False, True])
def test_all_images_are_found(bigtiff: bool) -> None:
    pages = read_pages(io.BytesIO(_pyramid(bigtiff=bigtiff)))
    assert [(page.width, page.height) for page in pages] == [(300, 200), (150, 100), (75, 50), (37, 25)]
    assert pages[0].bits == (8, 8, 8)
    assert pages[0].orientation == 1
    check_pages(pages)


def test_a_chain_of_images_that_ends_in_a_circle_ends() -> None:
    content = bytearray(_pyramid(bigtiff=False))
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * count, first)
    assert len(read_pages(io.BytesIO(content))) == 1


def test_other_files_have_none_and_damaged_ones_are_errors() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 10)).save(buffer, "png")
    buffer.seek(0)
    assert read_pages(buffer) == []
    check_pages([])
    for content in (b"II*\0", _pyramid(bigtiff=False)[:1000]):
        with pytest.raises(ValueError, match="a damaged or truncated TIFF image"):
            read_pages(io.BytesIO(content))
