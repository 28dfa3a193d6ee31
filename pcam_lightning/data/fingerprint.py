"""A hash of the image files' metadata and of a sample of their bytes, which shows whether they have changed."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from pcam_lightning.utils.errors import UserError

SAMPLES = 256  # reads of file content, spread evenly over all files: 1 MB in all
SAMPLE_BYTES = 4096


def fingerprint_files(table: pd.DataFrame, root: Path, version: int) -> str:
    """Hash the metadata of every image file and a sample of the files' bytes.

    Size and modification time are not enough: all of Kaggle's files have one size, and `unzip -o` and `cp -p` restore
    the time. So the status-change time (`st_ctime_ns`) and the inode number count too. An overwrite changes the former,
    a replaced file has another inode, and neither can be set by a program. Windows has the creation time in place of
    the status-change time: there an overwrite that restores the modification time shows in the sample alone.

    The price is that some unchanged files look changed, and are packed again: a copied data folder, one whose owner,
    permissions or hard links were changed, and one on a network mount that numbers its files anew at each mount (sshfs
    and mounts of object stores do; NFS and SMB pass on the server's numbers). A remount as read-only changes nothing.
    Packing costs minutes, and training on other pixels than those in the folder costs the result.

    One stat a file takes about a second for 220,025 files, the sample some milliseconds.

    Args:
        table: one row a patch, sorted by `id`, with `path` (below `root`); many patches may lie in one file.
        root: the data folder.
        version: of the packed format, which counts too.

    Returns:
        SHA-256, hexadecimal.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256(f"format {version}\n".encode())
    base = os.fspath(root)
    files: list[tuple[str, int]] = []  # path and size of each file
    lines: list[str] = []
    before = ""
    try:
        for patch_id, path in zip(table["id"].tolist(), table["path"].tolist(), strict=True):
            if path != before:
                status = os.stat(os.path.join(base, path))
                # One f-string a file: this loop is what a warm start waits for.
                known = f"{path}\t{status.st_size}\t{status.st_mtime_ns}\t{status.st_ctime_ns}\t{status.st_ino}\n"
                files.append((path, status.st_size))
                before = path
            lines.append(f"{patch_id}\t{known}")
        for content in _sample(files, base):
            digest.update(content)
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}). If another program was changing the folder, run the "
            "command again."
        ) from None
    digest.update("".join(lines).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _sample(files: list[tuple[str, int]], base: str) -> Iterator[bytes]:
    """Yield some bytes of files, `SAMPLES` times at most: from every file where there are few."""
    count = min(len(files), SAMPLES)
    reads = SAMPLES // max(count, 1)
    for number in range(count):
        path, size = files[number * len(files) // count]
        with open(os.path.join(base, path), "rb", buffering=0) as file:
            for read in range(reads):
                file.seek(size * (2 * read + 1) // (2 * reads))
                yield file.read(SAMPLE_BYTES)
