"""PCam's h5 files, compressed or not: found, checked, opened, read."""

import gzip
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcam_lightning.data.image_io import BYTES, SHAPE
from pcam_lightning.utils.errors import UserError, shorten

if TYPE_CHECKING:
    import h5py  # loaded where it is used: Kaggle's layout needs none of it


PREFIX = "camelyonpatch_level_2_split_"


HOW_TO_GET = "download it again from github.com/basveeling/pcam"


@contextmanager
def open_images(path: Path, count: int, scratch: Path) -> Iterator[Path]:
    """Check a part's x, and hand out a file to read it from, unpacked into `scratch` for as long where it is a .gz.

    Args:
        path: the file.
        count: patches that it should have.
        scratch: folder with room for the unpacked file.

    Raises:
        UserError: the file is damaged, or its shape is not (count, 96, 96, 3).
    """
    with unpacked(path, scratch) as plain:
        with open_array(plain, "x", scratch, shown=path) as data:
            if data.shape[1:] != SHAPE or data.dtype != np.uint8:
                raise UserError(
                    f"{path}: {data.dtype} of shape {data.shape}, and patches are uint8 of (N, 96, 96, 3); are x and y "
                    "swapped?"
                )
            if len(data) != count:
                raise UserError(f"{path}: {len(data):,} patches, and there are {count:,} labels; {HOW_TO_GET}.")
        yield plain


def read_images(path: str, start: int, stop: int) -> bytes:
    """Read the RGB bytes of some patches in a row of an unpacked x.

    Raises:
        OSError: the file is damaged there.
    """
    import h5py

    with h5py.File(path, "r") as file:
        pixels = file["x"][start:stop].tobytes()
    if len(pixels) != (stop - start) * BYTES:
        raise OSError(f"{path}: no patches {start:,} to {stop:,}")
    return bytes(pixels)


def find_h5(root: Path, part: str, kind: str) -> Path:
    """Return the path of a part's x or y, `.h5` or `.h5.gz`.

    Raises:
        UserError: there is neither.
    """
    name = f"{PREFIX}{part}_{kind}.h5"
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{root / name}: no such file, nor {name}.gz; {HOW_TO_GET}.")


@contextmanager
def open_array(path: Path, kind: str, scratch: Path, shown: Path | None = None) -> "Iterator[h5py.Dataset]":
    """Open the array of an x or y file.

    Args:
        path: the file, unpacked into `scratch` for as long where it is a .gz.
        kind: x or y, the name of the array.
        scratch: folder with room for the unpacked file.
        shown: path that messages name, by default the file's.

    Raises:
        UserError: it is not such a file, or is damaged.
    """
    import h5py

    shown = shown or path
    with unpacked(path, scratch) as plain:
        try:
            file = h5py.File(plain, "r")
        except OSError as error:
            raise UserError(f"{shown}: not an HDF5 file, or a damaged one ({error}); {HOW_TO_GET}.") from None
        with file:
            data = file.get(kind)
            if not isinstance(data, h5py.Dataset) or not data.shape:
                raise UserError(
                    f"{shown}: holds {shorten(', '.join(file)) or 'nothing'}, and no array {kind}; {HOW_TO_GET}."
                )
            yield data


@contextmanager
def unpacked(path: Path, scratch: Path) -> Iterator[Path]:
    """Hand out a file, unpacked into `scratch` for as long where it is a .gz.

    Raises:
        UserError: it is damaged.
    """
    if path.suffix != ".gz":
        yield path
        return
    plain = scratch / f".{path.stem}.{uuid.uuid4().hex}.tmp"
    try:
        with gzip.open(path) as packed, plain.open("wb") as file:
            try:
                shutil.copyfileobj(packed, file, 1 << 20)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(f"{path}: a damaged .gz file ({error}); {HOW_TO_GET}.") from None
        yield plain
    finally:
        plain.unlink(missing_ok=True)
