"""Scale of a slide: um per pixel of its finest level, from the file or the user."""

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

LOWEST_MPP, HIGHEST_MPP = 0.05, 4.0  # accepted um per pixel
_TOLERANCE = 0.05  # largest relative difference between two scales of one slide
_UM = {2: 25_400.0, 3: 10_000.0}  # um per inch and per centimeter, by TIFF's ResolutionUnit
_OME_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "in": 25_400.0}


@dataclass(frozen=True)
class StatedScale:
    """Scale stated by a file.

    Attributes:
        across: horizontal um per pixel; None if not stated.
        down: vertical um per pixel; None if not stated.
        magnification: magnification of the objective, such as 20; None if not stated.
    """

    across: float | None = None
    down: float | None = None
    magnification: float | None = None

    @classmethod
    def of_properties(cls, properties: Mapping[str, str]) -> "StatedScale":
        """Return the scale in OpenSlide's properties."""
        found = (properties.get(f"openslide.{name}") for name in ("mpp-x", "mpp-y", "objective-power"))
        return cls(*(None if value is None else _number(value) for value in found))

    @classmethod
    def of_page(cls, page: TiffPage) -> "StatedScale":
        """Return the scale in OME-XML or, without it, in the tags of a TIFF.

        Implausible tags are ignored, because programs write 72 dpi when the scale is unknown.
        """
        ome = _read_ome(page.description)
        if ome is not None:
            return ome
        unit = _UM.get(page.unit, math.nan)
        across, down = (unit / value if (value := _number(tag)) > 0 else math.nan for tag in page.resolution)
        return cls(across, down) if all(LOWEST_MPP <= one <= HIGHEST_MPP for one in (across, down)) else cls()

    def mpp(self, path: Path) -> float:
        """Return um per pixel.

        Raises:
            UserError: the file does not state a scale, or states an implausible one, or pixels are not square.
        """
        if self.across is None or self.down is None:
            power = self.magnification
            about = f", only {power:g}x (about {10 / power:.2g} um per pixel)" if power and power > 0 else ""
            raise UserError(
                f"{path}: does not state its scale{about}. Set `mpp` to the um per pixel of its finest level, such as "
                "0.25."
            )
        if not math.isclose(self.across, self.down, rel_tol=_TOLERANCE):
            raise UserError(
                f"{path}: pixels are not square: {self.across:g} um across and {self.down:g} um down. If the file is "
                "wrong, set `mpp` to a CSV with slide,mpp."
            )
        mpp = (self.across + self.down) / 2
        if not LOWEST_MPP <= mpp <= HIGHEST_MPP:
            raise UserError(
                f"{path}: states {mpp:g} um per pixel, outside {LOWEST_MPP:g} to {HIGHEST_MPP:g}. To correct it, set "
                "`mpp` to a CSV with slide,mpp."
            )
        return mpp

    def differs(self, mpp: float) -> bool:
        """Return whether a scale differs from the one stated by the file."""
        stated = [value for value in (self.across, self.down) if value is not None]
        return any(not math.isclose(value, mpp, rel_tol=_TOLERANCE) for value in stated)


def check_range(mpp: float) -> float:
    """Check and return a user's um per pixel.

    Raises:
        UserError: the value is implausible.
    """
    if not LOWEST_MPP <= mpp <= HIGHEST_MPP:
        raise UserError(f"`mpp` {mpp:g}: um per pixel should be from {LOWEST_MPP:g} to {HIGHEST_MPP:g}.")
    return mpp


def given_mpp(option: float | Path | None, slide: Path) -> float | None:
    """Return the value of `mpp` for a slide: a number, or the slide's row of a CSV; None if there is none."""
    if option is None or isinstance(option, int | float):
        return option
    table = read_mpp_table(option)
    return table.get(slide.name, table.get(slide.stem))


def check_given(option: float | Path | None, mpp: float | None, stated: StatedScale, slide: Path) -> None:
    """Compare the user's scale of a slide with the scale stated by its file.

    A CSV names the slide and therefore overrides the file; a single number for all slides does not.

    Raises:
        UserError: a number differs from the scale stated by the file.
    """
    if mpp is None or not stated.differs(mpp):
        return
    found = " x ".join(dict.fromkeys(f"{value:g}" for value in (stated.across, stated.down) if value is not None))
    if isinstance(option, int | float):
        raise UserError(
            f"{slide}: states {found} um per pixel, but `mpp` is {mpp:g}. Remove `mpp`, or, if the file is wrong, set "
            "it to a CSV with slide,mpp."
        )
    rank_zero_warn(f"{slide}: states {found} um per pixel; using {mpp:g} from {option}.")


def check_table(option: float | Path | None, slides: list[Path]) -> None:
    """Check a CSV of scales, and warn about rows that match none of the slides.

    Raises:
        UserError: the CSV cannot be read.
    """
    if option is not None and not isinstance(option, int | float):
        names = {name for path in slides for name in (path.name, path.stem)}
        if others := [name for name in read_mpp_table(option) if name not in names]:
            rank_zero_warn(f"{option}: these rows match none of the slides: {', '.join(others)}.")


def read_mpp_table(path: Path) -> dict[str, float]:
    """Read a CSV with slide,mpp: um per pixel by slide name, with or without suffix.

    Raises:
        UserError: the CSV cannot be read, or a value is not a plausible scale.
    """
    try:
        table = read_text(Path(path).expanduser(), "It is not a CSV with the columns slide,mpp.")
        names, values = table["slide"].str.strip(), pd.to_numeric(table["mpp"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: not a CSV with the columns slide,mpp ({error}).") from None
    found: dict[str, float] = {}
    for row, name, value in zip(table.index, names, values, strict=True):
        if not name or not LOWEST_MPP <= value <= HIGHEST_MPP:
            raise UserError(f"{path}, row {row}: mpp {value:g} should be from {LOWEST_MPP:g} to {HIGHEST_MPP:g}.")
        if found.setdefault(name, float(value)) != value:
            raise UserError(f"{path}, row {row}: {name} has a different mpp in an earlier row.")
    return found


def _read_ome(text: str) -> StatedScale | None:
    """Read PhysicalSizeX and PhysicalSizeY of the first image in OME-XML; None if the text is not OME-XML."""
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
    except (TypeError, ValueError, ZeroDivisionError):  # a TIFF rational may have denominator 0
        return math.nan
    return number if math.isfinite(number) else math.nan
