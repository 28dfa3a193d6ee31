"""The images of a TIFF, by their tags: nothing is decoded."""

import struct
import warnings
from typing import Any, BinaryIO, NamedTuple

from PIL import TiffImagePlugin

_BIG = 43  # what a BigTIFF has where others have 42


class TiffPage(NamedTuple):
    """One image of a TIFF.

    Attributes:
        width: in pixels.
        height: in pixels.
        bits: of each sample of a pixel.
        sample_format: 1 for unsigned integers, 2 for signed ones, 3 for floats.
        orientation: 1 where the first row is the upper one and the first column the left one.
        resolution: pixels per unit across and down, each None where the file does not give it.
        unit: 2 for an inch, 3 for a centimeter.
        description: a text, such as OME's XML.
    """

    width: int
    height: int
    bits: tuple[int, ...]
    sample_format: int
    orientation: int
    resolution: tuple[Any, Any]
    unit: int
    description: str


def read_pages(file: BinaryIO) -> list[TiffPage]:
    """Read the tags of all images of a TIFF; none of another kind of file.

    Raises:
        ValueError: the file is damaged.
    """
    header = file.read(8)
    if header[:4] not in TiffImagePlugin.PREFIXES:
        return []
    pages, seen = [], {0}
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(header + (file.read(8) if _BIG in header[2:4] else b""))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")  # raised below
            while directory.next not in seen:
                seen.add(directory.next)
                file.seek(directory.next)  # often behind the pixels
                directory.load(file)
                pages.append(_page(directory))
    except (KeyError, IndexError, TypeError, ValueError, OSError, SyntaxError, struct.error):
        raise ValueError("a damaged or truncated TIFF image") from None
    return pages


def _page(tags: Any) -> TiffPage:
    return TiffPage(
        width=int(tags[256]),
        height=int(tags[257]),
        bits=tuple(tags.get(258, (1,))),
        sample_format=tags.get(339, (1,))[0],
        orientation=tags.get(274, 1),
        resolution=(tags.get(282), tags.get(283, tags.get(282))),
        unit=tags.get(296, 2),
        description=_utf8(str(tags.get(270, ""))),
    )


def _utf8(text: str) -> str:
    """Return a text of UTF-8, as OME's is, that Pillow has taken for Latin-1; any other as it is."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def check_pages(pages: list[TiffPage]) -> None:
    """Check that the first image of a TIFF is the one to read, and that its samples have 8 bits at most.

    Raises:
        ValueError: decoders would cut its samples to 8 bits, or another image is as large as the first.
    """
    if not pages:
        return
    first, *others = pages
    if max(first.bits) > 8:
        raise ValueError(f"{max(first.bits)} bits a channel: no lossless way to 8")
    largest = max(others, key=lambda page: page.width * page.height, default=None)
    if largest is not None and largest.width * largest.height >= first.width * first.height:
        raise ValueError(
            f"{len(pages):,} images in one file, {first.width:,} x {first.height:,} pixels first and also "
            f"{largest.width:,} x {largest.height:,}: save the one to read as a file of its own"
        )
