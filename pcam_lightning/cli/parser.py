"""The parsers: what each command takes, and where a run's options are found from its checkpoint."""

import json
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import docstring_parser
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import pcam_lightning
from pcam_lightning import __version__
from pcam_lightning.cli.arguments import check_config, configs_first, suggest_options
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.checkpoint import read_checkpoint, run_config
from pcam_lightning.training.lightning_internals import RunParser
from pcam_lightning.training.options import Config, add_run_arguments, check_seed, expand_home
from pcam_lightning.training.upgrade import read_config
from pcam_lightning.transforms.augment import augmentation_options
from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.run_dir import Run, newest_run, run_to_resume

PROG = "python -m pcam_lightning"


@dataclass(frozen=True)
class RunCommand:
    """A command that takes the options of a run.

    Attributes:
        function: takes the parsed command line, calls the library, prints.
        help: one line.
        example: arguments, for the usage line.
        ckpt_path: what a checkpoint is to it: `resume`, where training continues; `required`, whose network is used;
            `optional`; or `none`.
        options: its own options, by name: arguments of `add_argument`.
        defaults: of options of the run, where they are others than those of fit.
    """

    function: Callable[["PCamCLI"], None]
    help: str
    example: str
    ckpt_path: Literal["resume", "required", "optional", "none"] = "none"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


_CKPT_PATH = {
    "resume": "`last` resumes the newest run of the config, and a run's last.ckpt that run; a new run continues from "
    "any other checkpoint.",
    "required": "The checkpoint, such as lightning_logs/base/version_0/checkpoints/best.ckpt; or pcam or pcam-small, "
    "trained networks that come with the package.",
    "optional": "A checkpoint, whose options, data and network are used.",
}


class PCamCLI(LightningCLI):
    """Parses the command line of a command that takes the options of a run; builds and runs nothing.

    Args:
        name: of the command.
        command: what it takes.
        args: what follows its name.

    Attributes:
        options: the parsed options, those of the run and the command's own.
        run_config: the options of the run.
        resumed: the run that `fit --ckpt_path` resumes.
        chosen: names of the options that the user set, where several checkpoints are named.
    """

    def __init__(self, name: str, command: RunCommand, args: list[str]) -> None:
        self.command_name, self.command, self.args = name, command, args
        self.resumed: Run | None = None
        self.chosen: frozenset[str] = frozenset()
        self.config_name = "default"
        super().__init__(
            PCamClassifier,
            PCamDataModule,
            save_config_callback=None,  # fit writes the config into the run
            run=False,
            parser_class=RunParser,
            parser_kwargs={
                "prog": f"{PROG} {name}",
                "usage": f"{PROG} {command.example} [options]",
                "description": command.help,
                "exit_on_error": False,
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def setup_parser(self, *args: Any) -> None:
        """Set the parser up, and note for which augmentations."""
        self._setup, self._augmentations = args, augmentation_options()
        super().setup_parser(*args)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add nothing: the options of a run are added together."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run."""
        add_run_arguments(parser)  # type: ignore[arg-type]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the command's own options."""
        if self.command.ckpt_path != "none":
            parser.add_argument("--ckpt_path", type=str | None, default=None, help=_CKPT_PATH[self.command.ckpt_path])
        for option, how in self.command.options.items():
            parser.add_argument(f"--{option}", **how)
        parser.set_defaults(dict(self.command.defaults))

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; where the configuration is to be printed, print what the command would use, and end."""
        assert isinstance(args, list)
        prints = [arg for arg in args if arg.partition("=")[0] == "--print_config"]
        args = self._parse([arg for arg in args if arg not in prints], prints=bool(prints))
        check_seed(self.config.seed_everything)
        if prints:
            self.parser.parse_args([*args, *prints])

    def instantiate_classes(self) -> None:
        """Build nothing: the command's function does, once all has been checked."""

    @property
    def options(self) -> Namespace:
        """The parsed options."""
        return self.config  # type: ignore[no-any-return]

    @property
    def run_config(self) -> Config:
        """The options of the run."""
        return Config(self.parser, self.config, self.config_name)  # type: ignore[arg-type]

    def _parse(self, args: list[str], *, prints: bool) -> list[str]:
        """Parse; where a checkpoint is named, parse again with its run's configuration in front of the user's options.

        Args:
            args: what follows the command's name.
            prints: whether the configuration is to be printed: then a checkpoint need not be named.

        Returns:
            The arguments that were parsed last.
        """
        args, configs = configs_first(args)
        for path in configs:
            check_config(Path(path))
        self.config_name = Path(configs[-1]).stem if configs else self.config_name
        self.config = expand_home(parse(self.parser, args, self.command_name))
        kind, ckpt_path = self.command.ckpt_path, self.config.get("ckpt_path")
        if kind == "required" and ckpt_path is None and not prints:
            raise UserError(f"`ckpt_path` is required: {self.command.example}")
        if ckpt_path is None:
            return args
        if kind == "resume":
            run = newest_run(self.run_config.runs) if ckpt_path == "last" else run_to_resume(ckpt_path)
            return args if run is None else self._parse_resumed(run, args, len(configs))
        # Of several networks the options are those of the same one whatever their order.
        first, *rest = sorted([Path(ckpt_path), *(self.config.get("ensemble") or [])])
        checkpoint = read_checkpoint(first)
        if rest:
            self.chosen = frozenset(self.parser.parse_args(args, defaults=False).keys())
            args = [*args, f"--ckpt_path={first}", "--ensemble", *map(str, rest)]
        # First of all, so that whatever the user adds is stacked on it and wins.
        return self._parse_with(run_config(checkpoint), args, 0, first)

    def _parse_resumed(self, run: Run, args: list[str], configs: int) -> list[str]:
        """Parse again with the options of a run behind the user's configs, which its own came from."""
        self.resumed = run
        read_checkpoint(run.last)
        args = [*args, f"--ckpt_path={run.last}"]
        return self._parse_with(read_config(run.config), args, configs, run.config)

    def _parse_with(self, config: dict[str, Any], args: list[str], position: int, origin: Path) -> list[str]:
        if self._augmentations != augmentation_options():  # the checkpoint's run has imported another one
            self.setup_parser(*self._setup)
        args = [*args[:position], f"--config={json.dumps(config)}", *args[position:]]
        try:
            self.config = expand_home(self.parser.parse_args(args))
        except ArgumentError as error:  # the user's own words have been parsed before
            raise UserError(
                f"{origin}: its run had options that this version, {__version__}, lacks ({error})."
            ) from error
        return args


def parse(parser: Any, args: list[str], command: str) -> Any:
    """Parse arguments.

    Raises:
        UserError: an option is unknown or of another type; similar ones are named.
    """
    try:
        return parser.parse_args(args)
    except ArgumentError as error:
        raise UserError(f"{error}{suggest_options(str(error), parser, command)}") from None


def function_parser(name: str, function: Callable[..., Any]) -> RunParser:
    """Return the parser of a command whose options are the arguments of a function."""
    description = (function.__doc__ or "").strip().splitlines()[0]
    parser = RunParser(prog=f"{PROG} {name}", description=description, exit_on_error=False)
    # `a b`, and not what jsonargparse makes of a list, `[a,b]`.
    lists = {name for name, one in signature(function).parameters.items() if one.annotation == list[Path]}
    for argument in lists:
        parser.add_argument(argument, type=Path, nargs="+", help="One, or several.")
    texts = {one.arg_name: one.description for one in docstring_parser.parse(function.__doc__ or "").params}
    repeated = {name for name, one in signature(function).parameters.items() if one.annotation == list[str] | None}
    for option in repeated:
        parser.add_argument(f"--{option}", action="append", metavar="NAME", help=texts[option])
    group = "data" if name == "pack" else None
    parser.add_function_arguments(function, group, as_positional=name != "pack", skip={*lists, *repeated})
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:  # `--whole` alone, and `--whole true`
            action.nargs, action.const = "?", True
    return parser


def command_list(commands: Mapping[str, str]) -> ArgumentParser:
    """Return the parser of the program itself, whose help lists the commands.

    Args:
        commands: one line of help, by name.
    """
    parser = ArgumentParser(PROG, description=(pcam_lightning.__doc__ or "").splitlines()[0], exit_on_error=False)
    parser.add_argument("--version", action="version", version=f"pcam_lightning {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in commands.items():
        subparsers.add_parser(name, help=text, add_help=False)
    return parser
