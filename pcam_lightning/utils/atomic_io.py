"""Atomic writes, and the cache folder."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and rename it at the end, so that readers never see a partial file.

    Args:
        path: file to write; its folder must exist.

    Raises:
        OSError: the folder is missing, read-only or full. An existing file at `path` is kept. `filename` is `path`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # for a full disk, Python sets no file name and numpy sets no error number
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file atomically, see `atomic_open`; text is encoded as UTF-8."""
    with atomic_open(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Create a temporary folder beside `path` and rename it at the end; it is removed after an error.

    Args:
        path: folder to create; an existing folder must be empty.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
        OSError: the folder cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, "exists and is not an empty folder", os.fspath(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def atomic_link(source: Path, path: Path) -> None:
    """Create a hard link atomically, or a copy if the file system does not support links.

    Args:
        source: file that is only replaced as a whole, never modified.
        path: path of the link; an existing file is replaced.

    Raises:
        OSError: the folder is missing, read-only or full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return the cache folder of the user, below `$XDG_CACHE_HOME` or `~/.cache`; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "pcam_lightning"
