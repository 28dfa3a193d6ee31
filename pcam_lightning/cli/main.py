"""The command line: run one command, and report how it ended."""

import json
import logging
import signal
import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pcam_lightning.cli.arguments import modules_to_import, options_as_flags
from pcam_lightning.cli.commands import functions
from pcam_lightning.cli.parser import PCamCLI, command_list, function_parser, parse
from pcam_lightning.cli.run_commands import RUN_COMMANDS
from pcam_lightning.training.options import expand_home
from pcam_lightning.utils.errors import UserError, logger
from pcam_lightning.utils.extensions import import_modules
from pcam_lightning.utils.system import catch_signals, silence_third_party


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: what follows the program's name; by default the process's own arguments.

    Returns:
        Exit status: 0, 2 where the user got something wrong, 130 after ctrl-C, 143 after SIGTERM.
    """
    args = sys.argv[1:] if args is None else args
    silence_third_party()
    with catch_signals() as received, _flags_in_messages():
        try:
            _run(args)
        except (UserError, ArgumentError, MisconfigurationException) as error:
            print(f"error: {' '.join(options_as_flags(str(error)).split())}", file=sys.stderr)
            return 2
        except OSError as error:  # a full disk, a folder without permission: the user's to correct, whatever the place
            print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
            return 2
        except (KeyboardInterrupt, SystemExit) as stop:
            if received:
                return 128 + received[0]
            if isinstance(stop, KeyboardInterrupt):  # a callback's own
                return 128 + signal.SIGINT
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return 0


def run() -> None:
    """Run the command line as a program."""
    sys.exit(main())


def _run(args: list[str]) -> None:
    name, rest = (args[0], args[1:]) if args else ("", [])
    modules, rest = modules_to_import(rest)
    import_modules(modules)
    if command := RUN_COMMANDS.get(name):
        command.function(PCamCLI(name, command, [*rest, *([f"--import={json.dumps(modules)}"] if modules else [])]))
    elif function := functions().get(name):
        parser = function_parser(name, function)
        options: Namespace = expand_home(parse(parser, rest, name))
        function(**(options.data if name == "pack" else options).as_dict())
    else:
        texts = {name: command.help for name, command in RUN_COMMANDS.items()}
        texts |= {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in functions().items()}
        if not args:
            raise UserError(f"no command: one of {', '.join(texts)}; --help describes them.")
        command_list(texts).parse_args(args[:1])


@contextmanager
def _flags_in_messages() -> Iterator[None]:
    """Show the options that messages name in backticks as flags."""

    def convert(record: logging.LogRecord) -> bool:
        record.msg = options_as_flags(str(record.msg))
        return True

    logger.addFilter(convert)
    try:
        yield
    finally:
        logger.removeFilter(convert)
