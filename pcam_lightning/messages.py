"""What the project says to its user: a line, a warning, and the one error that a user can mend."""

import math
import sys
from numbers import Integral, Real
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only


class UserError(Exception):
    """Something the user got wrong: a flag, a file, a folder, a checkpoint.

    The message is one line. It names the file and the way on; the command line prints it after `error:` and ends
    with exit status 2.
    """


def shorten(text: str) -> str:
    """Cut a text from a user's file to a length that a message can hold."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def say(text: str) -> None:
    """Print one line on stderr, on the first process of several alone."""
    if getattr(rank_zero_only, "rank", 0) in (0, None):
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print one line on stderr, marked as a warning."""
    say(f"warning: {text}")


def check_number(option: str, value: Any, least: float = 0, *, whole: bool = False) -> None:
    """Refuse a value that is not a number, not finite or too small; None is accepted.

    Args:
        option: how the user knows it, such as --model.lr.
        value: what was given.
        least: the lowest value that is allowed.
        whole: whether it must be an integer.

    Raises:
        UserError: it is refused.
    """
    if value is None:
        return
    kind = "an integer" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise UserError(f"{option} {value!r}: should be {kind}, not {type(value).__name__}.")
    if not (math.isfinite(value) and float(value) >= least):
        raise UserError(f"{option} {value}: should be {kind} from {least} up.")
