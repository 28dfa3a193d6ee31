"""One call of `fit` or `probe`: data, network and trainer, what is checked, and what is recorded of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.kaggle import KaggleFolder
from pcam_lightning.data.leakage import find_slide_leakage
from pcam_lightning.data.slide_map import find_slides
from pcam_lightning.data.sources import layout_of, source_of
from pcam_lightning.data.splits import describe, write_split
from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.models.classifier import FIT_PATCHES, PCamClassifier
from pcam_lightning.training.best_and_last import BestAndLastCheckpoint, run_record
from pcam_lightning.training.checkpoint import epochs_done
from pcam_lightning.training.demo_run import is_demo_folder, load_initial_weights
from pcam_lightning.training.image_logger import ImageLogger
from pcam_lightning.training.lightning_internals import end_by_epochs, find_unused_parameters
from pcam_lightning.training.metrics_csv import MetricsCSV, RunTensorBoardLogger
from pcam_lightning.training.nan_guard import NanGuard
from pcam_lightning.training.options import Config
from pcam_lightning.training.resume import (
    check_checkpoint,
    check_data,
    check_recipe,
    check_steps,
    check_validation,
    steps_per_epoch,
    take_split,
)
from pcam_lightning.training.trainer import build_trainer, check_monitors, compile_errors, progress_bar
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.run_dir import Run, create_run, run_of, shown


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
        if not (~data.val_mask).any():
            origin = data.split_file or f"`data.val_fraction` {data.val_fraction}"
            raise UserError(f"{origin}: all patches are in the validation part, none is left to train on.")
        self._prepare_weights()
        check_validation(self.trainer, data)
        self._report_training_overlap()
        if self.model.augmentation.mixup and "sample_weight" in data.table:
            rank_zero_warn(
                "`model.augment.mixup` mixes patches of a low sample_weight into others with their own weight."
            )
        check_monitors(self.trainer, self.model, int(data.val_mask.sum()))
        self._report_data()
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
            if model.preprocess.needs_fit:
                model.preprocess.fit(self.data.sample(FIT_PATCHES))
        else:
            model.init_weights = self.checkpoint["init_weights"]
            self._check_resumed(self.checkpoint)
        if self.options.model.compile:  # a machine without a compiler is found out before a folder is claimed
            with compile_errors():
                torch.compile(torch.neg)(torch.zeros(2, device=self.trainer.strategy.root_device))
        if model.freezes:
            # What is frozen gets no gradient in the first epoch, which DDP would take for an error.
            find_unused_parameters(self.trainer)

    def _check_resumed(self, checkpoint: dict[str, Any]) -> None:
        """Check that the run is not finished, and that steps per epoch, recipe and data are unchanged."""
        assert self.ckpt_path is not None
        check_checkpoint(self.ckpt_path, checkpoint, self.model.hparams, self.trainer)
        end_by_epochs(self.trainer)
        if self.resumed is not None:
            check_recipe(checkpoint["pcam"]["config"], self.config.plain())
            check_data(self.resumed, checkpoint["pcam"], self.data)
        check_steps(self.ckpt_path, checkpoint, steps_per_epoch(self.trainer, self.data))

    def _report_training_overlap(self) -> None:
        """Count the validation patches that trained the weights which a new run starts from."""
        if self.resumed is not None:
            return
        data = self.data
        path = Path(self.ckpt_path or self.options.model.weights).expanduser()
        before = self.model.trained
        if self.checkpoint is not None:
            before = TrainingPatches.of_checkpoint(self.checkpoint)
        held_out = data.table[data.val_mask]
        if overlap := before.count(held_out):
            split = run_of(path).split
            hint = f" `data.split_file` {split} holds out the patches that its run did." if split.is_file() else ""
            rank_zero_warn(
                f"val/auroc will be optimistic: {overlap:,} of {len(held_out):,} validation patches trained the "
                f"weights that this run starts from, {path}.{hint}"
            )
        if before.caution:
            rank_zero_warn(f"val/auroc may be optimistic: the weights of {path} were {before.caution}.")

    def _report_data(self) -> None:
        data, split_file = self.data, self.options.data.split_file
        sides = (describe(data.table, ~data.val_mask), describe(data.table, data.val_mask))
        official = "val" in data.table and data.folds is None and split_file is None and data.holdout is None
        parts = f", {source_of(data.root, data.columns).own_split}" if official else ""
        rank_zero_info(f"data: {data.root}: {sides[0]} to train on, {sides[1]} to validate{parts}.")
        leakage = find_slide_leakage(data.table, data.val_mask, by_file=split_file is not None, holdout=data.holdout)
        if not data.val_mask.any() or self.demo or not leakage.message:
            return
        found = find_slides(data.root)
        if split_file is not None and leakage.certain:
            hint = f"Leave `data.split_file` out: {split_file} separates patches of one slide."
        elif leakage.level == "slide" and data.slides is not None:
            hint = f"{data.slides} should name them all."
        elif leakage.level == "slide" and found is not None:
            hint = f"`data.slides` {found} holds out whole slides."
        elif leakage.level == data.holdout:
            hint = f"{data.root} should name them all."
        elif leakage.level in data.table:
            hint = f"`data.holdout` {leakage.level} holds out whole {leakage.level}s."
        elif layout_of(data.root) is KaggleFolder:
            hint = (
                "`data.slides` FILE (id,wsi) holds out whole slides: Kaggle's users share a patch_id_wsi_full.csv, and "
                "the slides command makes one from PCam's own files."
            )
        else:
            hint = (
                "A CSV of patches with a column slide, as `data.root`, and `data.holdout` slide hold out whole slides."
            )
        will = "will be optimistic, by 0.027 to 0.037 on the data in README" if leakage.certain else "may be optimistic"
        rank_zero_info(f"val/auroc {will}: {leakage.message}. {hint}")

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
        rank_zero_info(f"run: {shown(run.folder)}{self._progress()}")
        return page

    def _progress(self) -> str:
        """Return where a resumed run continues, and where it ends."""
        if self.resumed is None or self.checkpoint is None:
            return ""
        epochs, steps = self.trainer.max_epochs or -1, self.trainer.max_steps
        end = f" of {epochs}" if epochs > 0 else ""
        end += f", to step {steps:,} at most" if steps > 0 else ""
        return f" resumes at epoch {epochs_done(self.checkpoint) + 1}{end}"
