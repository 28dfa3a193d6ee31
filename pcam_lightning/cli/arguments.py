"""Command line arguments: their order, their names, suggestions for unknown ones."""

import argparse
import json
import re
import sys
from argparse import ArgumentError
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

import pcam_lightning
from pcam_lightning import __version__
from pcam_lightning.cli.command import RunCommand, data_options
from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.system import expand_home

PROG = "python -m pcam_lightning"
_MOST = 100_000  # values in a config
_NO_VALUES = {"--help", "--config", "--data", "--model", "--trainer"}  # nothing that a mistyped option may have meant
_OPTION = re.compile(r"`([a-z_][a-z_0-9]*(?:\.[a-z_0-9]+)*)`")  # not a class, as Lightning quotes them


def options_as_flags(text: str) -> str:
    """Return a message with the options that it names in backticks as flags."""
    return _OPTION.sub(r"--\1", text)


def configs_first(args: list[str]) -> tuple[list[str], list[str]]:
    """Put each -c first, as --config=PATH, and return the paths too.

    A config replaces what stands before it; at the start it leaves the last word to flags, wherever they stand.
    """
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("-c", "--config", action="append", default=[])
    found, rest = flags.parse_known_args(args)
    paths: list[str] = [expand_home(path) for path in found.config]
    return [*(f"--config={path}" for path in paths), *rest], paths


def modules_to_import(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the modules that arguments and their configs name by `import`, and the arguments without that flag."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("--import", dest="modules", action="append", default=[], type=yaml.safe_load)
    found, rest = flags.parse_known_args(args)
    named = []
    for path in map(Path, configs_first(rest)[1]):
        check_config(path)
        named.append(yaml.safe_load(path.read_text(encoding="utf-8")).get("import") or [])
    every = [one for each in (*named, *found.modules) for one in (each if isinstance(each, list) else [each])]
    return [name for number, name in enumerate(every) if name not in every[:number]], rest


def without_option(args: list[str], option: str) -> list[str]:
    """Return the arguments without an option and its value."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument(option)
    return flags.parse_known_args(args)[1]


def check_config(path: Path) -> None:
    """Check that a config file holds options.

    Raises:
        UserError: it cannot be read, is no YAML, holds no mapping, or one without an end.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: no config to read ({error.strerror}); those of the project are in configs/."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no options; configs/base.yaml shows how they are written.")
    values: list[Any] = [content]
    count = 0
    while values and count <= _MOST:  # an anchor may stand within what it names, or double it again and again
        value = values.pop()
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        count += 1
    if values:
        raise UserError(f"{path}: more than {_MOST:,} values; does an anchor (&) in it refer to itself?")


def check_flags(args: list[str], options: Collection[str], command: str) -> None:
    """Check the names of flags before seconds are spent on importing what checks their values.

    Args:
        args: what follows the command's name.
        options: of the command, such as --data.root; those below them, such as --trainer.callbacks.patience, are not
            checked.
        command: its name.

    Raises:
        UserError: one is unknown; similar ones are named.
    """
    flags = {arg: arg.partition("=")[0].removesuffix("+") for arg in args if arg.startswith("--")}
    # The parsers accept the beginning of a name.
    known = {flag for flag in flags.values() for one in options if one.startswith(flag) or flag.startswith(f"{one}.")}
    if wrong := [arg for arg, flag in flags.items() if flag not in known]:
        raise UserError(
            f"unrecognized arguments: {' '.join(wrong)}{suggest_options(flags[wrong[0]], options, command)}"
        )


def suggest_options(unknown: str, options: Collection[str], command: str) -> str:
    """Return what to add to a message about an unknown option: the options of its group, or the nearest one.

    Args:
        unknown: such as --lr.
        options: of the command.
        command: its name.
    """
    options = set(options) - _NO_VALUES
    group, _, name = unknown.rpartition(".")
    of_group = sorted(one.rpartition(".")[2] for one in options if one.rpartition(".")[0] == group)
    if group and of_group:
        return f"; {group} has {', '.join(of_group)}."
    leaves = {one.removeprefix("--").rpartition(".")[2]: one for one in options}
    near = [] if group else get_close_matches(name.removeprefix("--"), leaves, 1)
    return f"; did you mean {leaves[near[0]]}?" if near else f"; {command} --help lists the options."


def print_json(value: Any) -> None:
    """Print a result as JSON on stdout, which has nothing else."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def parse(parser: Any, args: list[str], command: str) -> Any:
    """Parse arguments.

    Raises:
        UserError: an option is unknown or of another type; similar ones are named.
    """
    try:
        return parser.parse_args(args)
    except ArgumentError as error:
        unknown = re.search(r"unrecognized arguments: (--[\w.]+)", str(error))
        names = {name.removesuffix("+") for name in option_names(parser)}
        raise UserError(f"{error}{suggest_options(unknown[1], names, command) if unknown else ''}") from None


def option_names(parser: Any) -> set[str]:
    """Return the long options of a parser, which argparse has no public way to list."""
    return {name for action in parser._actions for name in action.option_strings if name.startswith("--")}


def one_spelling(args: list[str], options: Collection[str], of_data: Collection[str]) -> list[str]:
    """Spell the options of a data folder as a command does, since `--root` and `--data.root` mean the same everywhere.

    Args:
        args: what follows the command's name.
        options: of the command, such as --root or --data.root.
        of_data: names of the options of a data folder, such as root.
    """

    def spell(found: re.Match[str]) -> str:
        ways = [f"--{found[1] or ''}{found[2]}", f"--{found[2]}", f"--data.{found[2]}"]
        return next((way for way in ways if found[2] in of_data and way in options), ways[0])

    return [re.sub(r"^--(data\.)?(\w+)(?=[.=+]|$)", spell, arg) for arg in args]


def say_other_spelling(parser: Any) -> None:
    """Say in the help of the data folder's option that both spellings mean the same."""
    for action in parser._actions:
        if action.dest in ("root", "data.root"):
            other = {"root": "--data.root", "data.root": "--root"}[action.dest]
            action.help = f"{action.help.rstrip('.')}. {other} means the same."


def run_arguments(name: str, command: RunCommand, args: list[str]) -> list[str]:
    """Return what follows the name of a command that takes the options of a run, as its parser takes it.

    Raises:
        UserError: an option is unknown, see `check_flags`; or two checkpoints are named.
    """
    args = one_spelling(args, command.flags(), data_options())
    if command.ckpt_path == "required" and args and not args[0].startswith("-"):
        if any(arg.partition("=")[0] == "--ckpt_path" for arg in args):
            raise UserError(f"`ckpt_path`: {args[0]} is named already; name one run or checkpoint.")
        args = ["--ckpt_path", *args]
    check_flags(args, command.flags(), name)
    return args


def command_list(commands: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the parser of the program itself, whose help lists the commands.

    Args:
        commands: one line of help, by name.
    """
    parser = argparse.ArgumentParser(
        PROG, description=(pcam_lightning.__doc__ or "").splitlines()[0], exit_on_error=False
    )
    parser.add_argument("--version", action="version", version=f"pcam_lightning {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in commands.items():
        subparsers.add_parser(name, help=text, add_help=False)
    return parser
