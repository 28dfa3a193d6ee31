"""Scale: um per pixel of a slide's finest level, as the file states it and as the user does."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from pcam_lightning.data.csv_tables import read_text
from pcam_lightning.data.tiff_pages import TiffPage
from pcam_lightning.utils.errors import UserError, rank_zero_warn

LOWEST_MPP, HIGHEST_MPP = 0.05, 4.0  # um per pixel that a slide may have
_TOLERANCE = 0.05  # by which two scales of one slide may differ
_UM = {2: 25_400.0, 3: 10_000.0}  # um in an inch and in a centimeter, by the number that a TIFF has for them
_OME_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "in": 25_400.0}


@dataclass(frozen=True)
class StatedScale:
    """What a file says of its scale.

    Attributes:
        across: um per pixel; None where it does not say.
        down: um per pixel; None where it does not say.
        magnification: of the objective, such as 20; None where it does not say.
    """

    across: float | None = None
    down: float | None = None
    magnification: float | None = None

    @classmethod
    def of_properties(cls, properties: Mapping[str, str]) -> "StatedScale":
        """Return what OpenSlide has read."""
        found = (properties.get(f"openslide.{name}") for name in ("mpp-x", "mpp-y", "objective-power"))
        return cls(*(None if value is None else _number(value) for value in found))

    @classmethod
    def of_page(cls, page: TiffPage) -> "StatedScale":
        """Return what OME's XML says or, without it, the tags of a TIFF.

        Tags that no microscope's image has are none: 72 dpi is what programs write that do not know.
        """
        ome = _read_ome(page.description)
        if ome is not None:
            return ome
        unit = _UM.get(page.unit, math.nan)
        across, down = (unit / value if (value := _number(tag)) > 0 else math.nan for tag in page.resolution)
        return cls(across, down) if all(LOWEST_MPP <= one <= HIGHEST_MPP for one in (across, down)) else cls()

    def mpp(self, path: Path) -> float:
        """Return the um per pixel.

        Raises:
            UserError: the file does not state them, or not of square pixels, or none that a slide has.
        """
        if self.across is None or self.down is None:
            power = self.magnification
            about = f", only {power:g}x: about {10 / power:.2g}" if power and power > 0 else ""
            raise UserError(
                f"{path}: does not state its scale{about}; `mpp` gives the um per pixel of its finest level, such as "
                "0.25."
            )
        if not math.isclose(self.across, self.down, rel_tol=_TOLERANCE):
            raise UserError(
                f"{path}: {self.across:g} um per pixel across and {self.down:g} down; pixels should be squares. Where "
                "that is wrong, `mpp` as a CSV with slide,mpp gives their side."
            )
        mpp = (self.across + self.down) / 2
        if not LOWEST_MPP <= mpp <= HIGHEST_MPP:
            raise UserError(
                f"{path}: states {mpp:g} um per pixel, not from {LOWEST_MPP:g} to {HIGHEST_MPP:g}; `mpp` as a CSV with "
                "slide,mpp corrects it."
            )
        return mpp

    def differs(self, mpp: float) -> bool:
        """Return whether a scale is another one than the file states."""
        stated = [value for value in (self.across, self.down) if value is not None]
        return any(not math.isclose(value, mpp, rel_tol=_TOLERANCE) for value in stated)


def check_range(mpp: float) -> float:
    """Return um per pixel that a user gives.

    Raises:
        UserError: no slide has them.
    """
    if not LOWEST_MPP <= mpp <= HIGHEST_MPP:
        raise UserError(f"`mpp` {mpp:g}: um per pixel should be from {LOWEST_MPP:g} to {HIGHEST_MPP:g}.")
    return mpp


def given_mpp(option: float | Path | None, slide: Path) -> float | None:
    """Return what the option `mpp` says of a slide: a number, or its row of a CSV; None where it says nothing."""
    if option is None or isinstance(option, int | float):
        return option
    table = read_mpp_table(option)
    return table.get(slide.name, table.get(slide.stem))


def check_given(option: float | Path | None, mpp: float | None, stated: StatedScale, slide: Path) -> None:
    """Check what a user says of a slide's scale against what its file says.

    A CSV names the slide, so that it corrects a wrong file; one number for all slides does not.

    Raises:
        UserError: a number differs from what the file states.
    """
    if mpp is None or not stated.differs(mpp):
        return
    found = " x ".join(dict.fromkeys(f"{value:g}" for value in (stated.across, stated.down) if value is not None))
    if isinstance(option, int | float):
        raise UserError(
            f"{slide}: states {found} um per pixel, and `mpp` is {mpp:g}. Leave it out; where the file is wrong, `mpp` "
            "as a CSV with slide,mpp corrects it."
        )
    rank_zero_warn(f"{slide}: states {found} um per pixel; {mpp:g} of {option} is used.")


def check_table(option: float | Path | None, slides: list[Path]) -> None:
    """Check a CSV of scales, and warn of its rows that are of none of the slides.

    Raises:
        UserError: it cannot be read.
    """
    if option is not None and not isinstance(option, int | float):
        names = {name for path in slides for name in (path.name, path.stem)}
        if others := [name for name in read_mpp_table(option) if name not in names]:
            rank_zero_warn(f"{option}: names {', '.join(others)}, and no such slide is predicted.")


def read_mpp_table(path: Path) -> dict[str, float]:
    """Read a CSV with slide,mpp: um per pixel by the names of slides, with or without suffix.

    Raises:
        UserError: it cannot be read, or a value is no scale.
    """
    try:
        table = read_text(Path(path).expanduser(), "It is no CSV with the columns slide,mpp.")
        names, values = table["slide"].str.strip(), pd.to_numeric(table["mpp"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: no CSV with the columns slide,mpp ({error}).") from None
    found: dict[str, float] = {}
    for row, name, value in zip(table.index, names, values, strict=True):
        if not name or not LOWEST_MPP <= value <= HIGHEST_MPP:
            raise UserError(f"{path}, row {row}: mpp {value:g} should be from {LOWEST_MPP:g} to {HIGHEST_MPP:g}.")
        if found.setdefault(name, float(value)) != value:
            raise UserError(f"{path}, row {row}: {name} has another mpp in an earlier row.")
    return found


def _read_ome(text: str) -> StatedScale | None:
    """Read PhysicalSizeX and PhysicalSizeY of the first image of OME's XML; None of another text."""
    if "<OME" not in text:
        return None
    try:
        pixels = next(one for one in ElementTree.fromstring(text.strip("\0 \n")).iter() if one.tag.endswith("}Pixels"))
    except (ElementTree.ParseError, StopIteration, ValueError):
        return None
    sizes = []
    for axis in "XY":
        um = _OME_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
        sizes.append(um * _number(pixels.get(f"PhysicalSize{axis}")))
    return None if any(map(math.isnan, sizes)) else StatedScale(*sizes)


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):  # a TIFF's rational may be divided by 0
        return math.nan
    return number if math.isfinite(number) else math.nan
