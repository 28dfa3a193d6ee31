"""fit: check the options, the data and the weights in turn, claim a run folder, train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

from pcam_lightning.data.datamodule import SPLIT_OPTIONS, PCamDataModule
from pcam_lightning.data.kaggle import KaggleFolder
from pcam_lightning.data.slide_map import find_slides
from pcam_lightning.data.sources import layout_of, source_of
from pcam_lightning.data.splits import describe, find_slide_leakage, write_split
from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.models.classifier import FIT_PATCHES, PCamClassifier
from pcam_lightning.plotting.plots import best_epoch
from pcam_lightning.training.best_and_last import BestAndLastCheckpoint, run_record
from pcam_lightning.training.checkpoint import epochs_done, read_checkpoint
from pcam_lightning.training.demo_run import draw_demo_data, is_demo_folder, load_initial_weights
from pcam_lightning.training.image_logger import ImageLogger
from pcam_lightning.training.lightning_internals import (
    end_by_epochs,
    find_unused_parameters,
    keyboard_interrupt,
)
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
)
from pcam_lightning.training.trainer import build_trainer, check_monitors, compile_errors, progress_bar
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.run_dir import Run, create_run, run_of, run_to_resume, shown


@dataclass(frozen=True)
class FitResult:
    """The result of a run; its paths are absolute.

    Attributes:
        run: its folder; None of a `fast_dev_run`, which keeps nothing.
        metrics: a row an epoch, as in metrics.csv.
        best_epoch: the epoch with the highest val/auroc, counted from 1; None where nothing was validated.
        best_score: its val/auroc.
        checkpoint: of that epoch, or of the last one where nothing was validated.
        demo: whether it was a demo run on synthetic tissue, because there were no data.
    """

    run: Run | None
    metrics: pd.DataFrame
    best_epoch: int | None = None
    best_score: float | None = None
    checkpoint: Path | None = None
    demo: bool = False


def fit(
    config: Config,
    *,
    run: Run | None = None,
    ckpt_path: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
    resume_with: Callable[[Run], str] | None = None,
) -> FitResult:
    """Train a network.

    Flags are checked before data, data before weights, and only then a folder is claimed for the run.

    Args:
        config: the options.
        run: where the run is kept; one that holds a last.ckpt is resumed. By default a new folder is claimed.
        ckpt_path: the last.ckpt of a run, which is resumed in its folder; or another checkpoint, from which a new run
            continues.
        callbacks: besides those of the options.
        resume_with: returns what resumes a run, for the message of one that is stopped; by default a call of `fit`.

    Returns:
        The run's folder, metrics and best epoch.

    Raises:
        UserError: an option, the data, the weights or a checkpoint cannot be used.
        LossDiverged: the loss is NaN or infinite.
        KeyboardInterrupt: the run was stopped; a message says how it is resumed.
    """
    if run is None and ckpt_path is not None:
        run = run_to_resume(Path(ckpt_path).expanduser())
    resumed = run if run is not None and run.last.is_file() else None
    if resumed is not None:
        ckpt_path = resumed.last
    checkpoint = None if ckpt_path is None else read_checkpoint(Path(ckpt_path))
    if checkpoint is not None and "optimizer_states" not in checkpoint:
        raise UserError(f"`ckpt_path` {ckpt_path}: weights alone, nothing to resume; `model.weights` starts from them.")
    config.resolve(checkpoint)
    if resumed is not None:
        rank_zero_info(f"resuming {shown(resumed.folder)}, on {config.options.data.root}")
    elif config.options.data.folds is not None:
        config.use_slides_for_folds()
    seed_everything(config.options.seed_everything, workers=True, verbose=False)
    session = FitSession(config, resumed, None if ckpt_path is None else Path(ckpt_path), checkpoint, callbacks)
    if session.demo:
        draw_demo_data()
    session.prepare()
    if not config.options.trainer.fast_dev_run:
        session.open_run(run)
        if session.run is not None:
            session.keep.resume_with = (resume_with or partial(_python_call, callbacks=bool(callbacks)))(session.run)
    with keyboard_interrupt(), compile_errors():
        session.trainer.fit(session.model, datamodule=session.data, ckpt_path=ckpt_path, weights_only=True)
    return session.result()


def _python_call(run: Run, *, callbacks: bool) -> str:
    folder, more = run.folder.absolute(), ", callbacks=..." if callbacks else ""
    return f'fit(Config.load("{Run(folder).config}"), ckpt_path="{Run(folder).last}"{more})'


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
            before = TrainingPatches.of_checkpoint(path, self.checkpoint)
        held_out = data.table[data.val_mask]
        if before.caution:
            rank_zero_warn(f"val/auroc may be optimistic: the weights of {path} were {before.caution}.")
        if overlap := before.count(held_out):
            split = run_of(path).split
            hint = f" `data.split_file` {split} holds out the patches that its run did." if split.is_file() else ""
            rank_zero_warn(
                f"val/auroc will be optimistic: {overlap:,} of {len(held_out):,} validation patches trained the "
                f"weights that this run starts from, {path}.{hint}"
            )

    def _report_data(self) -> None:
        data, split_file = self.data, self.options.data.split_file
        sides = (describe(data.table, ~data.val_mask), describe(data.table, data.val_mask))
        official = "val" in data.table and data.folds is None and split_file is None and data.holdout is None
        parts = f", {source_of(data.root, data.columns).own_split}" if official else ""
        rank_zero_info(f"data: {data.root}: {sides[0]} to train on, {sides[1]} to validate{parts}.")
        leakage = find_slide_leakage(data.table, data.val_mask, by_file=split_file is not None)
        if not data.val_mask.any() or self.demo or not leakage.message:
            return
        found = find_slides(data.root)
        if split_file is not None and leakage.certain:
            hint = f"Leave `data.split_file` out: {split_file} separates patches of one slide."
        elif data.slides is not None:
            hint = f"{data.slides} should name them all."
        elif found is not None:
            hint = f"`data.slides` {found} holds out whole slides."
        elif "slide" in data.table:
            hint = "`data.holdout` slide holds out whole slides."
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

    def result(self) -> FitResult:
        """Return what the run's files say: processes that the trainer started leave nothing of their own here."""
        if self.run is None:
            return FitResult(None, pd.DataFrame(self.metrics.rows), demo=self.demo)
        run = Run(self.run.folder.absolute())  # the program may go to another folder
        metrics = pd.read_csv(run.metrics)
        if "val/auroc" not in metrics or not metrics["val/auroc"].notna().any():
            return FitResult(run, metrics, checkpoint=run.last, demo=self.demo)
        best = best_epoch(metrics)
        return FitResult(run, metrics, int(best["epoch"]), float(best["val/auroc"]), run.best, self.demo)


def take_split(data: PCamDataModule, run: Run, checkpoint: dict[str, Any] | None, options: Any) -> None:
    """Use the split that a run was made with, unless the options ask for another one."""
    assert checkpoint is not None
    recorded, chosen = checkpoint["pcam"]["config"]["data"], options.data
    if run.split.is_file() and all(str(recorded.get(name)) == str(chosen[name]) for name in ("root", *SPLIT_OPTIONS)):
        data.split_file = run.split
