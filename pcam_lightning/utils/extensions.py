"""User modules that add entries to the tables of this package."""

import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from pcam_lightning.utils.errors import UserError


def import_modules(names: Any) -> None:
    """Import modules by name, from installed packages, PYTHONPATH, or the working folder.

    Args:
        names: list of module names, such as `my_losses` for my_losses.py.

    Raises:
        UserError: `names` is not a list of names, or a module cannot be imported.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"`import` {names}: should be a list of module names, such as [my_losses].")
    for name in names:
        if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
            sys.path.append(here)
        try:
            import_module(name)
        except Exception as error:  # the module can raise any type
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = "" if "importlib" in place.filename else f", {place.filename}, line {place.lineno}"
            raise UserError(
                f"`import` {name}: cannot be imported ({type(error).__name__}: {error}{where}); modules are searched "
                "in installed packages, PYTHONPATH and the working folder."
            ) from error
