"""One call of `fit` or `probe`: data, network and trainer, what is checked, and what is recorded of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.splits import write_split
from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.best_and_last import BestAndLastCheckpoint
from pcam_lightning.training.demo_run import is_demo_folder, load_initial_weights
from pcam_lightning.training.fit_report import report_data, report_training_overlap
from pcam_lightning.training.image_logger import ImageLogger
from pcam_lightning.training.lightning_internals import find_unused_parameters
from pcam_lightning.training.metrics_csv import MetricsCSV, RunTensorBoardLogger
from pcam_lightning.training.nan_guard import NanGuard
from pcam_lightning.training.options import Config
from pcam_lightning.training.resume import check_resumed, check_validation, describe_progress, take_split
from pcam_lightning.training.run_record import run_record
from pcam_lightning.training.trainer import build_trainer, check_monitors, progress_bar
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.run_dir import Run, create_run, shown
from pcam_lightning.utils.system import compile_errors


class FitSession:
    """One call of `fit` or `probe`: data, network and trainer, and what is checked and recorded about them."""

    def __init__(
        self,
        config: Config,
        resumed: Run | None = None,
        ckpt_path: Path | None = None,
        checkpoint: dict[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.options = config, config.options
        self.resumed, self.ckpt_path, self.checkpoint = resumed, ckpt_path, checkpoint
        self.run: Run | None = None
        self.demo = is_demo_folder(self.options.data.root)
        self.guard, self.keep, self.metrics = NanGuard(), BestAndLastCheckpoint(), MetricsCSV()
        self.data: PCamDataModule
        self.model: PCamClassifier
        self.trainer: Trainer
        self.data, self.model, trainer = config.build()
        own = [*callbacks, self.guard, self.metrics, self.keep, *progress_bar(trainer, callbacks)]
        self.trainer = build_trainer(trainer, own, fits=True)

    def prepare(self) -> None:
        """Check data, weights and what is resumed, and report them."""
        data = self.data
        if self.resumed is not None:
            take_split(data, self.resumed, self.checkpoint, self.options)
        data.setup("fit")
        self.config.record_groups(data)
        if not (~data.val_mask).any():
            origin = data.split_file or f"`data.val_fraction` {data.val_fraction}"
            raise UserError(f"{origin}: all patches are in the validation part, none is left to train on.")
        self._prepare_weights()
        check_validation(self.trainer, data)
        if self.resumed is None:
            before = self.model.trained if self.checkpoint is None else TrainingPatches.of_checkpoint(self.checkpoint)
            report_training_overlap(data, before, Path(self.ckpt_path or self.options.model.weights).expanduser())
        if self.model.augmentation.mixup and "sample_weight" in data.table:
            rank_zero_warn(
                "`model.augment.mixup` mixes patches of a low sample_weight into others with their own weight."
            )
        check_monitors(self.trainer, self.model, int(data.val_mask.sum()))
        report_data(data, self.options.data.split_file, demo=self.demo)
        weights = "random" if self.model.init_weights == "none" else self.model.init_weights
        precision = self.options.trainer.precision or "32-true"
        rank_zero_info(
            f"network: {self.options.model.backbone} from {weights} weights, {precision} on "
            f"{self.trainer.strategy.root_device}."
        )

    def _prepare_weights(self) -> None:
        model = self.model
        if self.checkpoint is None:
            load_initial_weights(model, demo=self.demo)
            model.measure(self.data)
        else:
            model.init_weights = self.checkpoint["init_weights"]
            assert self.ckpt_path is not None
            check_resumed(self.ckpt_path, self.checkpoint, self.resumed, self.config.plain(), self.trainer, self.data)
        if self.options.model.compile:  # a machine without a compiler is found out before a folder is claimed
            with compile_errors():
                torch.compile(torch.neg)(torch.zeros(2, device=self.trainer.strategy.root_device))
        if model.freezes:
            # What is frozen gets no gradient in the first epoch, which DDP would take for an error.
            find_unused_parameters(self.trainer)

    def open_run(self, run: Run | None) -> None:
        """Claim the run's folder, and write and record what belongs to it before the first step."""
        plain = self.config.plain()
        page = None
        if self.trainer.is_global_zero:
            self.run = run or create_run(self.config.runs)
            page = self._write_run(self.run, plain)
        logs = self.options.trainer.logger is not False
        if logs:  # in every process: predictions on its patches are gathered
            self.trainer.callbacks.append(ImageLogger(page, self.data))  # type: ignore[attr-defined]
        for callback in (self.keep, self.metrics, self.guard):
            callback.run = self.run
        self.keep.resuming = self.metrics.resuming = self.resumed is not None
        self.keep.record = run_record(self.trainer, plain, self.data)
        self.metrics.options = {
            **plain["model"],
            "weights": self.model.init_weights,  # in a demo run perhaps not those that were asked for
            "augment": {name: value for name, value in plain["model"]["augment"].items() if value},
            **{name: plain["data"][name] for name in ("batch_size", "val_fraction", "split_seed")},
            **{name: plain["trainer"][name] for name in ("max_epochs", "precision")},
            "seed_everything": plain["seed_everything"],
        }

    def _write_run(self, run: Run, plain: dict[str, Any]) -> RunTensorBoardLogger | None:
        run.best.parent.mkdir(parents=True, exist_ok=True)
        for left_over in run.folder.rglob(".*.tmp"):  # of a run that was killed while it saved
            left_over.unlink()
        run.diverged.unlink(missing_ok=True)  # of one that is tried again
        atomic_write(run.config, yaml.safe_dump(plain, sort_keys=False))
        if self.resumed is None:
            write_split(run.split, self.data.table, self.data.val_mask)
        page = None
        if self.options.trainer.logger is not False:
            purge = self.checkpoint["global_step"] + 1 if self.resumed and self.checkpoint else None
            page = RunTensorBoardLogger(run, purge)
            self.trainer.loggers = [page, *self.trainer.loggers]
            self.trainer.callbacks.append(LearningRateMonitor("step"))  # type: ignore[attr-defined]
        progress = describe_progress(self.checkpoint, self.trainer) if self.resumed and self.checkpoint else ""
        rank_zero_info(f"run: {shown(run.folder)}{progress}")
        return page
