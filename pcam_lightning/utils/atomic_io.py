"""Atomic writing of files, and the cache folder."""

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
    """Open a temporary file beside `path`, and rename it at the end: a reader sees the old file or the new one.

    Args:
        path: the file; its folder must be there.

    Raises:
        OSError: the folder is missing, read-only or full. Whatever stood at `path` is still there; `filename` is it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # when a disk is full, Python gives no file name, and numpy no error number
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; text is written as UTF-8. See `atomic_open`."""
    with atomic_open(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside `path`, and rename it at the end; after an error nothing is left of it.

    Args:
        path: the folder to make; one that is there must be empty.

    Raises:
        FileExistsError: there is something at `path`.
        OSError: it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, "is there already, and not an empty folder", os.fspath(path))
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
    """Give a file a second name atomically; a copy where the file system has no links.

    Args:
        source: a file that is only ever replaced, never written into.
        path: the second name, in the same folder or another one; what stood there is replaced.

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
    """Return the user's own cache folder, below `$XDG_CACHE_HOME` or `~/.cache`; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "pcam_lightning"
