"""The command line: run one command, and report how it ended."""

import gc
import json
import logging
import signal
import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from types import ModuleType

from pcam_lightning.cli.arguments import (
    command_list,
    modules_to_import,
    options_as_flags,
    run_arguments,
)
from pcam_lightning.cli.commands import FUNCTION_COMMANDS
from pcam_lightning.cli.function_parser import help_line, parse_function
from pcam_lightning.cli.run_commands import RUN_COMMANDS
from pcam_lightning.utils.errors import UserError, logger
from pcam_lightning.utils.extensions import import_modules
from pcam_lightning.utils.signals import catch_signals, stop_if_asked


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: what follows the program's name; by default the process's own arguments.

    Returns:
        Exit status: 0, 2 where the user got something wrong, 130 after ctrl-C, 143 after SIGTERM.
    """
    args = sys.argv[1:] if args is None else args
    with catch_signals() as received, _flags_in_messages():
        try:
            _run(args)
            stop_if_asked()  # a signal that came after the last safe point
        except _errors_of_users() as error:
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
    gc.disable()  # until `_load`
    status = main()
    # Some libraries (triton 3.9) look for leaks at the end, and take what is still frozen for one.
    gc.unfreeze()
    gc.disable()
    sys.exit(status)


def _run(args: list[str]) -> None:
    name, rest = (args[0], args[1:]) if args else ("", [])
    modules, rest = modules_to_import(rest)
    import_modules(modules)
    if name in RUN_COMMANDS:
        command = RUN_COMMANDS[name]
        args = [*run_arguments(name, command, rest), *([f"--import={json.dumps(modules)}"] if modules else [])]
        command.function(_load(command.module, "cli.parser").PCamCLI(name, command, args))
    elif name in FUNCTION_COMMANDS:
        tool = FUNCTION_COMMANDS[name]
        options = parse_function(name, tool, rest)
        function = getattr(_load(tool.module), tool.function)
        with redirect_stdout(sys.stderr):  # stdout is for what `--json` prints
            found = function(**{one: value for one, value in options.as_dict().items() if one not in tool.options})
        if tool.show is not None:
            tool.show(found, options)
    else:
        texts = {name: command.help for name, command in RUN_COMMANDS.items()}
        texts |= {name: help_line(tool.declared()) for name, tool in FUNCTION_COMMANDS.items()}
        if not args or (name.startswith("-") and name not in ("-h", "--help", "--version")):
            what = f"unrecognized arguments: {name}; first comes a command" if args else "no command"
            raise UserError(f"{what}: one of {', '.join(texts)}; --help describes them.")
        command_list(texts).parse_args(args[:1])


def _load(*modules: str) -> ModuleType:
    """Import modules of this package, which takes seconds; return the last one.

    What torch and Lightning leave behind stays for good: looking through it for garbage takes a second of their import,
    and another one when the process ends.
    """
    loaded = [import_module(f"pcam_lightning.{module}") for module in modules]
    if not gc.isenabled():  # a program of its own, see `run`
        gc.freeze()
        gc.enable()
    return loaded[-1]


def _errors_of_users() -> tuple[type[Exception], ...]:
    """Return what is raised over what a user got wrong; Lightning raises nothing where it is not imported."""
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return (UserError, ArgumentError, *([] if lightning is None else [lightning.MisconfigurationException]))


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
