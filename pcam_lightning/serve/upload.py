"""Uploaded bytes -> the pixels of one patch, or the reason for a refusal."""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from pcam_lightning.data.image_io import SHAPE
from pcam_lightning.data.quality import BLACK, BLANK, BLURRED, patch_quality

FORMATS = ("PNG", "TIFF", "JPEG", "BMP")
_ACCEPTED = "PNG, TIFF, JPEG and BMP images are accepted"
_OTHERS = {
    b"GIF8": "a GIF image",
    b"RIFF": "a WebP image",
    b"%PDF": "a PDF document",
    b"PK": "a ZIP archive",
    b"\x89HDF": "an HDF5 file",
    b"\0\0\0\x0cjP": "a JPEG 2000 image",
    b"<svg": "an SVG image",
}
_TILE_TAGS = (322, 323)  # TIFF tags: tile width and length
_BITS_TAG = 258  # TIFF tag: bits of each sample
_LARGEST_TILE = 1024  # pixels; a whole tile is decoded even for a small image


class PatchRefused(Exception):
    """An uploaded image was refused.

    Attributes:
        status: status of the HTTP response.
        reason: one sentence for the user, without names or paths.
        image: decoded pixels, uint8 (96, 96, 3), or None.
    """

    def __init__(self, status: int, reason: str, image: np.ndarray | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.image = status, reason, image


def read_patch_bytes(content: bytes) -> np.ndarray:
    """Decode one patch from memory.

    Unlike `data.image_io.read_patch`, this function also accepts JPEG and BMP, and applies an Orientation tag. Images
    that cannot be converted to RGB without loss are refused. Format, size and pixel type are checked before decoding.

    Args:
        content: bytes of a PNG, TIFF, JPEG or BMP file of 96 x 96 pixels.

    Returns:
        Pixels, uint8 (96, 96, 3).

    Raises:
        PatchRefused: the content is not such a file.
    """
    if not content:
        raise PatchRefused(422, "The file is empty.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damaged and large images; both are refused here
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                pixels = _decode(image)
    except PatchRefused:
        raise
    except UnidentifiedImageError:
        raise PatchRefused(415, _describe(content)) from None
    except Image.DecompressionBombError:
        raise PatchRefused(422, "The image is too large; a patch has 96 x 96 pixels.") from None
    except Exception:  # decoders raise errors of many types
        raise PatchRefused(422, "The image is damaged or truncated.") from None
    return np.frombuffer(pixels, dtype=np.uint8).reshape(SHAPE).copy()  # torch requires a writable array


def check_quality(image: np.ndarray) -> None:
    """Refuse a patch, uint8 (96, 96, 3), without recognizable tissue.

    Raises:
        PatchRefused: the patch is black, blank or out of focus.
    """
    brightness, spread, sharpness = patch_quality(image[None])[0]
    if brightness < BLACK:
        raise PatchRefused(422, "The patch is black.", image)
    if spread < BLANK:
        raise PatchRefused(422, "The patch is blank: glass without tissue.", image)
    if sharpness < BLURRED:
        raise PatchRefused(422, "The patch is out of focus.", image)


def _decode(image: ImageFile.ImageFile) -> bytes:
    """Decode an opened image to RGB bytes.

    Raises:
        PatchRefused: the image has another size or pixel type.
    """
    if image.size != (96, 96):
        raise PatchRefused(422, f"The image has {image.width} x {image.height} pixels; a patch has 96 x 96.")
    if getattr(image, "is_animated", False):
        raise PatchRefused(422, "The file contains several images; a patch is a single image.")
    tags = getattr(image, "tag_v2", {})
    if any(tags.get(tag, 0) > _LARGEST_TILE for tag in _TILE_TAGS):
        raise PatchRefused(422, "The tiles of the image are much larger than the image.")
    # Pillow silently truncates to 8 bits, and uses the lower 8 bits of separate planes.
    if 16 in tags.get(_BITS_TAG, ()) or (image.tile and ";16" in str(image.tile[0])):
        raise PatchRefused(422, "The image has 16 bits per channel; a patch has 8.")
    if image.mode not in ("RGB", "L", "P", "RGBA", "LA"):
        raise PatchRefused(422, f"The image has pixels of type {image.mode}; convert it to 8-bit RGB.")
    upright = ImageOps.exif_transpose(image)  # Pillow applies the tag by itself only for TIFF
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return upright.tobytes()
    rgba = upright.convert("RGBA")
    if rgba.getchannel("A").getextrema() != (255, 255):
        raise PatchRefused(422, "The image has transparent pixels; convert it to RGB.")
    return rgba.convert("RGB").tobytes()


def _describe(content: bytes) -> str:
    """Describe a file of an unsupported format by its first bytes."""
    found = next((name for magic, name in _OTHERS.items() if content.startswith(magic)), None)
    if found is None:
        return f"The file is not an image or is damaged; {_ACCEPTED}."
    return f"The file is {found}; {_ACCEPTED}."
