"""Modules of the user's own, which add entries to the tables of this package."""

import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from pcam_lightning.utils.errors import UserError


def import_modules(names: Any) -> None:
    """Import modules by name; those of the working folder are found too, after what is installed.

    Args:
        names: list of the modules, such as `mine` for mine.py.

    Raises:
        UserError: that is no list of names, or one cannot be imported.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"`import` {names}: should be a list of names of modules, such as [mine].")
    for name in names:
        if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
            sys.path.append(here)
        try:
            import_module(name)
        except Exception as error:  # of whatever the module raises
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = "" if "importlib" in place.filename else f", {place.filename}, line {place.lineno}"
            raise UserError(
                f"`import` {name}: cannot be imported ({type(error).__name__}: {error}{where}); modules of the working "
                "folder, of PYTHONPATH and installed ones are found by their names."
            ) from error
