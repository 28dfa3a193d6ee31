"""Image files -> a pack: one array of all patches, written whole or not at all, and the hash of each."""

import hashlib
import os
import shutil
import uuid
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, say, warn
from pcam_lightning.official import open_images, read_images
from pcam_lightning.pixels import BYTES, SHAPE, read_pixels
from pcam_lightning.table import looks_like_sha1, without_suffix
from pcam_lightning.workers import workers

_CHUNK = 128  # patches that one task decodes and writes: 3.5 MB
_HOPELESS = 512  # files refused for one reason, without one that can be used, after which packing stops


def pack(table: pd.DataFrame, root: Path, folder: Path, part: str) -> None:
    """Decode every image of the table into `folder`, which appears whole at the end; called under the part's lock."""
    found = [path for path in folder.parent.glob(f"{part}-*") if path.is_dir()]
    stale = [path for path in found if path.suffix != ".tmp"]
    for path in set(found) - set(stale):  # what a killed pack left
        shutil.rmtree(path, ignore_errors=True)
    if stale:
        say(f"{folder.parent}: what is packed there is of other files, or of another version; packing again.")
    _check_space(folder.parent, len(table) + _unpacked(table), stale)
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        pixel_sha1 = _write_images(temporary / "images.npy", table, root, part)
        index = pd.DataFrame({"id": table["id"], "pixel_sha1": pixel_sha1})
        content = index.to_csv(index=False, lineterminator="\n").encode()
        write_whole(temporary / "index.csv", content)
        write_whole(temporary / "index.sha256", hashlib.sha256(content).hexdigest())
        temporary.rename(folder)
        for path in stale:
            remove_pack(path)
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
    check_ids(index, root, part, error=False)


def _unpacked(table: pd.DataFrame) -> int:
    """Count the patches that lie in compressed files, which are unpacked beside the array while it is written."""
    return int(table["path"].str.endswith(".gz").sum()) if "place" in table else 0


def _check_space(cache: Path, patches: int, stale: list[Path]) -> None:
    """Refuse to pack where the disk has no room; older packs go first where they take it.

    Args:
        cache: the folder of the packs.
        patches: for which there must be room.
        stale: older packs.

    Raises:
        UserError: there is no room.
    """
    need = patches * BYTES
    if stale and need > shutil.disk_usage(cache).free:
        for path in stale:
            remove_pack(path)
    free = shutil.disk_usage(cache).free
    if need > free:
        raise UserError(
            f"{cache}: packing needs {need / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; make room, or name "
            "another folder with --data.cache_dir."
        )


def remove_pack(folder: Path) -> None:
    """Remove a pack, all of it or nothing.

    Windows does not let go of one that another process has mapped: it stays, and a later pack removes it.
    """
    unused = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    with suppress(OSError):
        folder.rename(unused)
        shutil.rmtree(unused, ignore_errors=True)


def _write_images(target: Path, table: pd.DataFrame, root: Path, part: str) -> list[str]:
    with target.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (len(table), *SHAPE)}
        )
        offset = file.tell()
        file.truncate(offset + len(table) * BYTES)
    pixel_sha1: list[str] = []
    refused: list[tuple[str, str]] = []
    bar = tqdm(total=len(table), desc=f"packing {part}", unit=" patches", unit_scale=True)
    with ExitStack() as stack:
        tasks = cut_tasks(target, offset, table, root, stack, target.parent)
        stack.enter_context(bar)
        map_on_cores = stack.enter_context(workers(len(tasks)))
        for hashes, complaints in map_on_cores(_pack_chunk, tasks):
            pixel_sha1 += hashes
            refused += complaints
            bar.update(len(hashes))
            if len(refused) == len(pixel_sha1) >= _HOPELESS and len({reason for _, reason in refused}) == 1:
                break
    if refused:
        raise UserError(_describe(refused, len(pixel_sha1), len(table), root))
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return pixel_sha1


def _describe(refused: list[tuple[str, str]], tried: int, count: int, root: Path) -> str:
    """Return the complaint about image files that cannot be used, three of them by name."""
    named = "; ".join(f"{name} ({reason})" for name, reason in refused[:3])
    more = f"; and {len(refused) - 3:,} more" if len(refused) > 3 else ""
    stopped = f" The first {tried:,} are all refused, so that the rest was not read." if tried < count else ""
    return (
        f"{root}: {len(refused):,} of {tried:,} image files cannot be used: {named}{more}.{stopped} Download or unzip "
        "them again, cut patches of your own to size, or take them out of the CSV."
    )


class Task(NamedTuple):
    """Some patches to write at an offset of the array's file: image files, or rows of PCam's own file."""

    target: str
    offset: int
    root: str
    paths: list[str]
    rows: tuple[int, int] | None  # in PCam's own file, from the first to before the last
    name: str  # of PCam's file


def cut_tasks(
    target: Path, offset: int, table: pd.DataFrame, root: Path, stack: ExitStack, scratch: Path
) -> list[Task]:
    """Cut the table into tasks; what PCam's own files need to be read lasts as long as the stack."""
    files = {}
    if "place" in table:
        for name, count in table["path"].value_counts().items():
            files[name] = os.fspath(stack.enter_context(open_images(root / str(name), count, scratch)))
    tasks, done = [], 0
    for name, rows in table.groupby("path", sort=False) if files else [("", table)]:
        for start in range(0, len(rows), _CHUNK):
            stop = min(start + _CHUNK, len(rows))
            paths = [files[name]] if files else list(rows["path"][start:stop])
            span = (start, stop) if files else None
            tasks.append(Task(os.fspath(target), offset + done * BYTES, os.fspath(root), paths, span, str(name)))
            done += stop - start
    return tasks


def read_chunk(task: Task) -> tuple[bytearray, dict[int, tuple[str, str]]]:
    """Read a task's patches; return their bytes, black for a bad file, and name and reason of each bad one."""
    refused: dict[int, tuple[str, str]] = {}
    buffer = bytearray()
    if task.rows is not None:
        start, stop = task.rows
        try:
            return bytearray(read_images(task.paths[0], start, stop)), refused
        except OSError as error:
            reason = f"rows {start:,} to {stop - 1:,} are damaged: {error}"
            return bytearray((stop - start) * BYTES), dict.fromkeys(range(stop - start), (task.name, reason))
    for number, path in enumerate(task.paths):
        try:
            buffer += read_pixels(os.path.join(task.root, path))
        except Exception as error:  # whatever a decoder raises over foreign bytes is a complaint about that file
            refused[number] = path, str(error) or type(error).__name__
            buffer += bytes(BYTES)
    return buffer, refused


def hash_patches(pixels: bytes | bytearray) -> list[str]:
    """Return the SHA-1 of each patch of some in a row."""
    view = memoryview(pixels)
    return [hashlib.sha1(view[at : at + BYTES]).hexdigest() for at in range(0, len(view), BYTES)]


def _pack_chunk(task: Task) -> tuple[list[str], list[tuple[str, str]]]:
    """Write a task's patches; return the hash of each, and name and reason of each bad file."""
    buffer, refused = read_chunk(task)
    view = memoryview(buffer)
    with open(task.target, "rb+", buffering=0) as file:
        file.seek(task.offset)
        while view:  # a raw write may stop short
            view = view[file.write(view) :]
    return hash_patches(buffer), list(refused.values())


def check_ids(index: pd.DataFrame, root: Path, part: str, *, error: bool) -> None:
    """Compare ids that look like a SHA-1 with that of their pixels.

    Args:
        index: one row a patch, with columns `id` and `pixel_sha1`.
        root: the data folder.
        part: name of the store.
        error: whether a difference is an error, or a warning.

    Raises:
        UserError: some differ, and that is an error.
    """
    ids = without_suffix(index["id"])
    wrong = index.loc[looks_like_sha1(ids) & (ids != index["pixel_sha1"]), "id"]
    if wrong.empty:
        return
    message = (
        f"{root}: {len(wrong):,} of {len(index):,} ids of {part} are not the SHA-1 of their pixels, as Kaggle's are: "
        f"{', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}"
    )
    if error:
        raise UserError(f"{message}. Download those files again, or leave --data.verify out to use them as they are.")
    warn(f"{message}. A re-encoded or damaged copy? It is used as it is.")
