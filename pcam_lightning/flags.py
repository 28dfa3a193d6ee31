"""The flags as a user wrote them: where configs stand among them, and what a mistyped one may have meant."""

import operator
import os
import re
from argparse import ArgumentParser
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from jsonargparse import Namespace

from pcam_lightning.messages import UserError

_MOST = 100_000  # values in a config
_NO_VALUES = {"--help", "--config", "--data", "--model", "--trainer"}  # nothing that a mistyped option may have meant


def configs_first(args: list[str]) -> tuple[list[str], list[str]]:
    """Put each -c right behind the command, as --config=PATH, and return the paths too.

    A config replaces what stands before it; behind the command it leaves the last word to flags, wherever they stand.
    """
    flags = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("-c", "--config", action="append", default=[])
    found, rest = flags.parse_known_args(args)
    paths: list[str] = [expand_home(path) for path in found.config]
    return [*rest[:1], *(f"--config={path}" for path in paths), *rest[1:]], paths


def int_before_float(annotation: Any) -> Any:
    """Return the type of an option with int before float where it is a union of both.

    jsonargparse takes the first member of a union that accepts a value, and float accepts 1: as 1.0, which is all of
    the batches where 1 is one batch.
    """
    members = list(get_args(annotation))
    if get_origin(annotation) not in (Union, UnionType) or int not in members or float not in members:
        return annotation
    members.remove(int)
    members.insert(members.index(float), int)
    return reduce(operator.or_, members)


def expand_home(value: Any) -> Any:
    """Return options with `~` at the start of a path replaced by the home folder, in lists and mappings too.

    A path is a `Path`, or text that is `~` or starts with `~` and has a slash. The name of an unknown user stays.
    """
    if isinstance(value, Path):
        return Path(expand_home(str(value))) if str(value).startswith("~") else value
    if isinstance(value, str):
        return os.path.expanduser(value) if value == "~" or re.match("~.*/", value) else value  # noqa: PTH111
    if isinstance(value, list | tuple):
        return type(value)(map(expand_home, value))
    if isinstance(value, dict):
        return {name: expand_home(one) for name, one in value.items()}
    if isinstance(value, Namespace):
        return Namespace(**{name: expand_home(one) for name, one in vars(value).items()})  # type: ignore[no-untyped-call]
    return value


def check_config(path: Path) -> None:
    """Find out whether a config holds options.

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
    todo, count = [content], 0
    while todo and count <= _MOST:  # an anchor may stand within what it names, or double it again and again
        value = todo.pop()
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        count += 1
    if todo:
        raise UserError(f"{path}: more than {_MOST:,} values; does an anchor (&) in it refer to itself?")


def options_like(told: str, parser: ArgumentParser, command: str) -> str:
    """Return what to add to a complaint about an option that there is none of: those of its kind, or the nearest.

    Args:
        told: the complaint.
        parser: of the command.
        command: its name.
    """
    unknown = re.search(r"unrecognized arguments: (--[\w.]+)", told)
    if unknown is None:
        return ""
    options = {one for action in parser._actions for one in action.option_strings if one.startswith("--")}
    options = {one.removesuffix("+") for one in options} - _NO_VALUES
    kind, _, name = unknown[1].rpartition(".")
    like = sorted(one.rpartition(".")[2] for one in options if one.rpartition(".")[0] == kind)
    if kind and like:
        return f"; {kind} has {', '.join(like)}."
    leaves = {one.removeprefix("--").rpartition(".")[2]: one for one in options}
    near = [] if kind else get_close_matches(name.removeprefix("--"), leaves, 1)
    return f"; {leaves[near[0]]} is one that there is." if near else f"; its options are explained by {command} --help."
