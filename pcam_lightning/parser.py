"""The parser: what the command line takes, and where a run's configuration is found from its checkpoint."""

import gc
import json
import sys
from argparse import ArgumentError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from pcam_lightning import __version__
from pcam_lightning.checkpoint import read_checkpoint, run_config
from pcam_lightning.classifier import PCamClassifier
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.fit import FitCLI
from pcam_lightning.flags import check_config, configs_first, expand_home, int_before_float, options_like
from pcam_lightning.messages import UserError
from pcam_lightning.run import Run, newest_run
from pcam_lightning.stages import PROG


@dataclass(frozen=True)
class Study:
    """A command that takes the options of fit: trains several times, or looks at what fit would train on.

    Attributes:
        function: takes what the options of fit come to, the folder of the config's runs, and its own options.
        options: its own, by name: arguments of `add_argument`.
        defaults: of options of fit, where they are others than fit's.
        trains: whether it runs fit; one that only looks takes options, data and network of a run by `--ckpt_path`.
    """

    function: Callable[..., None]
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    trains: bool = True


Tools = Mapping[str, Callable[..., None]]
Studies = Mapping[str, Study]

STAGES = {
    "fit": "Train, and keep the best and the last epoch's checkpoint in a run folder of its own.",
    "validate": "Score a run's checkpoint on the validation part of its split.",
    "test": "Score a run's checkpoint on test/, where answers.csv holds its labels.",
    "predict": "Write submission.csv for test/ into the run of a checkpoint.",
}
_EXAMPLES = {
    "fit": "fit -c configs/base.yaml --data.root DIR",
    "validate": "validate --ckpt_path lightning_logs/base/version_0/checkpoints/best.ckpt",
    "test": "test --ckpt_path lightning_logs/base/version_0/checkpoints/best.ckpt",
    "predict": "predict --ckpt_path lightning_logs/base/version_0/checkpoints/best.ckpt",
}
_CKPT_PATH = {
    "fit": "`last` goes on with the newest run of the config; a file goes on from that checkpoint in a new run.",
    "sweep": "Not taken: the same command goes on where it was.",
    "others": "The checkpoint, such as lightning_logs/base/version_0/checkpoints/best.ckpt.",
}


# Defaults of Lightning that are text and an Enum, such as the interval of Timer, are written into a config as text.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))


class Parser(LightningArgumentParser):
    """Lightning's parser, in which an int stays an int; jsonargparse takes `add_argument` over into groups too."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an argument."""
        action = super().add_argument(*args, **kwargs)
        if hasattr(action, "_typehint"):
            action._typehint = int_before_float(action._typehint)
        return action


class PCamCLI(FitCLI):
    """Stages and tools of one command.

    Args:
        args: the command's arguments.
        tools: functions that are commands too.
        studies: commands that take the options of fit.
        run: where `fit` puts its run, or goes on with it; by default it claims a folder.
    """

    _failed: UserError | None = None  # why a class that an option names cannot be built

    def __init__(
        self,
        args: list[str],
        tools: Tools | None = None,
        studies: Studies | None = None,
        run: Run | None = None,
    ) -> None:
        self.tools, self.studies, self.place = tools or {}, studies or {}, run
        super().__init__(
            PCamClassifier,
            PCamDataModule,
            save_config_callback=None,  # it acts in every stage; before_fit saves the config
            trainer_defaults={
                "devices": 1,
                "max_epochs": 15,
                "log_every_n_steps": 10,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
            },
            seed_everything_default=42,
            parser_class=Parser,
            parser_kwargs={"prog": PROG, "description": sys.modules["pcam_lightning"].__doc__, "exit_on_error": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        self._subcommand_parsers = {}
        subcommands = parser.add_subcommands(title="commands")
        for name, description in STAGES.items():
            # The usual command, instead of a list of seventy options that follows anyway, explained.
            usage = f"{PROG} {_EXAMPLES[name]} [options]"
            stage = self._prepare_subcommand_parser(
                Trainer, name, usage=usage, description=description, exit_on_error=False
            )
            stage._option_string_actions["--ckpt_path"].help = _CKPT_PATH["fit" if name == "fit" else "others"]
            if name == "predict":
                stage.add_argument(
                    "--overwrite", action="store_true", help="Replace a submission that is there already."
                )
                stage.add_argument(
                    "--calibrate", action="store_true", help="Divide logits by the temperature that evaluate found."
                )
                stage.add_argument(
                    "--also", type=Path, nargs="+", default=[], help="More checkpoints: the mean of all their logits."
                )
                stage.add_argument("--output", type=Path | None, help="Folder to write into, by default the run's.")
            self._subcommand_parsers[name] = stage
            subcommands.add_subcommand(name, stage, help=description)
        for name, study in self.studies.items():
            description = (study.function.__doc__ or "").strip().splitlines()[0]
            usage = f"{PROG} {name} -c configs/base.yaml --data.root DIR [options]"
            several = self._prepare_subcommand_parser(
                Trainer, "fit", usage=usage, description=description, exit_on_error=False
            )
            kind = "sweep" if study.trains else "others"
            several._option_string_actions["--ckpt_path"].help = _CKPT_PATH[kind]
            for option, how in study.options.items():
                several.add_argument(f"--{option}", **how)
            several.set_defaults(study.defaults)
            self._subcommand_parsers[name] = several
            subcommands.add_subcommand(name, several, help=description)
        for name, function in self.tools.items():
            description = (function.__doc__ or "").strip().splitlines()[0]
            tool = Parser(description=description, exit_on_error=False)
            # `a b`, and not what jsonargparse makes of a list, `[a,b]`.
            lists = {one for one, of in signature(function).parameters.items() if of.annotation == list[Path]}
            for one in lists:
                tool.add_argument(one, type=Path, nargs="+", help="One folder, or several.")
            place = "data" if name == "pack" else None
            tool.add_function_arguments(function, place, as_positional=name != "pack", skip={*lists})
            self._subcommand_parsers[name] = tool
            subcommands.add_subcommand(name, tool, help=description)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Put data and model before the trainer's many options."""
        parser.add_lightning_class_args(PCamDataModule, "data")
        parser.add_lightning_class_args(PCamClassifier, "model")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the stages, and the trainer's arguments that are not the user's to set."""
        ours = {"model", "datamodule", "weights_only", "return_predictions", "verbose"}
        return {name: {*ours, "dataloaders", "train_dataloaders", "val_dataloaders"} for name in STAGES}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; where the configuration is to be printed, print what the command would use, and end."""
        assert isinstance(args, list)
        self.args = args
        prints = [arg for arg in args if arg.partition("=")[0] == "--print_config"]
        args = self._parse([arg for arg in args if arg not in prints], prints=bool(prints))
        if prints:
            parser.parse_args([*args, *prints])

    def _parse(self, args: list[str], *, prints: bool) -> list[str]:
        """Parse; where a checkpoint is named, parse again with its run's configuration in front of the user's options.

        Args:
            args: what follows the program's name.
            prints: whether the configuration is to be printed: then a checkpoint need not be named.

        Returns:
            The arguments that were parsed last.
        """
        args, configs = configs_first(args)
        for path in configs:
            check_config(Path(path))
        try:
            self.config = expand_home(self.parser.parse_args(args))
        except ArgumentError as error:
            stage = self._subcommand_parsers.get(args[0]) if args else None
            raise UserError(f"{error}{options_like(str(error), stage, args[0]) if stage else ''}") from None
        stage = self.config.subcommand
        if stage in self.tools:
            return args
        chosen = self.config[stage]
        self.name = Path(configs[-1]).stem if configs else self.name
        if stage in self.studies:
            if not self.studies[stage].trains and chosen.ckpt_path is not None:
                self.checkpoint = read_checkpoint(Path(chosen.ckpt_path))
                args = self._parse_with(run_config(self.checkpoint), args, 1, Path(chosen.ckpt_path))
            return args
        if stage != "fit":
            if chosen.ckpt_path is None:
                if prints:
                    return args
                raise UserError(
                    f"{stage} needs --ckpt_path: an untrained network has nothing to say. {_EXAMPLES[stage]}"
                )
            # Of several networks the options are those of the same one whatever their order.
            first, *rest = sorted([Path(chosen.ckpt_path), *(chosen.also if stage == "predict" else [])])
            self.checkpoint = read_checkpoint(first)
            # First of all, so that whatever the user adds is stacked on it and wins.
            if rest:
                self.said = self.parser.parse_args(args, defaults=False)[stage]
                args = [*args, f"--ckpt_path={first}", "--also", *map(str, rest)]
            args = self._parse_with(run_config(self.checkpoint), args, 1, first)
        elif chosen.ckpt_path == "last" or (self.place and self.place.last.is_file()):
            self.resumed = self.place or newest_run(self._runs(chosen))
            self.checkpoint = read_checkpoint(self.resumed.last)
            # After the user's -c, which are where the run's configuration came from, and before flags.
            config = yaml.safe_load(self.resumed.config.read_text(encoding="utf-8"))
            args = [*args, f"--ckpt_path={self.resumed.last}"]
            args = self._parse_with(config, args, 1 + len(configs), self.resumed.config)
        elif chosen.ckpt_path is not None:
            self.checkpoint = read_checkpoint(Path(chosen.ckpt_path))
        return args

    def _parse_with(self, config: dict[str, Any], args: list[str], position: int, origin: Path) -> list[str]:
        args = [*args[:position], f"--config={json.dumps(config)}", *args[position:]]
        try:
            self.config = expand_home(self.parser.parse_args(args))
        except ArgumentError as error:  # the user's own words have been parsed before
            raise UserError(
                f"{origin}: its run had options that are none of this version, {__version__} ({error})."
            ) from error
        return args

    def _build(self, class_type: type, *args: Any, **kwargs: Any) -> Any:
        """Build a callback, a logger or the like; note why one cannot be built, which jsonargparse may leave out."""
        try:
            return class_type(*args, **kwargs)
        except (ImportError, MisconfigurationException, KeyError, RuntimeError, TypeError, ValueError) as error:
            if class_type not in (PCamClassifier, PCamDataModule):
                self._failed = UserError(f"--trainer: {class_type.__name__} cannot be built: {error}")
            raise

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's parameters beat the user's flags."""

    # A tool needs neither seed nor data module, model or trainer; a study's runs have their own.

    @property
    def _is_stage(self) -> bool:
        return self.subcommand in STAGES

    @property
    def _trains(self) -> bool:
        study = self.studies.get(self.subcommand or "")
        return super()._trains or (study is not None and study.trains)

    def _set_seed(self) -> None:
        if not self._is_stage:
            return
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"--seed_everything: {error}") from None

    def before_instantiate_classes(self) -> None:
        """Settle what depends on the machine."""
        if self.subcommand not in self.tools:
            super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        """Build data module, model and trainer; of a study that trains, to find out whether their options are right."""
        # Network, optimizer and trainer of an earlier command in this process hold each other.
        gc.collect()
        if not (self._is_stage or self._trains):
            return
        self._parser(self.subcommand).add_instantiator(self._build, object)
        try:
            super().instantiate_classes()
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            if self._failed is None:
                raise
            raise self._failed from error

    def _run_subcommand(self, subcommand: str) -> None:
        if self._is_stage:
            super()._run_subcommand(subcommand)
            return
        chosen = self.config[subcommand]
        if subcommand in self.studies:
            study = self.studies[subcommand]
            own = {name: chosen[name] for name in study.options}
            plain = {name: value for name, value in self._plain().items() if name not in own}
            study.function(plain, self._runs(chosen), **own)
        else:
            self.tools[subcommand](**(chosen.data if subcommand == "pack" else chosen).as_dict())
