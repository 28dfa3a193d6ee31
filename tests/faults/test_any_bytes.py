"""Any bytes end in patches or rows, or in an error that says what is wrong; none hang, none eat memory."""

import io
import resource
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pcam_lightning.data.csv_tables import read_labels
from pcam_lightning.data.image_io import BYTES, read_patch
from pcam_lightning.data.slide_map import read_slides
from pcam_lightning.data.splits import read_split
from pcam_lightning.training.predictions import read_predictions_csv
from pcam_lightning.utils.errors import UserError

TABLE = pd.DataFrame({"id": ["a", "b"], "label": [0, 1], "pixel_sha1": ["1", "2"]})
READERS: dict[str, Callable[[Path], object]] = {
    "labels": read_labels,
    "slides": read_slides,
    "split": lambda path: read_split(path, TABLE),
    "predictions": read_predictions_csv,
}
# Close to a CSV: what the readers look for, in any order, with whatever goes wrong.
PIECES = st.sampled_from(
    [
        "id", "label", "wsi", "split", "logit", "slide", "a", "b", "0", "1", "train", "val", ",", "\n", "\r\n", '"',
        "'", "\0", "\ufeff", "\u2028", "é", "nan", "inf", "-1e400", " ", "../", "\t", ";", "=1+1", "\x1a",
    ]
)  # fmt: skip
TEXT = st.one_of(st.binary(max_size=300), st.lists(PIECES, max_size=60).map(lambda parts: "".join(parts).encode()))
MEMORY = 300_000  # kB that reading a few hundred bytes may take beyond what was taken before, libraries' own included


@contextmanager
def _memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_as_a_csv(name: str) -> None:
    message: list[str] = []
    with tempfile.TemporaryDirectory() as folder, _memory():
        path = Path(folder) / "any.csv"

        @given(TEXT)
        def read(content: bytes) -> None:
            path.write_bytes(content)
            try:
                READERS[name](path)
            except UserError as error:
                message.append(str(error))

        read()
        assert all(str(path) in one for one in message)


def _written(kind: str, **how: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


GOOD = {
    "TIFF": _written("TIFF"),
    "LZW": _written("TIFF", compression="tiff_lzw"),
    "deflate": _written("TIFF", compression="tiff_adobe_deflate"),
    "PNG": _written("PNG"),
}
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8)
TAIL = 400  # a TIFF's directory may stand there, and a PNG's lies in front


@pytest.mark.parametrize("name", GOOD)
def test_any_bytes_as_an_image(name: str) -> None:
    good, sizes = GOOD[name], set[int]()
    with tempfile.TemporaryDirectory() as folder, _memory(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # over damaged files
        path = Path(folder) / "any.tif"

        @given(EDITS, EDITS, st.integers(0, len(good)), st.binary(max_size=100))
        def read(first: list[tuple[float, int]], last: list[tuple[float, int]], size: int, more: bytes) -> None:
            content = bytearray(good)
            for place, value in first:
                content[int(place * (TAIL - 1))] = value
            for place, value in last:
                content[-1 - int(place * (TAIL - 1))] = value
            # Cut in half of the cases: a small number is a cut file here, and a whole one there.
            path.write_bytes(bytes(content) if size % 2 else bytes(content[:size]) + more)
            # An error of any kind will do: whoever packs makes one complaint of it, see store.py.
            with suppress(Exception):
                sizes.add(len(read_patch(path)))

        read()
    assert sizes <= {BYTES}
