"""Command line arguments: the order of configs and flags, and suggestions for unknown options."""

import json
import re
import sys
from argparse import ArgumentParser
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from pcam_lightning.training.lightning_internals import option_names
from pcam_lightning.training.options import expand_home
from pcam_lightning.utils.errors import UserError

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
    flags = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("-c", "--config", action="append", default=[])
    found, rest = flags.parse_known_args(args)
    paths: list[str] = [expand_home(path) for path in found.config]
    return [*(f"--config={path}" for path in paths), *rest], paths


def modules_to_import(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the modules that arguments and their configs name by `import`, and the arguments without that flag."""
    flags = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
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
    flags = ArgumentParser(add_help=False, allow_abbrev=False)
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


def suggest_options(message: str, parser: ArgumentParser, command: str) -> str:
    """Return what to add to a message about an unknown option: the options of its group, or the nearest one.

    Args:
        message: of the parser.
        parser: of the command.
        command: its name.
    """
    unknown = re.search(r"unrecognized arguments: (--[\w.]+)", message)
    if unknown is None:
        return ""
    options = {name.removesuffix("+") for name in option_names(parser)} - _NO_VALUES
    group, _, name = unknown[1].rpartition(".")
    of_group = sorted(one.rpartition(".")[2] for one in options if one.rpartition(".")[0] == group)
    if group and of_group:
        return f"; {group} has {', '.join(of_group)}."
    leaves = {one.removeprefix("--").rpartition(".")[2]: one for one in options}
    near = [] if group else get_close_matches(name.removeprefix("--"), leaves, 1)
    return f"; did you mean {leaves[near[0]]}?" if near else f"; {command} --help lists the options."


def print_json(value: Any) -> None:
    """Print a result as JSON on stdout, which has nothing else."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
