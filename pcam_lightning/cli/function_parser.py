"""The parser of commands whose options are the arguments of a function of the library."""

from collections.abc import Callable, Collection
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from pcam_lightning.cli.arguments import PROG, one_spelling, option_names, parse, say_other_spelling
from pcam_lightning.cli.command import FunctionCommand, data_options
from pcam_lightning.utils.system import expand_home


def parse_function(name: str, command: FunctionCommand, args: list[str]) -> Namespace:
    """Parse what follows the name of a command whose options are the arguments of a function.

    Raises:
        UserError: see `parse`.
    """
    parser = function_parser(name, command)
    options: Namespace = parse(parser, one_spelling(args, option_names(parser), data_options()), name)
    return expand_home(options)  # type: ignore[no-any-return]


def function_parser(name: str, command: FunctionCommand) -> ArgumentParser:
    """Return the parser of a command whose options are the arguments of a function."""
    function = command.declared()
    parser = ArgumentParser(prog=f"{PROG} {name}", description=help_line(function), exit_on_error=False)
    texts = {one.arg_name: one.description for one in docstring_parser.parse(function.__doc__ or "").params}
    kinds = {name: one.annotation for name, one in signature(function).parameters.items()}
    # `a b`, and not what jsonargparse makes of a list, `[a,b]`.
    lists = {name for name, kind in kinds.items() if kind == list[Path]}
    for argument in lists:
        parser.add_argument(argument, type=Path, nargs="+", help=texts[argument])
    repeated = {name for name, kind in kinds.items() if kind == Collection[str]}
    for option in repeated:
        parser.add_argument(
            f"--{option}", action="append", default=[], metavar="NAME", help=f"{texts[option]} Repeatable."
        )
    parser.add_function_arguments(function, as_positional=True, skip={*lists, *repeated})
    if command.more is not None:
        module, cls = command.more
        parser.add_class_arguments(getattr(import_module(f"pcam_lightning.{module}"), cls))
    for option, how in command.options.items():
        parser.add_argument(f"--{option}", **how)
    parser.set_defaults(dict(command.defaults))
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:  # `--whole` alone, and `--whole true`
            action.nargs, action.const = "?", True
    say_other_spelling(parser)
    return parser


def help_line(function: Callable[..., Any]) -> str:
    """Return the first line of a function's docstring."""
    return (function.__doc__ or "").strip().splitlines()[0]
