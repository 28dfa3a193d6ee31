"""The error that a user can correct, and messages on stderr.

A message names an option as it is called in Python and YAML, in backticks: `` `model.lr` ``. The command line shows it
as a flag, and nothing else in a message stands in backticks.
"""

import logging
import math
import sys
from numbers import Integral, Real
from typing import Any, TextIO

from lightning_utilities.core.rank_zero import rank_zero_only


class UserError(Exception):
    """Something the user can correct: an option, a file, a folder, a checkpoint.

    The message is one line that names the file or option and what to do. The command line prints it after `error:` and
    ends with exit status 2.
    """


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time, which notebooks and tests replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The stream to write to."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Do nothing: it is always `sys.stderr`."""


logger = logging.getLogger("pcam_lightning")
if not logger.handlers:
    logger.addHandler(_StderrHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def shorten(text: str) -> str:
    """Cut a text from a user's file to a length that a message can hold."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def is_rank_zero() -> bool:
    """Return whether this is the first of several processes, or the only one."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def rank_zero_info(text: str) -> None:
    """Log one line, in the first of several processes only."""
    if is_rank_zero():
        logger.info(text)


def rank_zero_warn(text: str) -> None:
    """Log one line that starts with `warning:`, in the first of several processes only."""
    if is_rank_zero():
        logger.warning(f"warning: {text}")


def check_number(option: str, value: Any, least: float = 0, *, whole: bool = False) -> None:
    """Refuse a value that is not a number, not finite or too small; None is accepted.

    Args:
        option: its name, such as model.lr.
        value: its value.
        least: the lowest value that is allowed.
        whole: whether it must be an integer.

    Raises:
        UserError: it is refused.
    """
    if value is None:
        return
    kind = "an integer" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise UserError(f"`{option}` {value!r}: should be {kind}, not {type(value).__name__}.")
    if not (math.isfinite(value) and float(value) >= least):
        raise UserError(f"`{option}` {value}: should be {kind} of at least {least}.")
