"""The parser of commands that take the options of a run, which are found from its checkpoint too."""

import json
import sys
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from pcam_lightning import __version__
from pcam_lightning.cli.arguments import PROG, configs_first, parse, say_other_spelling
from pcam_lightning.cli.command import RunCommand
from pcam_lightning.cli.help import EPILOG, GROUPS, group_help, short_help
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.training.lightning_internals import RunParser
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.training.options import Config, add_run_arguments, check_seed
from pcam_lightning.transforms.augment import augmentation_options
from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.run_dir import Run, newest_run, run_to_resume
from pcam_lightning.utils.system import expand_home

_CKPT_PATH = {
    "resume": "`last` resumes the newest run of the config, and a run's last.ckpt that run; a new run continues from "
    "any other checkpoint.",
    "required": "The checkpoint, such as lightning_logs/base/version_0/checkpoints/best.ckpt; or pcam or pcam-small, "
    "trained networks that come with the package; or a run, whose best checkpoint counts. The first argument, without "
    "a flag, means the same.",
    "optional": "A checkpoint, whose options, data and network are used.",
}

_PARSERS: dict[tuple[str, tuple[str, ...]], LightningArgumentParser] = {}


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
        loaded: what `ckpt_path` names; None where it resumes, or names nothing.
        chosen: names of the options that the user set, where several checkpoints are named.
    """

    def __init__(self, name: str, command: RunCommand, args: list[str]) -> None:
        self.command_name, self.command, self.args = name, command, args
        self.resumed: Run | None = None
        self.loaded: LoadedRun | None = None
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
                "epilog": EPILOG,
                "formatter_class": short_help,
                "exit_on_error": False,
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def setup_parser(self, *args: Any) -> None:
        """Set the parser up, or take that of an earlier call with the same augmentations: it takes half a second."""
        self._setup, self._augmentations = args, augmentation_options()
        key = (self.command_name, self._augmentations)
        if key not in _PARSERS:
            super().setup_parser(*args)
            _PARSERS[key] = self.parser
        self.parser = _PARSERS[key]

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
        say_other_spelling(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; where the configuration is to be printed, print what the command would use, and end."""
        assert isinstance(args, list)
        for group in GROUPS:
            if f"--help.{group}" in args:
                sys.stdout.write(group_help(parser, group))
                sys.exit()
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
        self.loaded = LoadedRun.open(first)
        if rest:
            self.chosen = frozenset(self.parser.parse_args(args, defaults=False).keys())
            args = [*args, f"--ckpt_path={first}", "--ensemble", *map(str, rest)]
        # First of all, so that whatever the user adds is stacked on it and wins.
        return self._parse_with(self.loaded.inference_config(), args, 0, first)

    def _parse_resumed(self, run: Run, args: list[str], configs: int) -> list[str]:
        """Parse again with the options of a run behind the user's configs, which its own came from."""
        self.resumed = run
        read_checkpoint(run.last)
        args = [*args, f"--ckpt_path={run.last}"]
        return self._parse_with(yaml.safe_load(run.config.read_text(encoding="utf-8")), args, configs, run.config)

    def _parse_with(self, config: dict[str, Any], args: list[str], position: int, origin: Path) -> list[str]:
        if self._augmentations != augmentation_options():  # the checkpoint's run has imported another one
            self.setup_parser(*self._setup)
        args = [*args[:position], f"--config={json.dumps(config)}", *args[position:]]
        modules = list(dict.fromkeys([*config.get("import", []), *self.config["import"]]))  # a list would be replaced
        try:
            self.config = expand_home(self.parser.parse_args(args))
            self.config["import"] = modules
        except ArgumentError as error:  # the user's own words have been parsed before
            raise UserError(
                f"{origin}: its run had options that this version, {__version__}, lacks ({error})."
            ) from error
        return args
