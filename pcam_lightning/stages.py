"""What fit, validate, test and predict do beyond Lightning: checks in order, a run's folder, what is said and kept."""

import json
import os
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DDPStrategy

from pcam_lightning import __version__
from pcam_lightning.backbone import WeightsUnavailable
from pcam_lightning.checkpoint import KeepCheckpoints, WholeCheckpointIO
from pcam_lightning.datamodule import SPLIT_OPTIONS
from pcam_lightning.files import cache_folder, write_whole
from pcam_lightning.logs import MetricsFile, TensorBoard
from pcam_lightning.machine import keep_freed_memory, precision_here
from pcam_lightning.messages import UserError, say, warn
from pcam_lightning.predictions import Collector, write_labelled, write_submission
from pcam_lightning.run import Run, claim_run, run_of
from pcam_lightning.split import describe, shared_slides, split_digest, write_split
from pcam_lightning.synthetic import synthesize

PROG = "python -m pcam_lightning"
REHEARSAL_BATCH = 64  # 2,000 drawn patches make 25 steps an epoch with it, and 4 with the recipe's 512


class StagesCLI(LightningCLI):
    """LightningCLI's four stages, after parsing.

    Flags are checked before data, data before weights, and a folder is claimed for the run when all are well.
    """

    checkpoint: dict[str, Any] | None = None  # that --ckpt_path names
    resumed: Run | None = None  # the run that `fit --ckpt_path last` goes on with
    place: Run | None = None  # where the run is to be, if not in a folder of its own claiming
    run: Run | None = None
    name = "default"  # of the run's folder: the stem of the last -c

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.keep, self.metrics_file = KeepCheckpoints(), MetricsFile()
        super().__init__(*args, **kwargs)

    def _runs(self, chosen: Namespace) -> Path:
        return Path(chosen.trainer.default_root_dir or ".") / "lightning_logs" / self.name

    def before_instantiate_classes(self) -> None:
        """Settle what depends on the machine: the data folder, the precision."""
        chosen = self.config[self.subcommand]
        rehearsal = cache_folder() / f"rehearsal-{__version__}"
        if chosen.data.root is None and self.checkpoint is not None:  # a null in the user's -c names no other folder
            chosen.data.root = Path(self.checkpoint["pcam"]["data"]["root"])
        if chosen.data.root is None and not Path("data").is_dir():
            chosen.data.root = rehearsal
            say(
                f"NO DATA: no folder data/ here and no --data.root, so this is a rehearsal of {self.name}.yaml on "
                f"drawn tissue in {rehearsal}. Its scores say nothing about real patches."
            )
            if chosen.data.batch_size > REHEARSAL_BATCH:
                say(f"Rehearsal: batch size {REHEARSAL_BATCH} instead of {chosen.data.batch_size}, for enough steps.")
                chosen.data.batch_size = REHEARSAL_BATCH
        chosen.data.root = chosen.data.root or Path("data")
        for name in ("root", "cache_dir", "split_file", "slides"):  # the run is to find them again from another folder
            if isinstance(chosen.data[name], Path):
                chosen.data[name] = chosen.data[name].absolute()
        self.rehearsal = chosen.data.root == rehearsal.absolute()
        chosen.trainer.precision = precision_here(chosen.trainer.accelerator, chosen.trainer.precision)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with what always belongs to it.

        Raises:
            UserError: the flags do not go together, or not with this machine.
        """
        callbacks: list[Any] = []
        if self.subcommand == "fit":
            callbacks = [self.metrics_file, self.keep]
        config = self.config_init[self.subcommand].trainer
        _check_trainer(config, fits=self.subcommand == "fit")
        own: dict[str, Any] = {
            "callbacks": [*_listed(config.callbacks), *callbacks],
            "plugins": [*_listed(config.plugins), WholeCheckpointIO()],
        }
        if config.logger in (None, True) or self.subcommand != "fit":
            own["logger"] = False  # before_fit adds TensorBoard, once it is clear that there is something to log
        try:
            trainer = Trainer(**{**config.as_dict(), **own, **kwargs})
        except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
            raise UserError(f"--trainer: {error} ({PROG} {self.subcommand} --help lists its options)") from error
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        ours: dict[str, Any] = {"weights_only": True}
        if subcommand == "predict":
            ours["return_predictions"] = False
        return {**super()._prepare_subcommand_kwargs(subcommand), **ours}

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand != "fit":
            self._written_run()
        self._draw_rehearsal()
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"--model.compile true: torch.compile fails on this machine ({reason}); leave the option out, or false."
            ) from error

    def before_fit(self) -> None:
        """Check data, then weights, and only then claim a folder for the run."""
        data, model, chosen = self.datamodule, self.model, self.config[self.subcommand]
        if self.resumed is not None:
            self._take_split_of(self.resumed)
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
            self._check_that_it_goes_on(self.checkpoint)
        if chosen.model.compile:  # a machine without a compiler is found out before a folder is claimed
            torch.compile(torch.neg)(torch.zeros(2, device=self.trainer.strategy.root_device))
        if model.freezes and isinstance(self.trainer.strategy, DDPStrategy):
            # What is frozen gets no gradient in the first epoch, which DDP takes for an error unless told to look.
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        train, val = int((~data.val_mask).sum()), int(data.val_mask.sum())
        if train == 0:
            raise UserError(f"{data.split_file}: all patches are in the validation part, none is left to train on.")
        sides = (describe(data.table, ~data.val_mask), describe(data.table, data.val_mask))
        say(f"data: {data.root}: {sides[0]} to train on, {sides[1]} to validate.")
        if val and not self.rehearsal and (told := shared_slides(data.table, data.val_mask)):
            say(
                f"val/auroc will be optimistic, by some 0.04 on the data in README: {told}. --data.slides FILE "
                "(id,wsi) holds out whole slides; the README tells how to get it."
            )
        say(
            f"network: {chosen.model.backbone} from {'random' if model.started_from == 'none' else model.started_from} "
            f"weights, {chosen.trainer.precision} on {self.trainer.strategy.root_device}."
        )
        if not chosen.trainer.fast_dev_run:
            self._open_run()

    def _take_split_of(self, run: Run) -> None:
        """Take the split that a run was made with, unless the user asks for another one.

        A new draw is the same, but for groups that look alike: another machine may round their clustering differently.
        """
        assert self.checkpoint is not None
        recorded, chosen = self.checkpoint["pcam"]["config"]["data"], self.config[self.subcommand].data
        if run.split.is_file() and all(
            str(recorded.get(name)) == str(chosen[name]) for name in ("root", *SPLIT_OPTIONS)
        ):
            self.datamodule.split_file = run.split

    def _check_that_it_goes_on(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on where there is nothing to do, or where the resumed run's validation part has changed."""
        data, most = self.datamodule, self.trainer.max_epochs
        done = checkpoint["epoch"] + 1 if checkpoint["global_step"] else 0
        if most is not None and done >= most:
            raise UserError(f"--ckpt_path: has had {done} epochs already; a higher --trainer.max_epochs goes on.")
        if self.resumed is None:
            return
        if split_digest(data.table, data.val_mask) != checkpoint["pcam"]["split"]["sha256"]:
            raise UserError(
                f"{self.resumed.folder}: the patches or their split are others than this run's, and patches that have "
                "trained it would validate it. Leave --data options out, or start a new run."
            )
        if data.store.fingerprint != checkpoint["pcam"]["data"]["fingerprint"]:
            warn(f"{data.root}: the image files have changed since this run began; their ids are the same.")

    def _open_run(self) -> None:
        data, chosen = self.datamodule, self.config[self.subcommand]
        plain = yaml.safe_load(self._parser(self.subcommand).dump(chosen, skip_unset=False))
        plain.pop("config", None)
        plain["ckpt_path"] = None
        if self.trainer.is_global_zero:
            self.run = self.resumed or self.place or claim_run(self._runs(chosen))
            self.run.best.parent.mkdir(parents=True, exist_ok=True)
            for left_over in self.run.last.parent.glob(".*.tmp"):  # of a run that was killed while it saved
                left_over.unlink()
            if self.resumed is None:
                write_whole(self.run.config, yaml.safe_dump(plain, sort_keys=False))
                write_split(self.run.split, data.table, data.val_mask)
            if chosen.trainer.logger is not False:
                purge = self.checkpoint["global_step"] + 1 if self.resumed and self.checkpoint else None
                self.trainer.loggers = [TensorBoard(self.run, purge), *self.trainer.loggers]
                self._add(LearningRateMonitor("step"))
            say(f"run: {self.run.folder}")
        self.keep.run = self.metrics_file.run = self.run
        self.keep.goes_on = self.metrics_file.goes_on = self.resumed is not None
        self.keep.record = {
            "version": __version__,
            "config": plain,
            "data": {"root": str(data.root), "fingerprint": data.store.fingerprint, "patches": len(data.table)},
            "split": {
                "val": int(data.val_mask.sum()),
                "sha256": split_digest(data.table, data.val_mask),
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
        if self.keep.best_epoch is not None:
            say(f"report:     {PROG} evaluate {self.run.folder}")
        say(f"submission: {PROG} predict --ckpt_path {best}")

    def before_validate(self) -> None:
        """Take the network to the data that its run held out."""
        assert self.checkpoint is not None
        self._take_split_of(self._written_run())
        self.datamodule.setup("validate")
        if not self.datamodule.val_mask.any():
            raise UserError("--data.val_fraction 0: this run held nothing out, so there is nothing to validate on.")
        recorded = self.checkpoint["pcam"]["split"]["sha256"]
        if split_digest(self.datamodule.table, self.datamodule.val_mask) != recorded:
            warn("this is not the validation part of the checkpoint's run: some of these patches may have trained it.")

        self._collect("val", self.datamodule.table)

    def before_test(self) -> None:
        """Take the network to the answers."""
        self.datamodule.setup("test")
        self._collect("test", self.datamodule.test_table)

    def _collect(self, part: str, table: pd.DataFrame) -> None:
        path = self._written_run().predictions(part)
        self._add(Collector(lambda logit: write_labelled(path, table, logit)))

    def _add(self, callback: Callback) -> None:
        self.trainer.callbacks.append(callback)  # type: ignore[attr-defined]

    def after_validate(self) -> None:
        """Keep the scores in the run."""
        self._write_scores("validate")

    def after_test(self) -> None:
        """Keep the scores in the run."""
        self._write_scores("test")

    def before_predict(self) -> None:
        """Have the submission written."""
        chosen, data = self.config[self.subcommand], self.datamodule
        run = self._written_run()
        temperature = _temperature(run) if chosen.calibrate else 1.0

        def write(logit: "pd.Series[float]") -> None:
            write_submission(run.submission, data.test_table["id"], logit / temperature, overwrite=chosen.overwrite)

        self._add(Collector(write))
        say(f"data: {self.datamodule.root}; checkpoint: {chosen.ckpt_path}")

    def _write_scores(self, stage: str) -> None:
        chosen = self.config[self.subcommand]
        scores = {name: float(value) for name, value in sorted(self.trainer.callback_metrics.items())}
        told = {"checkpoint": str(chosen.ckpt_path), "root": str(self.datamodule.root), **scores}
        path = self._written_run().folder / f"{stage}.json"
        if self.trainer.is_global_zero:
            write_whole(path, json.dumps(told, indent=2) + "\n")
            say(f"{path}: {', '.join(f'{name} {value:.4f}' for name, value in scores.items())}")

    def _written_run(self) -> Run:
        """Return the run of the checkpoint; refuse one that cannot be written before there is anything to write."""
        run = run_of(Path(self.config[self.subcommand].ckpt_path))
        if not os.access(run.folder, os.W_OK):
            raise UserError(f"{run.folder}: cannot be written, and results go there; copy the checkpoint elsewhere.")
        return run

    def _draw_rehearsal(self) -> None:
        root = self.datamodule.root
        if self.rehearsal and not root.is_dir():
            root.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(root.with_name(f"{root.name}.lock")):  # whoever comes second waits
                if not root.is_dir():
                    synthesize(root)


def _temperature(run: Run) -> float:
    """Return the temperature that `evaluate` found for a run."""
    try:
        return float(json.loads((run.folder / "report.json").read_text(encoding="utf-8"))["temperature"])
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{run.folder / 'report.json'}: no temperature there; {PROG} evaluate {run.folder} finds it."
        ) from None


def _check_trainer(config: Namespace, *, fits: bool) -> None:
    """Refuse what Lightning takes and this project cannot do, or what would train nothing."""
    halves = ("16-true", "bf16-true", "64-true", "64", 64)
    none = 0 in (config.max_epochs, config.max_steps, config.limit_train_batches)
    for wrong, way_on in (
        (config.precision in halves, "precision: 32-true, or one that is mixed"),
        (config.overfit_batches, "overfit_batches: --trainer.limit_train_batches takes its place here"),
        (config.accumulate_grad_batches < 1, "accumulate_grad_batches: at least 1"),
        ((config.gradient_clip_val or 0) < 0, "gradient_clip_val: at least 0"),
        (fits and config.max_epochs == -1 and config.max_steps == -1, "max_epochs: not -1, the cosine needs an end"),
        (fits and none, "max_epochs, max_steps, limit_train_batches: 0 would train nothing"),
    ):
        if wrong:
            raise UserError(f"--trainer.{way_on}.")


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
