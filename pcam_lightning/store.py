"""A table's images -> one memory-mapped uint8 array, packed once, checked, and reused while the files stay the same."""

import hashlib
import os
import shutil
import uuid
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import filelock
import numpy as np
import pandas as pd
from PIL import UnidentifiedImageError
from tqdm import tqdm

from pcam_lightning.files import cache_folder, write_whole
from pcam_lightning.messages import UserError, say, warn
from pcam_lightning.official import open_images, read_images
from pcam_lightning.pixels import BYTES, SHAPE, read_pixels
from pcam_lightning.table import looks_like_sha1
from pcam_lightning.workers import workers

FORMAT = 1  # part of the fingerprint: a store of another format is rebuilt
_CHUNK = 128  # patches that one task decodes and writes: 3.5 MB


@dataclass(frozen=True)
class Store:
    """Packed patches.

    Attributes:
        path: the array's file, `images.npy`.
        images: all patches, memory-mapped and read-only, uint8, shape (N, 96, 96, 3).
        ids: the id of each row, shape (N,), sorted.
        pixel_sha1: SHA-1 of each row's RGB bytes, shape (N,).
        fingerprint: of the files' names, sizes and modification times.
        file: the array's file, open: what replaces it leaves this one readable.
    """

    path: Path
    images: np.ndarray
    ids: np.ndarray
    pixel_sha1: np.ndarray
    fingerprint: str
    file: BinaryIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the pixels behind: a spawned process maps the same file instead of being sent gigabytes.

        It gets the open file where the system can hand one over, since another pack may have replaced the one at
        `path` meanwhile. Windows cannot, but does not let a mapped file be removed either.
        """
        if self.file is None:  # images that no file holds
            return self.__dict__
        assert isinstance(self.images, np.memmap)
        handed_over = os.name == "posix" and get_spawning_popen() is not None
        file = reduction.DupFd(self.file.fileno()) if handed_over else None
        return {**self.__dict__, "images": (self.images.offset, self.images.shape), "file": file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the pixels again."""
        if isinstance(state["images"], np.ndarray):
            self.__dict__.update(state)
            return
        file = state["path"].open("rb") if state["file"] is None else os.fdopen(state["file"].detach(), "rb")
        offset, shape = state["images"]
        images = np.memmap(file, np.uint8, "r", offset, shape)
        self.__dict__.update({**state, "images": images, "file": file})

    def rows(self, ids: "pd.Series[str]") -> np.ndarray:
        """Return the row of each id, int64, shape (len(ids),)."""
        return np.searchsorted(self.ids, ids.to_numpy(dtype=str))


def open_store(
    table: pd.DataFrame, root: Path, part: str, cache_dir: Path | None = None, verify: bool = False
) -> Store:
    """Open the packed images of a table; pack them first where that has not been done since the files changed.

    Args:
        table: one row a patch, with columns `id` and `path` (below `root`).
        root: the data folder.
        part: name of the store, `train` or `test`.
        cache_dir: folder for packed images; by default `.pcam_cache` in `root`, or the user's cache folder where
            `root` is read-only.
        verify: make it an error that pixels do not match ids which look like SHA-1 (Kaggle's ids are the SHA-1 of
            the RGB bytes).

    Returns:
        The store; a row for each row of the table.

    Raises:
        UserError: image files that cannot be used (all are named), no space, or, with `verify`, a mismatch.
    """
    table = table.sort_values("id", ignore_index=True)
    fingerprint = _fingerprint(table, root)
    name = f"{part}-{fingerprint[:16]}"
    places = _caches(root, cache_dir)
    # A pack that is there is whole: it was renamed into its place. It may lie where nothing can be written.
    folder = next((place / name for place in places if (place / name).is_dir()), None)
    if folder is None:
        folder = _writable(places) / name
        # Whoever comes second waits for the first one's pack instead of doing the work twice.
        with filelock.FileLock(folder.parent / f"{part}.lock"):
            if not folder.is_dir():
                _pack(table, root, folder, part)
    index = pd.read_csv(folder / "index.csv", dtype=str, keep_default_na=False)
    file, images = _map_images(folder / "images.npy")
    if verify:
        _check_ids(index, root, part, error=True)
    return Store(
        path=folder / "images.npy",
        images=images,
        ids=index["id"].to_numpy(dtype=str),
        pixel_sha1=index["pixel_sha1"].to_numpy(dtype=str),
        fingerprint=fingerprint,
        file=file,
    )


def _map_images(path: Path) -> tuple[BinaryIO, np.memmap]:
    """Open and map an array's file, see `numpy.lib.format`."""
    file = path.open("rb")
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return file, np.memmap(file, dtype, "r", file.tell(), shape)


def _caches(root: Path, cache_dir: Path | None) -> list[Path]:
    """Return the folders in which stores of `root` may lie, the first choice first."""
    # The folder's own path is part of the name, so that data folders which share a cache keep apart.
    name = f"{root.resolve().name}-{hashlib.sha1(os.fsencode(root.resolve())).hexdigest()[:8]}"
    return [root / ".pcam_cache", cache_folder() / name] if cache_dir is None else [cache_dir / name]


def _writable(places: list[Path]) -> Path:
    """Return the first folder that can be written, made; what cannot be is said."""
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            probe = place / f".probe-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = f"{place} cannot be written ({error.strerror})"
            if place == places[-1]:
                raise UserError(f"{reason}; choose another folder with --data.cache_dir.") from None
            say(f"{reason}: packed images go to {places[-1]} instead.")
        else:
            return place
    raise AssertionError("no place")


def _fingerprint(table: pd.DataFrame, root: Path) -> str:
    """Hash name, size and modification time of every file: one stat a file, about a second for 220,025."""
    digest = hashlib.sha256(f"format {FORMAT}\n".encode())
    base = os.fspath(root)
    before = ""
    for patch_id, path in zip(table["id"], table["path"], strict=True):
        try:
            if path != before:  # many patches may lie in one file
                status = os.stat(os.path.join(base, path))
                before = path
        except OSError as error:
            raise UserError(
                f"{root / path}: {error.strerror}; did it go away just now? Run the command again."
            ) from None
        digest.update(
            f"{patch_id}\t{path}\t{status.st_size}\t{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


def _pack(table: pd.DataFrame, root: Path, folder: Path, part: str) -> None:
    """Decode every image of the table into `folder`, which appears whole at the end; called under the part's lock."""
    stale = [path for path in folder.parent.glob(f"{part}-*") if path.is_dir()]
    if any(path.suffix != ".tmp" for path in stale):
        say(f"{folder.parent}: what is packed there is of other files, or of another version; packing again.")
    for path in stale:  # older packs of this part, and what a killed pack left
        shutil.rmtree(path)
    need, free = len(table) * BYTES, shutil.disk_usage(folder.parent).free
    if need > free:
        raise UserError(
            f"{folder.parent}: packing needs {need / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; make room, or name "
            "another folder with --data.cache_dir."
        )
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        pixel_sha1 = _write_images(temporary / "images.npy", table, root, part)
        index = pd.DataFrame({"id": table["id"], "pixel_sha1": pixel_sha1})
        write_whole(temporary / "index.csv", index.to_csv(index=False, lineterminator="\n"))
        temporary.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: packing failed ({error.strerror}); name another folder with --data.cache_dir."
        ) from None
    except BrokenExecutor:
        raise UserError(
            f"{root}: a process that packs was killed, by the system for want of memory perhaps; run the command again."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _check_ids(index, root, part, error=False)


def _write_images(target: Path, table: pd.DataFrame, root: Path, part: str) -> list[str]:
    with target.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (len(table), *SHAPE)}
        )
        offset = file.tell()
        file.truncate(offset + len(table) * BYTES)
    pixel_sha1: list[str] = []
    refused: list[str] = []
    bar = tqdm(total=len(table), desc=f"packing {part}", unit=" patches", unit_scale=True)
    with ExitStack() as stack:
        tasks = _tasks(target, offset, table, root, stack)
        stack.enter_context(bar)
        map_on_cores = stack.enter_context(workers(len(tasks)))
        for hashes, complaints in map_on_cores(_pack_chunk, tasks):
            pixel_sha1 += hashes
            refused += complaints
            bar.update(len(hashes))
    if refused:
        if "place" in table:
            raise UserError(f"{root}: damaged: {'; '.join(refused)}. Download it again.")
        raise UserError(
            f"{root}: {len(refused):,} of {len(table):,} image files cannot be used: {'; '.join(refused)}. "
            "Unzip the download again, cut patches of your own to size, or take them out of the CSV."
        )
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return pixel_sha1


class _Task(NamedTuple):
    """Some patches to write at an offset of the array's file: image files, or places in PCam's own file."""

    target: str
    offset: int
    root: str
    paths: list[str]
    places: tuple[int, int] | None
    name: str  # of PCam's file


def _tasks(target: Path, offset: int, table: pd.DataFrame, root: Path, stack: ExitStack) -> list[_Task]:
    """Cut the table into tasks; what PCam's own files need to be read lasts as long as the stack."""
    files = {}
    if "place" in table:
        for name, count in table["path"].value_counts().items():
            files[name] = os.fspath(stack.enter_context(open_images(root / str(name), count, target.parent)))
    tasks, done = [], 0
    for name, rows in table.groupby("path", sort=False) if files else [("", table)]:
        for start in range(0, len(rows), _CHUNK):
            stop = min(start + _CHUNK, len(rows))
            paths = [files[name]] if files else list(rows["path"][start:stop])
            places = (start, stop) if files else None
            tasks.append(_Task(os.fspath(target), offset + done * BYTES, os.fspath(root), paths, places, str(name)))
            done += stop - start
    return tasks


def _pack_chunk(task: _Task) -> tuple[list[str], list[str]]:
    """Write a task's patches; return the hash of each, and a complaint for each bad file."""
    refused: list[str] = []
    if task.places is None:
        buffer = bytearray()
        for path in task.paths:
            try:
                buffer += read_pixels(os.path.join(task.root, path))
            except UnidentifiedImageError:
                refused.append(f"{path} (not a TIFF or PNG image)")
                buffer += bytes(BYTES)
            except Exception as error:  # whatever a decoder raises over foreign bytes is a complaint about that file
                refused.append(f"{path} ({error or type(error).__name__})")
                buffer += bytes(BYTES)
    else:
        start, stop = task.places
        try:
            buffer = bytearray(read_images(task.paths[0], start, stop))
        except OSError as error:
            refused = [f"patches {start:,} to {stop:,} of {task.name} ({error})"]
            buffer = bytearray((stop - start) * BYTES)
    view = memoryview(buffer)
    hashes = [hashlib.sha1(view[at : at + BYTES]).hexdigest() for at in range(0, len(view), BYTES)]
    with open(task.target, "rb+", buffering=0) as file:
        file.seek(task.offset)
        while view:  # a raw write may stop short
            view = view[file.write(view) :]
    return hashes, refused


def _check_ids(index: pd.DataFrame, root: Path, part: str, *, error: bool) -> None:
    wrong = index.loc[looks_like_sha1(index["id"]) & (index["id"] != index["pixel_sha1"]), "id"]
    if wrong.empty:
        return
    message = (
        f"{root}: {len(wrong):,} of {len(index):,} ids of {part} are not the SHA-1 of their pixels, as Kaggle's are: "
        f"{', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}"
    )
    if error:
        raise UserError(f"{message}. Download those files again, or leave --data.verify out to use them as they are.")
    warn(f"{message}. A re-encoded or damaged copy? It is used as it is.")
