"""The help of commands that take the options of a run: those that most people use, and the rest by group."""

from argparse import Action
from collections.abc import Callable
from functools import partial

from jsonargparse import ArgumentParser, DefaultHelpFormatter

GROUPS = ("data", "model", "trainer")
# With the options outside of these groups, they take three screens of 50 lines and 120 columns.
_SHOWN = {
    "data": "root batch_size val_fraction slides holdout folds fold cache_dir verify",
    "model": "backbone weights crop size freeze_epochs optimizer lr weight_decay tta augment.d4 augment.stain",
    "trainer": "max_epochs accelerator devices precision limit_train_batches default_root_dir",
}
_FLAGS = {f"--{group}.{name}" for group, names in _SHOWN.items() for name in names.split()}
EPILOG = "All options of a group: " + ", ".join(f"--help.{group}" for group in GROUPS) + "."


class _Formatter(DefaultHelpFormatter):
    """Shows some of the options.

    Args:
        prog: name of the program.
        shows: takes an option, such as --data.root, and returns whether it is shown.
    """

    def __init__(self, prog: str, shows: Callable[[str], bool]) -> None:
        super().__init__(prog)  # type: ignore[no-untyped-call]
        self._shows = shows

    def add_argument(self, action: Action) -> None:
        """Add an option to the help if it is shown."""
        if self._shows(action.option_strings[-1].removesuffix("+")):
            super().add_argument(action)


def short_help(prog: str) -> DefaultHelpFormatter:
    """Return the formatter of a help with the options that most people use."""
    return _Formatter(prog, lambda flag: flag in _FLAGS or flag.removeprefix("--").partition(".")[0] not in GROUPS)


def group_help(parser: ArgumentParser, group: str) -> str:
    """Return the help of all options of a group, such as data."""
    before = parser.formatter_class
    parser.formatter_class = partial(  # type: ignore[assignment]
        _Formatter, shows=lambda flag: f"{flag}.".startswith(f"--{group}.")
    )
    try:
        return parser.format_help()
    finally:
        parser.formatter_class = before
