"""The command line: LightningCLI's fit, validate, test and predict, and the tools."""

import hashlib
import json
import sys
from argparse import ArgumentError
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from pcam_lightning import __version__
from pcam_lightning.backbone import WeightsUnavailable
from pcam_lightning.checkpoint import KeepCheckpoints, WholeCheckpointIO, read_checkpoint
from pcam_lightning.classifier import PCamClassifier
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.files import cache_folder, write_whole
from pcam_lightning.logs import MetricsFile, TensorBoard
from pcam_lightning.machine import interruptions, precision_here, quieten
from pcam_lightning.messages import UserError, say, warn
from pcam_lightning.run import Run, claim_run, newest_run, run_of
from pcam_lightning.split import write_split
from pcam_lightning.submission import SubmissionWriter
from pcam_lightning.synthetic import synthesize

PROG = "python -m pcam_lightning"
REHEARSAL_BATCH = 64  # 2,000 drawn patches make 25 steps an epoch with it, and 4 with the recipe's 512

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
    for part, stage in parts.items():
        if (root / part).is_dir() or not any((root / other).is_dir() for other in parts):
            data.setup(stage)
            assert data.store is not None
            distinct = len(set(data.store.pixel_sha1))
            say(f"{part}: {len(data.store.ids):,} patches, {distinct:,} distinct, in {data.store.path}.")


TOOLS: dict[str, Callable[..., None]] = {"synthesize": synthesize, "pack": pack}


class PCamCLI(LightningCLI):
    """LightningCLI with a run's configuration found from its checkpoint, run folders of our own, and the tools."""

    def __init__(self, args: list[str]) -> None:
        self.checkpoint: dict[str, Any] | None = None  # the one that validate, test and predict were given
        self.resumed: Run | None = None  # the run that `fit --ckpt_path last` goes on with
        self.run: Run | None = None
        self.name = "default"  # of the run's folder: the stem of the last -c
        self.keep, self.metrics_file = KeepCheckpoints(), MetricsFile()
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

    # The parser ------------------------------------------------------------------------------------------------------

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        self._subcommand_parsers = {}
        subcommands = parser.add_subcommands(title="commands")
        for name, description in STAGES.items():
            full = f"{description} Example: {PROG} {_EXAMPLES[name]}"
            stage = self._prepare_subcommand_parser(Trainer, name, description=full, exit_on_error=False)
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
        for path in _config_paths(args):
            _check_config(Path(path))
        self.config = parser.parse_args(args)
        stage = self.config.subcommand
        if stage in TOOLS:
            return
        chosen = self.config[stage]
        configs = _config_paths(args)
        self.name = Path(configs[-1]).stem if configs else self.name
        first = args.index(stage) + 1
        if stage != "fit":
            if chosen.ckpt_path is None:
                raise UserError(
                    f"{stage} needs --ckpt_path: an untrained network has nothing to say. {_EXAMPLES[stage]}"
                )
            self.checkpoint = read_checkpoint(Path(chosen.ckpt_path))
            # First of all, so that whatever the user adds is stacked on it and wins.
            self._parse_with(self.checkpoint["pcam"]["config"], args, first)
        elif chosen.ckpt_path == "last":
            self.resumed = newest_run(self._runs(chosen))
            self.checkpoint = read_checkpoint(self.resumed.last)
            # After the user's -c, which are where the run's configuration came from, and before flags.
            after = args.index(configs[-1]) + 1 if configs and configs[-1] in args else first
            self._parse_with(yaml.safe_load(self.resumed.config.read_text()), args, after)
            self.config[stage].ckpt_path = str(self.resumed.last)
        elif chosen.ckpt_path is not None:
            self.checkpoint = read_checkpoint(Path(chosen.ckpt_path))

    def _parse_with(self, config: dict[str, Any], args: list[str], position: int) -> None:
        self.config = self.parser.parse_args([*args[:position], f"--config={json.dumps(config)}", *args[position:]])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's parameters beat the user's flags."""

    def _runs(self, chosen: Namespace) -> Path:
        return Path(chosen.trainer.default_root_dir or ".") / "lightning_logs" / self.name

    # From the parsed configuration to objects -------------------------------------------------------------------------

    def _set_seed(self) -> None:
        if self.subcommand not in TOOLS:
            super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Settle what depends on the machine: the data folder, the precision."""
        if self.subcommand in TOOLS:
            return
        chosen = self.config[self.subcommand]
        rehearsal = cache_folder() / f"rehearsal-{__version__}"
        if chosen.data.root is None and not Path("data").is_dir():
            if self.subcommand != "fit":
                raise UserError("data: no such folder; name one with --data.root.")
            chosen.data.root = rehearsal
            say(
                f"NO DATA: no folder data/ here and no --data.root, so this is a rehearsal of {self.name}.yaml on "
                f"drawn tissue in {rehearsal}. Its scores say nothing about real patches."
            )
            if chosen.data.batch_size > REHEARSAL_BATCH:
                say(f"Rehearsal: batch size {REHEARSAL_BATCH} instead of {chosen.data.batch_size}, for enough steps.")
                chosen.data.batch_size = REHEARSAL_BATCH
        chosen.data.root = Path(chosen.data.root or "data").absolute()
        self.rehearsal = chosen.data.root == rehearsal.absolute()
        chosen.trainer.precision = precision_here(chosen.trainer.accelerator, chosen.trainer.precision)

    def instantiate_classes(self) -> None:
        """Build data module, model and trainer; for a tool there is nothing to build."""
        if self.subcommand in TOOLS:
            return
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with what always belongs to it.

        Raises:
            UserError: the flags do not go together, or not with this machine.
        """
        callbacks: list[Any] = []
        if self.subcommand == "fit":
            callbacks = [self.metrics_file, self.keep]
        config = self.config_init[self.subcommand].trainer
        own: dict[str, Any] = {
            "callbacks": [*(config.callbacks or []), *callbacks],
            "plugins": [*_listed(config.plugins), WholeCheckpointIO()],
        }
        if config.logger in (None, True) or self.subcommand != "fit":
            own["logger"] = False  # before_fit adds TensorBoard, once it is clear that there is something to log
        try:
            return Trainer(**{**config.as_dict(), **own, **kwargs})
        except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
            raise UserError(f"--trainer: {error}") from error

    # What the commands do ---------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand in TOOLS:
            chosen = self.config[subcommand]
            TOOLS[subcommand](**(chosen.data if subcommand == "pack" else chosen).as_dict())
            return
        super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        ours: dict[str, Any] = {"weights_only": True}
        if subcommand == "predict":
            ours["return_predictions"] = False
        return {**super()._prepare_subcommand_kwargs(subcommand), **ours}

    def before_fit(self) -> None:
        """Check data, then weights, and only then claim a folder for the run."""
        data, model, chosen = self.datamodule, self.model, self.config[self.subcommand]
        if self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise UserError("--trainer.max_epochs -1: the cosine needs an end; give a number of epochs.")
        self._draw_rehearsal()
        data.setup("fit")
        if self.checkpoint is None:
            try:
                model.load_start()
            except WeightsUnavailable as error:
                if not self.rehearsal:
                    raise
                warn(f"{error} In this rehearsal alone the network starts from random weights instead.")
        else:
            model.started_from = self.checkpoint["started_from"]
        train, val = int((~data.val_mask).sum()), int(data.val_mask.sum())
        say(f"data: {data.root}: {train:,} patches to train on, {val:,} to validate.")
        if "slide" in data.table:
            slides = data.table["slide"]
            shared = int(slides[data.val_mask].isin(slides[~data.val_mask]).sum())
            say(
                f"{shared:,} of {val:,} validation patches are of slides that training sees too: "
                "val/auroc is optimistic."
            )
        say(
            f"network: {chosen.model.backbone} from {'random' if model.started_from == 'none' else model.started_from} "
            f"weights, {chosen.trainer.precision} on {self.trainer.strategy.root_device}."
        )
        if not chosen.trainer.fast_dev_run:
            self._open_run()

    def _open_run(self) -> None:
        data, chosen = self.datamodule, self.config[self.subcommand]
        plain = yaml.safe_load(self._parser(self.subcommand).dump(chosen, skip_unset=False))
        plain.pop("config", None)
        plain["ckpt_path"] = None
        if self.trainer.is_global_zero:
            self.run = self.resumed or claim_run(self._runs(chosen))
            if self.resumed is None:
                write_whole(self.run.config, yaml.safe_dump(plain, sort_keys=False))
                write_split(self.run.split, data.table, data.val_mask)
            if chosen.trainer.logger is not False:
                purge = self.checkpoint["global_step"] + 1 if self.resumed and self.checkpoint else None
                self.trainer.loggers = [TensorBoard(self.run, purge), *self.trainer.loggers]
                self.trainer.callbacks.append(LearningRateMonitor("step"))  # type: ignore[attr-defined]
            say(f"run: {self.run.folder}")
        self.keep.run = self.metrics_file.run = self.run
        self.keep.record = {
            "version": __version__,
            "config": {
                "seed_everything": plain["seed_everything"],
                "data": plain["data"],
                "model": plain["model"],
                "trainer": {"precision": plain["trainer"]["precision"]},
            },
            "data": {"root": str(data.root), "fingerprint": data.store.fingerprint, "patches": len(data.table)},
            "split": {
                "val": int(data.val_mask.sum()),
                "sha256": hashlib.sha256(data.val_mask.tobytes()).hexdigest(),
            },
        }
        self.metrics_file.options = {
            **plain["model"],
            **{name: plain["data"][name] for name in ("batch_size", "val_fraction", "split_seed")},
            **{name: plain["trainer"][name] for name in ("max_epochs", "precision")},
            "seed_everything": plain["seed_everything"],
        }

    def after_fit(self) -> None:
        """Say where the run is, how good it got, and what to type next."""
        if self.run is None:
            return
        best, epochs = self.run.last, self.trainer.current_epoch
        say(f"\nrun: {self.run.folder}, {epochs} epochs.")
        if self.keep.best_epoch is not None:
            best = self.run.best
            say(f"best: epoch {self.keep.best_epoch + 1}, val/auroc {self.keep.best_score:.4f}.")
        else:
            say("nothing was validated: last.ckpt counts.")
        say(f"curves:     tensorboard --logdir {self.run.folder.parent.parent}")
        say(f"submission: {PROG} predict --ckpt_path {best}")

    def before_validate(self) -> None:
        """Take the network to the data that its run held out."""
        self._draw_rehearsal()
        assert self.checkpoint is not None
        self.datamodule.setup("validate")
        if not self.datamodule.val_mask.any():
            raise UserError("--data.val_fraction 0: this run held nothing out, so there is nothing to validate on.")
        recorded = self.checkpoint["pcam"]["split"]["sha256"]
        if hashlib.sha256(self.datamodule.val_mask.tobytes()).hexdigest() != recorded:
            warn("this is not the validation part of the checkpoint's run: some of these patches may have trained it.")

    def after_validate(self) -> None:
        """Keep the scores in the run."""
        self._write_scores("validate")

    def before_test(self) -> None:
        """Draw the rehearsal's folder where it went away."""
        self._draw_rehearsal()

    def after_test(self) -> None:
        """Keep the scores in the run."""
        self._write_scores("test")

    def before_predict(self) -> None:
        """Add the writer of the submission."""
        self._draw_rehearsal()
        chosen = self.config[self.subcommand]
        writer = SubmissionWriter(run_of(Path(chosen.ckpt_path)).submission, overwrite=chosen.overwrite)
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        say(f"data: {self.datamodule.root}; checkpoint: {chosen.ckpt_path}")

    def _write_scores(self, stage: str) -> None:
        chosen = self.config[self.subcommand]
        scores = {name: float(value) for name, value in sorted(self.trainer.callback_metrics.items())}
        told = {"checkpoint": str(chosen.ckpt_path), "root": str(self.datamodule.root), **scores}
        path = run_of(Path(chosen.ckpt_path)).folder / f"{stage}.json"
        if self.trainer.is_global_zero:
            write_whole(path, json.dumps(told, indent=2) + "\n")
            say(f"{path}: {', '.join(f'{name} {value:.4f}' for name, value in scores.items())}")

    def _draw_rehearsal(self) -> None:
        root = self.datamodule.root
        if self.rehearsal and self.trainer.is_global_zero and not root.is_dir():
            root.parent.mkdir(parents=True, exist_ok=True)
            synthesize(root)


def _config_paths(args: list[str]) -> list[str]:
    """Return what follows -c and --config, in order."""
    after = [value for flag, value in pairwise(args) if flag in ("-c", "--config")]
    return after or [arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")]


def _check_config(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: no config to read ({error.strerror}); those of the project are in configs/."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no options; configs/base.yaml shows them all.")


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


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
        except (KeyboardInterrupt, SystemExit) as stop:
            if received:
                return 128 + received[0]
            if isinstance(stop, KeyboardInterrupt):
                raise
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return 0
