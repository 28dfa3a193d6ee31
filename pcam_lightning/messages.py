"""What the project says to its user: a line, a warning, and the one error that a user can mend."""

import sys

from lightning_utilities.core.rank_zero import rank_zero_only


class UserError(Exception):
    """Something the user got wrong: a flag, a file, a folder, a checkpoint.

    The message is one line. It names the file and the way on; the command line prints it after `error:` and ends
    with exit status 2.
    """


def say(text: str) -> None:
    """Print one line on stderr, on the first process of several alone."""
    if getattr(rank_zero_only, "rank", 0) in (0, None):
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print one line on stderr, marked as a warning."""
    say(f"warning: {text}")
