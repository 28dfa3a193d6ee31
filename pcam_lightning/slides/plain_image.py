"""Images without a pyramid, decoded as a whole."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile

from pcam_lightning.utils.errors import UserError

_LARGEST = 178_956_970  # pixels; each process decodes the whole image. This is Pillow's own limit.
_PLAIN = ("PNG", "JPEG", "TIFF", "BMP")  # Pillow's format names
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ORIENTATION = 274  # TIFF tag


def decode_image(path: Path) -> tuple[Image.Image, str]:
    """Decode an image.

    Returns:
        The image, RGB, or RGBA with transparent pixels; and Pillow's name of its format, in lower case.

    Raises:
        UserError: the file is not an image, is too large, or has another pixel type.
    """
    try:
        with _open_quietly(path) as image:
            if image.mode not in _MODES or (image.tile and ";16" in str(image.tile[0])):
                kind = image.mode if image.mode not in _MODES else f"{image.mode} with 16 bits per channel"
                raise UserError(f"{path}: has pixels of mode {kind}; convert it to 8-bit color.")
            check_orientation(path, image.getexif().get(_ORIENTATION, 1))
            whole = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
            return whole, str(image.format).lower()
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: has more than {_LARGEST:,} pixels and no pyramid, too many to decode as a whole; convert it to a "
            "tiled, pyramidal TIFF."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: neither OpenSlide nor Pillow can read this file ({error}).") from None


def check_orientation(path: Path, orientation: int) -> None:
    """Check that a slide is stored upright, because programs disagree on the coordinates of rotated images.

    Raises:
        UserError: an Orientation tag rotates or mirrors the slide.
    """
    if orientation not in (0, 1):
        raise UserError(
            f"{path}: its Orientation tag ({orientation}) rotates or mirrors it, which some programs ignore; save the "
            "pixels upright, without the tag."
        )


@contextmanager
def _open_quietly(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open an image without Pillow's warning about images above half of its limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=_PLAIN) as image:
            yield image
