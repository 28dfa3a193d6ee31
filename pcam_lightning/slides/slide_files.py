"""Slide files: find slides in a folder, find the files of one slide, and hash its content."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import openslide

from pcam_lightning.utils.errors import UserError

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".dcm", ".qptiff")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp")  # images without a pyramid
FOREIGN = (
    ".czi",
    ".vsi",
    ".isyntax",
    ".lif",
    ".nd2",
    ".kfb",
    ".sdpc",
    ".tmap",
    ".jp2",
)  # formats that OpenSlide cannot read, or only in part
CONVERT = "Convert it to a pyramidal TIFF, with QuPath (as OME-TIFF) or Bio-Formats' bfconvert."
_INDICES = (".vms", ".vmu")  # Hamamatsu index files, which name the image files beside them
_RESULTS = {"tissue.png", "overlay.png", "thumbnail.jpg", "heatmap.tif"}  # images that `heatmap` writes
_WHOLE = 2**26  # bytes: larger files are hashed by blocks
_BLOCK, _BLOCKS = 2**16, 64


def is_slide(path: Path) -> bool:
    """Return whether a file has the suffix of a slide or an image, or a format that OpenSlide recognizes."""
    if not path.is_file() or path.name.startswith("."):  # such as macOS's ._ files
        return False
    return path.suffix.lower() in (*SUFFIXES, *IMAGES, *FOREIGN) or bool(openslide.OpenSlide.detect_format(path))


def find_slides(folder: Path) -> list[Path]:
    """Return the slides in a folder and its subfolders, sorted by path; unreadable slides are included.

    Results of `heatmap` are excluded. So are files that belong to another slide: the folder of a MIRAX slide, further
    files of a DICOM series, and the images of a .vms.
    """
    found: dict[str, Path] = {}
    parts: set[Path] = set()
    for path in filter(is_slide, _walk(folder)):
        found.setdefault(_series(path), path)
        if path.suffix.lower() in _INDICES:
            parts.update(companions(path))
    return [path for path in found.values() if path not in parts]


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder already visited, or a cycle
            folders.clear()
            continue
        seen.add(real)
        if "tissue.png" in files and (Path(place) != folder or "slide.json" in files):
            files = [name for name in files if name not in _RESULTS]
        slides = {Path(name).stem for name in files if name.lower().endswith(".mrxs")}
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in slides)
        yield from (Path(place) / name for name in sorted(files))


def _series(path: Path) -> str:
    """Return the identifier that all files of a DICOM series share, or the path of any other file."""
    if openslide.OpenSlide.detect_format(path) == "dicom":
        with suppress(openslide.OpenSlideError), openslide.OpenSlide(path) as slide:  # a damaged file stands for itself
            return slide.properties.get("openslide.quickhash-1", str(path))
    return str(path)


def companions(path: Path) -> list[Path]:
    """Return the other files that belong to a slide, sorted by name."""
    suffix, siblings = path.suffix.lower(), path.parent
    if suffix == ".mrxs" and path.with_suffix("").is_dir():
        return sorted(file for file in path.with_suffix("").iterdir() if file.is_file())
    if suffix in _INDICES:
        named = path.read_bytes()
        return sorted(file for file in siblings.iterdir() if file != path and os.fsencode(file.name) in named)
    if openslide.OpenSlide.detect_format(path) == "dicom":
        series = _series(path)
        return sorted(
            file for file in siblings.iterdir() if file != path and file.is_file() and _series(file) == series
        )
    return []


def content_sha256(path: Path) -> str:
    """Return a hash of a slide's content that is independent of its path and date.

    Hashes OpenSlide's quickhash-1, if any, and the content of all files. Plain images and files of up to 64 MB are
    hashed as a whole, larger files by their size and 64 blocks of 64 kB.

    Raises:
        UserError: the slide cannot be opened.
    """
    digest = hashlib.sha256()
    plain = openslide.OpenSlide.detect_format(path) is None
    if not plain:
        try:
            with openslide.OpenSlide(path) as slide:
                digest.update(slide.properties.get("openslide.quickhash-1", "").encode())
        except openslide.OpenSlideError as error:
            raise UserError(f"{path}: cannot be read as a slide ({error}).") from None
    for file in (path, *companions(path)):
        size = file.stat().st_size
        digest.update(f"{file.name if file != path else ''} {size} ".encode())
        with file.open("rb") as stream:
            if plain or size <= _WHOLE:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
                continue
            for number in range(_BLOCKS):
                stream.seek(number * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def dates(path: Path) -> list[int]:
    """Return the modification times, in ns, of the files that `content_sha256` does not read as a whole."""
    stats = [file.stat() for file in (path, *companions(path))]
    return [stat.st_mtime_ns for stat in stats if stat.st_size > _WHOLE]
