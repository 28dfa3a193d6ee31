"""Images of another size, scale or format -> patches of 96 x 96 pixels."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pcam_lightning.data.image_io import MPP, SHAPE
from pcam_lightning.utils.errors import UserError, check_number

SIDE = SHAPE[0]
_TOLERANCE = 0.2  # share by which `crop` lets the scale differ from `MPP`
_SLACK = 0.03  # share of a patch's side that may be missing: 186 pixels of 0.5 um pass for 93.3 um
_LOWEST, _HIGHEST = 0.05, 4.0  # um per pixel
_LOOKED_AT = 32  # files whose sizes are looked at for the message


@dataclass(frozen=True)
class Resize:
    """How patches are made of images of another size.

    Args:
        mode: `crop` cuts out the 96 x 96 pixels at the center as they are; `scale` resamples the 93 um at the center
            to 96 x 96 pixels of 0.972 um.
        mpp: um per pixel of the images.

    Raises:
        UserError: the scale is out of range, or `crop` would keep another scale than PCam's.
    """

    mode: str
    mpp: float

    def __post_init__(self) -> None:
        """Check the options."""
        check_number("data.mpp", self.mpp)
        if not _LOWEST <= self.mpp <= _HIGHEST:
            raise UserError(f"`data.mpp` {self.mpp:g}: um per pixel should be from {_LOWEST:g} to {_HIGHEST:g}.")
        if self.mode == "crop" and abs(self.mpp / MPP - 1) > _TOLERANCE:
            raise UserError(
                f"`data.resize` crop: keeps pixels of {self.mpp:g} um, and patches have {MPP} um; use scale, which "
                "resamples them."
            )

    @property
    def name(self) -> str:
        """Such as scale-0.5: the name of the folder of images packed in this way."""
        return f"{self.mode}-{self.mpp:g}"

    @property
    def window(self) -> float:
        """Side of the square at the center that becomes a patch, in pixels of the image."""
        return SIDE if self.mode == "crop" else SIDE * MPP / self.mpp

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the patch of an RGB image.

        Raises:
            ValueError: the image is too small.
        """
        side = self.window
        shortest = min(image.size)
        if self.mode == "scale" and side * (1 - _SLACK) <= shortest < side:
            side = shortest
        if shortest < side:
            um = shortest * self.mpp
            raise ValueError(
                f"{image.width} x {image.height} pixels, and a patch needs {side:.0f} x {side:.0f}"
                + ("" if self.mode == "crop" else f": the image shows {um:.0f} um, and a patch {SIDE * MPP:.0f}")
            )
        left, top = (image.width - side) / 2, (image.height - side) / 2
        if self.mode == "crop":
            return image.crop((int(left), int(top), int(left) + SIDE, int(top) + SIDE))
        # Lanczos covers the source's pixels under each target pixel, so that nothing aliases.
        return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))

    def describe(self, root: Path, paths: Sequence[str]) -> str:
        """Describe what images become and what is lost, by the headers of some of them.

        Args:
            root: the data folder.
            paths: of the images below it.
        """
        step = max(1, len(paths) // _LOOKED_AT)
        sizes: set[tuple[int, int]] = set()
        jpeg = False
        for path in paths[::step]:
            with suppress(OSError, SyntaxError, ValueError), Image.open(os.path.join(root, path)) as image:
                sizes.add(image.size)
                jpeg = jpeg or image.format == "JPEG"
        ends = dict.fromkeys((min(sizes), max(sizes))) if sizes else {}
        found = " to ".join(f"{width} x {height}" for width, height in ends)
        unused = [1 - min(1, self.window**2 / (width * height)) for width, height in sizes]
        lost = [f"{max(unused):.0%} of the area is not used"] if unused and max(unused) > 0.005 else []
        lost += ["detail finer than 0.972 um is lost"] if self.mode == "scale" and self.mpp < 0.9 * MPP else []
        lost += ["images are enlarged, which adds no detail"] if self.mode == "scale" and self.mpp > 1.1 * MPP else []
        lost += ["JPEG has lost detail already"] if jpeg else []
        side = f"{self.window:.0f}"
        return (
            f"{root}: images of {found or 'unknown size'} pixels, {self.mpp:g} um each: {self.mode} takes the "
            f"{side} x {side} at the center for a patch of {SIDE} x {SIDE}{''.join('; ' + one for one in lost)}."
        )


def make_resize(mode: str | None, mpp: float | None) -> Resize | None:
    """Return what the options `data.resize` and `data.mpp` describe; None without them.

    Raises:
        UserError: only one of them is given, or they do not go together.
    """
    if mode is None and mpp is None:
        return None
    if mode is None:
        raise UserError(f"`data.mpp` {mpp}: goes with `data.resize` crop or scale.")
    if mode not in ("crop", "scale"):
        raise UserError(f"`data.resize` {mode}: should be crop or scale.")
    if mpp is None:
        raise UserError(
            f"`data.resize` {mode}: needs `data.mpp`, the um per pixel of the images: some 1 at 10x, 0.5 at 20x, 0.25 "
            "at 40x."
        )
    return Resize(mode, float(mpp))
