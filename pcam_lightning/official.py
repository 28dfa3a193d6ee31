"""PCam's own files, camelyonpatch_level_2_split_*.h5 (or .gz) and meta CSVs -> rows of the table, and pixels."""

import gzip
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pcam_lightning.messages import UserError, say, shorten
from pcam_lightning.pixels import BYTES, SHAPE

if TYPE_CHECKING:
    import h5py  # loaded where it is used: Kaggle's layout needs none of it

PREFIX = "camelyonpatch_level_2_split_"
_CENTRE = "center_tumor_patch"  # of meta.csv: the label; tumor_patch is of the whole patch
_WHERE = "download it again from github.com/basveeling/pcam"


def is_official(root: Path) -> bool:
    """Tell whether a folder holds PCam's own files, and is no folder in Kaggle's layout that has some of them too."""
    return not (root / "train_labels.csv").is_file() and any(root.glob(f"{PREFIX}*_[xy].h5*"))


def has_part(root: Path, part: str) -> bool:
    """Tell whether a folder holds the images of a part: train, valid or test."""
    return any(root.glob(f"{PREFIX}{part}_x.h5*"))


def read_part(root: Path, part: str, *, labels: bool = True) -> pd.DataFrame:
    """Read the labels and slides of one part, or name its patches alone.

    Patches have no names in these files, and exact duplicates among them: an id is the part and the row, such as
    train-000123.

    Args:
        root: folder with the part's x and y (`.h5` or `.h5.gz`) and, for the slides, its `meta.csv`.
        part: train, valid or test.
        labels: whether y and meta are needed; without, x alone is read.

    Returns:
        One row a patch in the files' order, with columns `id`, `path` (of x, below `root`), `place` (row in x) and,
        with `labels`, `label` (int8) and, where there is a `meta.csv`, `slide`.

    Raises:
        UserError: a file is missing or damaged, or is not what its name says.
    """
    images = _find(root, part, "x")
    known = _read_labels(root, part) if labels else {}
    count = len(known["label"]) if labels else _count(root, part)
    if labels and images.suffix == ".h5":  # what is compressed is looked at when it is unpacked
        with open_images(images, count, images.parent):
            pass
    place = np.arange(count)
    return pd.DataFrame({"id": [f"{part}-{one:06d}" for one in place], **known, "path": images.name, "place": place})


def _count(root: Path, part: str) -> int:
    """Count a part's patches; of a packed x by its y: to unpack a gigabyte for that is too much."""
    kind = "x" if _find(root, part, "x").suffix == ".h5" else "y"
    with TemporaryDirectory() as scratch, _open(_find(root, part, kind), kind, Path(scratch)) as data:
        return len(data)


def _read_labels(root: Path, part: str) -> dict[str, Any]:
    labels = _find(root, part, "y")
    with TemporaryDirectory() as scratch, _open(labels, "y", Path(scratch)) as data:
        if data.size != len(data):
            raise UserError(f"{labels}: its shape is {data.shape}, one label a patch is due; are x and y swapped?")
        try:
            label = data[:].ravel()
        except OSError as error:
            raise UserError(f"{labels}: damaged ({error}); {_WHERE}.") from None
    if odd := sorted(set(np.unique(label).tolist()) - {0, 1}):
        raise UserError(f"{labels}: label {odd[0]} is neither 0 nor 1; {_WHERE}.")
    meta = meta_of(root, part)
    if not meta.is_file():
        say(f"{meta}: no such file; the slides of {part} are not known.")
        return {"label": label.astype(np.int8)}
    frame = _read_meta(root, part)
    if len(frame) != len(label):
        raise UserError(f"{meta}: {len(frame):,} rows, and {labels.name} has {len(label):,} labels; {_WHERE}.")
    if _CENTRE in frame:
        other = frame[_CENTRE].str.lower().isin(["true", "1"]).to_numpy() != (label == 1)
        if other.any():
            raise UserError(f"{labels}: {int(other.sum()):,} labels differ from {_CENTRE} in {meta.name}; {_WHERE}.")
    return {"label": label.astype(np.int8), "slide": frame["wsi"]}


def meta_of(root: Path, part: str) -> Path:
    """Return the path of a part's `meta.csv`."""
    return root / f"{PREFIX}{part}_meta.csv"


def read_meta(root: Path, part: str) -> "pd.Series[str]":
    """Read the slide of each patch of a part, in the files' order.

    Raises:
        UserError: the file is missing or malformed.
    """
    return _read_meta(root, part)["wsi"]


def _read_meta(root: Path, part: str) -> pd.DataFrame:
    meta = meta_of(root, part)
    if not meta.is_file():
        raise UserError(f"{meta}: no such file, and it names the slides; {_WHERE}.")
    try:
        frame = pd.read_csv(meta, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError):
        frame = pd.DataFrame()
    if "wsi" not in frame:
        raise UserError(f"{meta}: not a CSV file with a column wsi; {_WHERE}.")
    return frame


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
    with _unpacked(path, scratch) as plain:
        with _open(plain, "x", scratch, told=path) as data:
            if data.shape[1:] != SHAPE or data.dtype != np.uint8:
                raise UserError(
                    f"{path}: {data.dtype} of shape {data.shape}, and patches are uint8 of (N, 96, 96, 3); are x and y "
                    "swapped?"
                )
            if len(data) != count:
                raise UserError(f"{path}: {len(data):,} patches, and there are {count:,} labels; {_WHERE}.")
        yield plain  # closed: processes that read it are forked from here


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


def _find(root: Path, part: str, kind: str) -> Path:
    name = f"{PREFIX}{part}_{kind}.h5"
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{root / name}: no such file, nor {name}.gz; {_WHERE}.")


@contextmanager
def _open(path: Path, kind: str, scratch: Path, told: Path | None = None) -> "Iterator[h5py.Dataset]":
    import h5py

    told = told or path
    with _unpacked(path, scratch) as plain:
        try:
            file = h5py.File(plain, "r")
        except OSError as error:
            raise UserError(f"{told}: not an HDF5 file, or a damaged one ({error}); {_WHERE}.") from None
        with file:
            data = file.get(kind)
            if not isinstance(data, h5py.Dataset) or not data.shape:
                raise UserError(
                    f"{told}: holds {shorten(', '.join(file)) or 'nothing'}, and no array {kind}; {_WHERE}."
                )
            yield data


@contextmanager
def _unpacked(path: Path, scratch: Path) -> Iterator[Path]:
    if path.suffix != ".gz":
        yield path
        return
    plain = scratch / f".{path.stem}.{uuid.uuid4().hex}.tmp"
    try:
        with gzip.open(path) as packed, plain.open("wb") as file:
            try:
                shutil.copyfileobj(packed, file, 1 << 20)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(f"{path}: a damaged .gz file ({error}); {_WHERE}.") from None
        yield plain
    finally:
        plain.unlink(missing_ok=True)
