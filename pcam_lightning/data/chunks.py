"""Chunks of patches, which worker processes read and write: neither pandas nor torch is imported for them."""

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pcam_lightning.data.image_io import BYTES, hash_patches, read_patch

if TYPE_CHECKING:
    from pcam_lightning.data.resize import Resize

CHUNK = 128  # patches that one task decodes and writes: 3.5 MB
PER_PROCESS = 2048  # patches; fewer are read before another process has started
BadFiles = dict[int, tuple[str, str]]  # number within a chunk: name, reason


class Chunk(Protocol):
    """Some patches that one process reads; it can be pickled."""

    @property
    def size(self) -> int:
        """Number of patches."""

    def read(self) -> tuple[bytearray, BadFiles]:
        """Return the RGB bytes of all patches, 27,648 each, black for a bad file; and the bad ones."""


class FileChunk(NamedTuple):
    """Some patches, each of a file of its own."""

    root: str
    paths: list[str]
    resize: "Resize | None" = None

    @property
    def size(self) -> int:
        """Number of patches."""
        return len(self.paths)

    def read(self) -> tuple[bytearray, BadFiles]:
        """Return the RGB bytes of all patches, black for a bad file; and the bad ones."""
        bad: BadFiles = {}
        pixels = bytearray()
        for number, path in enumerate(self.paths):
            try:
                pixels += read_patch(os.path.join(self.root, path), self.resize)
            except Exception as error:  # whatever a decoder raises over foreign bytes is about that file
                bad[number] = path, str(error) or type(error).__name__
                pixels += bytes(BYTES)
        return pixels, bad


class Task(NamedTuple):
    """A chunk of patches, and where it belongs in the array's file."""

    target: str
    offset: int
    chunk: Chunk


def cut_tasks(target: Path, offset: int, chunks: Sequence[Chunk]) -> list[Task]:
    """Return a task for each chunk; the first patch lies at an offset of the array's file."""
    starts = accumulate((chunk.size * BYTES for chunk in chunks), initial=offset)
    return [Task(os.fspath(target), start, chunk) for start, chunk in zip(starts, chunks, strict=False)]


def pack_chunk(task: Task) -> tuple[list[str], list[tuple[str, str]]]:
    """Write a task's patches; return the hash of each, and name and reason of each bad file."""
    buffer, refused = task.chunk.read()
    view = memoryview(buffer)
    with open(task.target, "rb+", buffering=0) as file:
        file.seek(task.offset)
        while view:  # a raw write may stop short
            view = view[file.write(view) :]
    return hash_patches(buffer), list(refused.values())


def hash_chunk(task: Task) -> tuple[list[str], list[str]]:
    """Return the hashes of a task's patches as they are packed, and as they are in its files, empty of a bad one."""
    pixels, refused = task.chunk.read()
    of_files = ["" if number in refused else sha1 for number, sha1 in enumerate(hash_patches(pixels))]
    with open(task.target, "rb") as file:
        file.seek(task.offset)
        return hash_patches(file.read(len(pixels))), of_files
