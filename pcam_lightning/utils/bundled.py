"""The trained networks that come with the package, by name."""

import os
from pathlib import Path

from pcam_lightning.utils.errors import UserError

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
BUNDLED = ("pcam", "pcam-small")


def bundled_file(name: str | os.PathLike[str]) -> Path | None:
    """Return the file of a network that comes with the package; None where the name is no such network's.

    Args:
        name: `pcam` or `pcam-small`, or the path of its file.

    Raises:
        UserError: the working folder has a checkpoint, a run or a cross-validation of that name.
    """
    path = Path(name)
    if os.fspath(path) in BUNDLED:
        if path.is_file() or (path / "checkpoints").is_dir() or (path / "oof.csv").is_file():
            raise UserError(
                f"{path}: a network that comes with this package has that name, and so has what lies in the working "
                f"folder; rename it, or give its whole path, {path.absolute()}."
            )
        return WEIGHTS / f"{path}.safetensors"
    real = Path(os.path.realpath(path.expanduser()))  # which takes a symbolic link to itself too
    return next((file for one in BUNDLED if (file := WEIGHTS / f"{one}.safetensors") == real), None)
