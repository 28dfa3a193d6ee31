"""Errors that users can correct, and messages on stderr.

Messages write options in backticks, with their names in Python and YAML: `` `model.lr` ``. The command line shows them
as flags. Nothing else in a message is in backticks.
"""

import logging
import math
import sys
from numbers import Integral, Real
from typing import Any, TextIO

from lightning_utilities.core.rank_zero import rank_zero_only


class UserError(Exception):
    """An error that the user can correct, in an option, a file, a folder or a checkpoint.

    The message is one line that names the file or option and the correction. The command line prints it after `error:`
    and exits with status 2.
    """


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which notebooks and tests replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The stream to write to."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Do nothing; the stream is always `sys.stderr`."""


logger = logging.getLogger("pcam_lightning")
if not logger.handlers:
    logger.addHandler(_StderrHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def shorten(text: str) -> str:
    """Shorten a text from a user file for a message."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def is_rank_zero() -> bool:
    """Return whether this is the first process or the only one."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def rank_zero_info(text: str) -> None:
    """Log one line, in the first process only."""
    if is_rank_zero():
        logger.info(text)


def rank_zero_warn(text: str) -> None:
    """Log one line that starts with `warning:`, in the first process only."""
    if is_rank_zero():
        logger.warning(f"warning: {text}")


def check_number(option: str, value: Any, least: float = 0, *, whole: bool = False) -> None:
    """Check that a value is None or a finite number above a lower bound.

    Args:
        option: name of the option, such as model.lr.
        value: value of the option.
        least: smallest allowed value.
        whole: whether the value must be an integer.

    Raises:
        UserError: the value is invalid.
    """
    if value is None:
        return
    kind = "an integer" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise UserError(f"`{option}` {value!r}: should be {kind}, not {type(value).__name__}.")
    if not (math.isfinite(value) and float(value) >= least):
        raise UserError(f"`{option}` {value}: should be {kind} of at least {least}.")
