"""The command line: LightningCLI's fit, validate, test and predict, and the tools."""

import json
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from pcam_lightning.checkpoint import read_checkpoint, run_config
from pcam_lightning.classifier import PCamClassifier
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.machine import interruptions, quieten
from pcam_lightning.messages import UserError, say
from pcam_lightning.run import newest_run
from pcam_lightning.stages import PROG, StagesCLI
from pcam_lightning.synthetic import synthesize

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


def pack(root: Path = Path("data"), cache_dir: Path | None = None, verify: bool = False) -> None:
    """Pack the images of a data folder, as the first fit and the first predict would; say what is there.

    Args:
        root: data folder in Kaggle's layout; one that has only test/ is packed too.
        cache_dir: folder for the packed images; by default .pcam_cache in the data folder.
        verify: stop where pixels are not what the ids say (Kaggle's ids are the SHA-1 of the pixels).
    """
    data = PCamDataModule(root, val_fraction=0, cache_dir=cache_dir, verify=verify)
    parts = {"train": "fit", "test": "predict"}
    bare = not any((root / part).is_dir() for part in parts)  # patches alone are there to be predicted
    for part, stage in parts.items():
        if (root / part).is_dir() or (bare and part == "test"):
            data.setup(stage)
            assert data.store is not None
            distinct = len(set(data.store.pixel_sha1))
            say(f"{part}: {len(data.store.ids):,} patches, {distinct:,} distinct, in {data.store.path}.")


TOOLS: dict[str, Callable[..., None]] = {"synthesize": synthesize, "pack": pack}


class PCamCLI(StagesCLI):
    """The parser: stages and tools, with a run's configuration found from its checkpoint."""

    def __init__(self, args: list[str]) -> None:
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
            if name == "predict":
                stage.add_argument(
                    "--overwrite", action="store_true", help="Replace a submission that is there already."
                )
            self._subcommand_parsers[name] = stage
            subcommands.add_subcommand(name, stage, help=description)
        for name, function in TOOLS.items():
            description = (function.__doc__ or "").strip().splitlines()[0]
            tool = LightningArgumentParser(description=description, exit_on_error=False)
            tool.add_function_arguments(function, "data" if name == "pack" else None, as_positional=name != "pack")
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
        """Parse; where a checkpoint is named, parse again with its run's configuration put in its place."""
        assert isinstance(args, list)
        args, configs = _configs_first(args)
        for path in configs:
            _check_config(Path(path))
        self.config = parser.parse_args(args)
        stage = self.config.subcommand
        if stage in TOOLS:
            return
        chosen = self.config[stage]
        self.name = Path(configs[-1]).stem if configs else self.name
        if stage != "fit":
            if chosen.ckpt_path is None:
                raise UserError(
                    f"{stage} needs --ckpt_path: an untrained network has nothing to say. {_EXAMPLES[stage]}"
                )
            self.checkpoint = read_checkpoint(Path(chosen.ckpt_path))
            # First of all, so that whatever the user adds is stacked on it and wins.
            self._parse_with(run_config(self.checkpoint), args, 1)
        elif chosen.ckpt_path == "last":
            self.resumed = newest_run(self._runs(chosen))
            self.checkpoint = read_checkpoint(self.resumed.last)
            # After the user's -c, which are where the run's configuration came from, and before flags.
            config = yaml.safe_load(self.resumed.config.read_text(encoding="utf-8"))
            # The one option that an earlier resumption is likely to have changed.
            config["trainer"]["max_epochs"] = self.checkpoint["pcam"]["config"]["trainer"]["max_epochs"]
            self._parse_with(config, args, 1 + len(configs))
            self.config[stage].ckpt_path = str(self.resumed.last)
        elif chosen.ckpt_path is not None:
            self.checkpoint = read_checkpoint(Path(chosen.ckpt_path))

    def _parse_with(self, config: dict[str, Any], args: list[str], position: int) -> None:
        self.config = self.parser.parse_args([*args[:position], f"--config={json.dumps(config)}", *args[position:]])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's parameters beat the user's flags."""

    # A tool needs neither seed nor data module, model or trainer.

    def _set_seed(self) -> None:
        if self.subcommand in TOOLS:
            return
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"--seed_everything: {error}") from None

    def before_instantiate_classes(self) -> None:
        """Settle what depends on the machine."""
        if self.subcommand not in TOOLS:
            super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        """Build data module, model and trainer."""
        if self.subcommand not in TOOLS:
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand not in TOOLS:
            super()._run_subcommand(subcommand)
            return
        chosen = self.config[subcommand]
        TOOLS[subcommand](**(chosen.data if subcommand == "pack" else chosen).as_dict())


def _configs_first(args: list[str]) -> tuple[list[str], list[str]]:
    """Put each -c right behind the command, as --config=PATH, and return the paths too.

    A config replaces what stands before it; behind the command it leaves the last word to flags, wherever they stand.
    """
    flags = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("-c", "--config", action="append", default=[])
    found, rest = flags.parse_known_args(args)
    paths: list[str] = found.config
    return [*rest[:1], *(f"--config={path}" for path in paths), *rest[1:]], paths


def _check_config(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: no config to read ({error.strerror}); those of the project are in configs/."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no options; configs/base.yaml shows them all.")


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: what follows the program's name; by default the process's own arguments.

    Returns:
        Exit status: 0, 2 where the user got something wrong, 130 after ctrl-C, 143 after SIGTERM.
    """
    quieten()
    with interruptions() as received:
        try:
            PCamCLI(sys.argv[1:] if args is None else args)
        except (UserError, ArgumentError, MisconfigurationException) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except OSError as error:  # a full disk, a folder without permission: the user's to mend, whatever the place
            print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
            return 2
        except (KeyboardInterrupt, SystemExit) as stop:
            if received:
                return 128 + received[0]
            if isinstance(stop, KeyboardInterrupt):
                raise
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return 0
