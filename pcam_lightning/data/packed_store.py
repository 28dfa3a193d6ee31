"""A table's images -> one memory-mapped uint8 array, packed once, checked, and reused while the files stay the same."""

import hashlib
import os
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from tempfile import TemporaryDirectory
from tokenize import TokenError
from typing import Any, BinaryIO

import filelock
import numpy as np
import pandas as pd
from tqdm import tqdm

from pcam_lightning.data.chunks import PER_PROCESS, cut_tasks, hash_chunk
from pcam_lightning.data.fingerprint import fingerprint_files
from pcam_lightning.data.image_io import BYTES, SHAPE
from pcam_lightning.data.packing import check_ids, is_resized, pack, remove_pack
from pcam_lightning.data.sources import PatchSource
from pcam_lightning.utils.atomic_io import cache_folder
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.parallel import process_map

FORMAT = 2  # part of a pack's name: a store of another format is rebuilt


@dataclass(frozen=True)
class PackedStore:
    """Packed patches.

    Attributes:
        path: the array's file, `images.npy`.
        images: all patches, memory-mapped and read-only, uint8, shape (N, 96, 96, 3).
        ids: the id of each row, shape (N,), sorted.
        pixel_sha1: SHA-1 of each row's RGB bytes, shape (N,).
        fingerprint: of the ids and their pixels, SHA-256: the same for a copy of the data folder.
        file: the array's file, open: what replaces it leaves this one readable.
    """

    path: Path
    images: np.ndarray
    ids: np.ndarray
    pixel_sha1: np.ndarray
    fingerprint: str
    file: BinaryIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the store without its pixels: a spawned process maps the same file.

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
    table: pd.DataFrame, source: PatchSource, part: str, cache_dir: Path | None = None, verify: bool = False
) -> PackedStore:
    """Open the packed images of a table; pack them first if they are not packed, or if the files have changed.

    `fingerprint_files`, which reads a sample of their bytes, tells whether files have changed. A pack whose files are
    missing or of another size is packed again.

    Args:
        table: one row a patch, with columns `id` and `path` (below `root`).
        source: the data folder.
        part: name of the store, `train` or `test`.
        cache_dir: folder for packed images; by default `.pcam_cache` in `root`, or the user's cache folder where
            `root` is read-only.
        verify: read and hash all packed pixels and all image files; pack again where one of them is not what was
            packed, and make it an error that pixels do not match ids which look like SHA-1 (Kaggle's ids are the SHA-1
            of the RGB bytes).

    Returns:
        The store; a row for each row of the table.

    Raises:
        UserError: image files that cannot be used (all are named), no space, or, with `verify`, a mismatch.
    """
    table, root = table.sort_values("id", ignore_index=True), source.root
    name = f"{part}-{fingerprint_files(table, root, FORMAT)[:16]}"
    own = getattr(source, "cache_name", "")
    folders = [folder / own for folder in _caches(root, cache_dir)]
    # It may lie where nothing can be written.
    folder = next((candidate / name for candidate in folders if (candidate / name).is_dir()), None)
    store = None
    if folder is not None:
        try:
            store = _read_store(folder, table)
            if verify:
                _verify(store, table, source, part)
        except ValueError as error:
            rank_zero_info(f"{folder}: {error}; packing again.")
            store = None
    if store is None:
        folder = _writable(folders) / name
        # Whoever comes second waits for the first one's pack instead of doing the work twice.
        with filelock.FileLock(folder.parent / f"{part}.lock"):
            try:
                store = _read_store(folder, table)
                if verify:
                    _verify(store, table, source, part)
            except ValueError:
                remove_pack(folder)
                pack(table, source, folder, part)
                store = _read_store(folder, table)
    if verify and not is_resized(source):
        check_ids(pd.DataFrame({"id": store.ids, "pixel_sha1": store.pixel_sha1}), root, part, error=True)
    return store


def _read_store(folder: Path, table: pd.DataFrame) -> PackedStore:
    """Open a pack.

    Raises:
        ValueError: a file of it is missing, damaged or of other patches.
    """
    path = folder / "images.npy"
    try:
        content = (folder / "index.csv").read_bytes()
        recorded = (folder / "index.sha256").read_text(encoding="utf-8")
        index = pd.read_csv(BytesIO(content), dtype=str, keep_default_na=False)
        file, images = _map_images(path, len(table))
    except OSError as error:
        raise ValueError(f"{Path(error.filename or path).name}: {error.strerror}") from None
    fingerprint = hashlib.sha256(content).hexdigest()
    if fingerprint != recorded or not np.array_equal(index["id"].to_numpy(), table["id"].to_numpy()):
        file.close()
        raise ValueError("index.csv is damaged")
    return PackedStore(
        path=path,
        images=images,
        ids=index["id"].to_numpy(dtype=str),
        pixel_sha1=index["pixel_sha1"].to_numpy(dtype=str),
        fingerprint=fingerprint,
        file=file,
    )


def _map_images(path: Path, count: int) -> tuple[BinaryIO, np.memmap]:
    """Open and map an array's file, see `numpy.lib.format`.

    Raises:
        OSError: it is missing.
        ValueError: it does not hold so many patches, or is damaged.
    """
    file = path.open("rb")
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if shape != (count, *SHAPE) or dtype != np.uint8:
            raise ValueError(f"images.npy holds {dtype} of shape {shape}, not {count:,} patches")
        size = file.tell() + count * BYTES
        if (actual := path.stat().st_size) != size:
            raise ValueError(f"images.npy has {actual:,} bytes, not {size:,}")
        return file, np.memmap(file, dtype, "r", file.tell(), shape)
    except (SyntaxError, TokenError):
        file.close()
        raise ValueError("images.npy has a damaged header") from None
    except BaseException:
        file.close()
        raise


def _caches(root: Path, cache_dir: Path | None) -> list[Path]:
    """Return the folders in which packed images of `root` are looked for, in order of preference."""
    # The folder's own path is part of the name, so that data folders which share a cache keep apart.
    name = f"{root.resolve().name}-{hashlib.sha1(os.fsencode(root.resolve())).hexdigest()[:8]}"
    return [root / ".pcam_cache", cache_folder() / name] if cache_dir is None else [cache_dir / name]


def _writable(folders: list[Path]) -> Path:
    """Return the first folder that can be written, made; one that cannot be is reported."""
    for candidate in folders:
        try:
            candidate.mkdir(parents=True, exist_ok=True)
            probe = candidate / f".probe-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = f"{candidate} cannot be written ({error.strerror})"
            if candidate == folders[-1]:
                raise UserError(f"{reason}; choose another folder with `data.cache_dir`.") from None
            rank_zero_info(f"{reason}: packed images go to {folders[-1]} instead.")
        else:
            return candidate
    raise AssertionError("no folder")


def _verify(store: PackedStore, table: pd.DataFrame, source: PatchSource, part: str) -> None:
    """Hash all packed pixels and all image files again.

    Raises:
        ValueError: some of them are not what was packed.
    """
    offset = int(getattr(store.images, "offset", 0))
    packed, files, row = 0, 0, 0
    bar = tqdm(total=len(table), desc=f"verifying {part}", unit=" patches", unit_scale=True)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(dir=_scratch(store.path))))
        tasks = cut_tasks(store.path, offset, stack.enter_context(source.open(table, scratch)))
        stack.enter_context(bar)
        map_on_cores = stack.enter_context(process_map(len(table) // PER_PROCESS))
        for of_pack, of_files in map_on_cores(hash_chunk, tasks):
            recorded = store.pixel_sha1[row : row + len(of_pack)]
            row += len(of_pack)
            packed += int((recorded != of_pack).sum())
            files += int((recorded != of_files).sum())
            bar.update(len(of_pack))
    if packed or files:
        raise ValueError(f"{packed:,} packed patches and {files:,} image files are not what was packed")


def _scratch(path: Path) -> Path | None:
    """Return a folder for temporary files: beside the packed images, or the system's where that is read-only."""
    return path.parent.parent if os.access(path.parent.parent, os.W_OK) else None
