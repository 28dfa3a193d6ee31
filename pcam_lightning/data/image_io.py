"""One image file -> the RGB bytes of one patch."""

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from pcam_lightning.data.tiff_pages import check_pages, read_pages

SHAPE = (96, 96, 3)  # height, width, RGB
BYTES = 96 * 96 * 3  # of one patch
MPP = 0.972  # um per pixel of PCam's patches: level 2 of slides with 0.243
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}  # how a TIFF starts, and its byte order
_JPEG = b"\xff\xd8\xff"
_OTHERS = {_JPEG: "a JPEG image", b"GIF8": "a GIF image", b"BM": "a BMP image", b"RIFF": "a WebP image"}
_MODES = ("RGB", "L", "P", "RGBA", "LA")  # Pillow's, which convert to RGB without loss
_KINDS = {1: "unsigned", 2: "signed", 3: "float"}  # a TIFF's sample formats
_CODES = {3: "H", 4: "L"}  # TIFF's SHORT and LONG
# TIFF 6.0, section 8: the tags of plain RGB, and what they may say; a tag with None is needed too.
_PLAIN: dict[int, tuple[int, ...] | None] = {
    256: (96,),  # width
    257: (96,),  # height
    258: (8, 8, 8),  # bits of each sample
    259: (1,),  # no compression
    262: (2,),  # RGB
    273: None,  # where the strips lie
    277: (3,),  # samples of each pixel
    278: None,  # rows of each strip
    279: None,  # bytes of each strip
}
_FOREIGN = {322, 323, 324, 325, 338, 700}  # tiles, a fourth sample, XMP, which may turn the image
_OPTIONAL = {266: (1,), 274: (1,), 284: (1,), 339: (1, 1, 1)}  # fill order, orientation, planes, unsigned samples


def read_patch(path: str | os.PathLike[str], resize: Callable[[Image.Image], Image.Image] | None = None) -> bytes:
    """Read one patch.

    Args:
        path: a TIFF or PNG file of 96 x 96 pixels: RGB, or gray, palette or opaque RGBA, which convert without loss.
        resize: makes a patch of an RGB image of another size; JPEG is read too then.

    Returns:
        The RGB bytes, row by row, 27,648 of them, turned as an Orientation tag says.

    Raises:
        ValueError: another kind of file, another size or another kind of pixels, or several images in one file; seen
            before anything is decoded.
        OSError: truncated.
    """
    with open(path, "rb") as file:
        start = file.read(2 * BYTES)  # all of a plain file, and no more of a large one than is needed to tell
    if resize is None and (plain := plain_tiff(start)) is not None:
        return plain
    try:
        opened = Image.open(path, formats=("TIFF", "PNG", *(("JPEG",) if resize else ())))
    except UnidentifiedImageError:
        raise ValueError(_describe(Path(path), start)) from None
    with opened as image:
        if resize is None and image.size != (96, 96):
            raise ValueError(f"{image.width} x {image.height} pixels, not 96 x 96")
        if image.mode not in _MODES:
            raise ValueError(f"pixels of mode {image.mode}: no lossless way to RGB")
        if image.tile and ";16" in str(image.tile[0]):  # Pillow would cut them to 8 bits without a word
            raise ValueError("16 bits a channel: no lossless way to 8")
        with open(path, "rb") as file:
            check_pages(read_pages(file))
        rgb = _to_rgb(image)
        return (rgb if resize is None else resize(rgb)).tobytes()


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)  # which Pillow does by itself to a TIFF alone
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() != (255, 255):
        raise ValueError("transparent pixels: no lossless way to RGB")
    return rgba.convert("RGB")


def _describe(path: Path, content: bytes) -> str:
    """Describe a file that Pillow cannot read as a TIFF or PNG, by its first bytes."""
    for magic, name in _OTHERS.items():
        if content.startswith(magic):
            return f"{name}{'' if magic == _JPEG else ' under another name: convert it to PNG'}"
    if not content:
        return "an empty file"
    if content[:4] in _ORDERS:
        try:
            with path.open("rb") as file:
                page = read_pages(file)[0]
        except (OSError, ValueError, IndexError):
            return "a damaged TIFF image"
        kind = _KINDS.get(page.sample_format, "other")
        return f"a TIFF of {page.bits[0]}-bit {kind} pixels, {len(page.bits)} a pixel: no lossless way to 8-bit RGB"
    return "not a TIFF or PNG image"


def plain_tiff(content: bytes) -> bytes | None:
    """Return the pixels of an uncompressed 96 x 96 RGB TIFF, as Kaggle's are; a tenth of the time that Pillow takes.

    Args:
        content: the file's bytes.

    Returns:
        The RGB bytes, 27,648 of them; None where the file is anything else, which Pillow reads.
    """
    order = _ORDERS.get(content[:4])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}L", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, directory)
        tags: dict[int, tuple[int, ...]] = {}
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, field_type, length = struct.unpack_from(f"{order}HHL", content, entry)
            if tag in _FOREIGN:
                return None
            if tag in _PLAIN or tag in _OPTIONAL:
                layout = f"{order}{length}{_CODES[field_type]}"
                inline = struct.calcsize(layout) <= 4
                where = entry + 8 if inline else struct.unpack_from(f"{order}L", content, entry + 8)[0]
                tags[tag] = struct.unpack_from(layout, content, where)
        if any(struct.unpack_from("4B", content, directory + 2 + 12 * count)):  # another image follows
            return None
        if any(tags[tag] != value for tag, value in _PLAIN.items() if value is not None):
            return None
        if any(tags.get(tag, value) not in (value, value[:1]) for tag, value in _OPTIONAL.items()):
            return None
        bytes_each = tags[278][0] * SHAPE[1] * SHAPE[2]
        sizes = [min(bytes_each, BYTES - start) for start in range(0, BYTES, bytes_each)]
        if list(tags[279]) != sizes:
            return None
        strips = [content[start : start + size] for start, size in zip(tags[273], sizes, strict=True)]
    except (struct.error, KeyError, ValueError, MemoryError, OverflowError):
        return None
    pixels = b"".join(strips)
    return pixels if len(pixels) == BYTES else None


def hash_patches(pixels: bytes | bytearray) -> list[str]:
    """Return the SHA-1 of each patch of some in a row."""
    view = memoryview(pixels)
    return [hashlib.sha1(view[at : at + BYTES]).hexdigest() for at in range(0, len(view), BYTES)]
