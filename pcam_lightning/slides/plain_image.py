"""An image without a pyramid, decoded whole."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile

from pcam_lightning.utils.errors import UserError

_LARGEST = 178_956_970  # pixels of an image without a pyramid, which each process decodes whole: Pillow's own limit
_PLAIN = ("PNG", "JPEG", "TIFF", "BMP")  # formats of Pillow's
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ORIENTATION = 274  # tag


def decode_image(path: Path) -> tuple[Image.Image, str]:
    """Decode an image.

    Returns:
        RGB, or RGBA where it has transparent pixels; and its format, as Pillow names it, in lower case.

    Raises:
        UserError: it is none, too large, or of another kind of pixels.
    """
    try:
        with _open_quietly(path) as image:
            if image.mode not in _MODES or (image.tile and ";16" in str(image.tile[0])):
                kind = image.mode if image.mode not in _MODES else f"{image.mode} with 16 bits a channel"
                raise UserError(f"{path}: pixels of mode {kind} are no colors of 8 bits.")
            check_orientation(path, image.getexif().get(_ORIENTATION, 1))
            whole = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
            return whole, str(image.format).lower()
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: more than {_LARGEST:,} pixels without a pyramid are too many to decode at once; convert it to a "
            "tiled, pyramidal TIFF."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a slide that OpenSlide reads, and not an image ({error}).") from None


def check_orientation(path: Path, orientation: int) -> None:
    """Check that a slide is stored upright: others would place its coordinates elsewhere.

    Raises:
        UserError: an Orientation tag turns it.
    """
    if orientation not in (0, 1):
        raise UserError(
            f"{path}: its Orientation tag ({orientation}) turns or mirrors it, which programs follow or ignore; save "
            "its pixels upright, without the tag."
        )


@contextmanager
def _open_quietly(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open a plain image, without Pillow's warning of one that is half as large as its limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=_PLAIN) as image:
            yield image
