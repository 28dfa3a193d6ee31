"""Image files -> one array of all patches and the hash of each, written atomically."""

import hashlib
import os
import shutil
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from pcam_lightning.data.chunks import PER_PROCESS, cut_tasks, pack_chunk
from pcam_lightning.data.csv_tables import looks_like_sha1, without_suffix
from pcam_lightning.data.image_io import BYTES, SHAPE
from pcam_lightning.data.sources import PatchSource
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.parallel import process_map

_HOPELESS = 512  # files refused for one reason, without one that can be used, after which packing stops


def pack(table: pd.DataFrame, source: PatchSource, folder: Path, part: str) -> None:
    """Decode every image of the table into `folder`, which appears whole at the end; called under the part's lock."""
    found = [path for path in folder.parent.glob(f"{part}-*") if path.is_dir()]
    stale = [path for path in found if path.suffix != ".tmp"]
    for path in set(found) - set(stale):  # what a killed pack left
        shutil.rmtree(path, ignore_errors=True)
    if stale:
        rank_zero_info(
            f"{folder.parent}: what is packed there is of other files, or of another version; packing again."
        )
    _check_space(folder.parent, len(table) + source.scratch_patches(table), stale)
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        pixel_sha1 = _write_images(temporary / "images.npy", table, source, part)
        index = pd.DataFrame({"id": table["id"], "pixel_sha1": pixel_sha1})
        content = index.to_csv(index=False, lineterminator="\n").encode()
        atomic_write(temporary / "index.csv", content)
        atomic_write(temporary / "index.sha256", hashlib.sha256(content).hexdigest())
        temporary.rename(folder)
        for path in stale:
            remove_pack(path)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: packing failed ({error.strerror}); name another folder with `data.cache_dir`."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not is_resized(source):
        check_ids(index, source.root, part, error=False)


def is_resized(source: PatchSource) -> bool:
    """Return whether pixels are not those of the files, so that ids cannot be the SHA-1 of them."""
    return getattr(source, "resize", None) is not None


def _check_space(cache: Path, patches: int, stale: list[Path]) -> None:
    """Check for free disk space; older packs are removed first where that makes room.

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
            "another folder with `data.cache_dir`."
        )


def remove_pack(folder: Path) -> None:
    """Remove a pack, all of it or nothing.

    Windows does not let go of one that another process has mapped: it stays, and a later pack removes it.
    """
    unused = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    with suppress(OSError):
        folder.rename(unused)
        shutil.rmtree(unused, ignore_errors=True)


def _write_images(target: Path, table: pd.DataFrame, source: PatchSource, part: str) -> list[str]:
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
        tasks = cut_tasks(target, offset, stack.enter_context(source.open(table, target.parent)))
        stack.enter_context(bar)
        map_on_cores = stack.enter_context(process_map(len(table) // PER_PROCESS))
        for hashes, complaints in map_on_cores(pack_chunk, tasks):
            pixel_sha1 += hashes
            refused += complaints
            bar.update(len(hashes))
            if len(refused) == len(pixel_sha1) >= _HOPELESS and len({reason for _, reason in refused}) == 1:
                break
    if refused:
        raise UserError(_describe(refused, len(pixel_sha1), len(table), source))
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return pixel_sha1


def _describe(refused: list[tuple[str, str]], tried: int, count: int, source: PatchSource) -> str:
    """Return the message about image files that cannot be used, three of them by name."""
    named = "; ".join(f"{name} ({reason})" for name, reason in refused[:3])
    more = f"; and {len(refused) - 3:,} more" if len(refused) > 3 else ""
    stopped = f" The first {tried:,} are all refused, so that the rest was not read." if tried < count else ""
    resizable = any(reason.endswith(("not 96 x 96", "JPEG image")) for _, reason in refused)
    hint = ", use `data.resize` for JPEG and other sizes," if resizable else ""
    if is_resized(source):
        hint = ", set `data.resize` and `data.mpp` to null for patches of 96 x 96 pixels,"
    return (
        f"{source.root}: {len(refused):,} of {tried:,} image files cannot be used: {named}{more}.{stopped} Download or "
        f"unzip them again{hint or ','} or remove them from the data."
    )


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
        raise UserError(f"{message}. Download those files again, or leave `data.verify` out to use them as they are.")
    rank_zero_warn(f"{message}. A re-encoded or damaged copy? It is used as it is.")
