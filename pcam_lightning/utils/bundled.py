"""The trained networks included in the package."""

import os
from pathlib import Path

from pcam_lightning.utils.errors import UserError

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
BUNDLED = ("pcam", "pcam-small")


def bundled_file(name: str | os.PathLike[str]) -> Path | None:
    """Return the file of a network included in the package, or None for other names.

    Args:
        name: `pcam` or `pcam-small`, or the path of its file.

    Raises:
        UserError: the working folder contains a checkpoint, a run or a cross-validation with the same name.
    """
    path = Path(name)
    if os.fspath(path) in BUNDLED:
        if path.is_file() or (path / "checkpoints").is_dir() or (path / "oof.csv").is_file():
            raise UserError(
                f"{path}: this name refers to a network included in the package and to a path in the working folder; "
                f"rename the path or use {path.absolute()}."
            )
        return WEIGHTS / f"{path}.safetensors"
    real = Path(os.path.realpath(path.expanduser()))  # does not fail for a symbolic link to itself
    return next((file for one in BUNDLED if (file := WEIGHTS / f"{one}.safetensors") == real), None)
