"""The callback that keeps best.ckpt and last.ckpt, and what these record of their run."""

import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pcam_lightning.training.run_record import run_record, trainer_options
from pcam_lightning.utils.atomic_io import atomic_link
from pcam_lightning.utils.errors import rank_zero_info
from pcam_lightning.utils.run_dir import Run


class BestAndLastCheckpoint(Checkpoint):
    """Keeps the best epoch's checkpoint and the last whole epoch's, and nothing else.

    last.ckpt is there from the first step on, so that a run that is stopped in its first epoch can be resumed too. An
    interrupted epoch is never saved: the resumed run repeats it from its start, and equals a run never stopped.

    `fit` adds it to its trainer; with a plain trainer, name the folder::

        L.Trainer(callbacks=[BestAndLastCheckpoint("runs/mine")]).fit(model, data)

    Args:
        folder: of the run; the checkpoints go to `checkpoints/` in it. None keeps nothing.
    """

    state_key = "BestAndLastCheckpoint"  # in checkpoints; a class may be renamed

    def __init__(self, folder: Path | str | None = None) -> None:
        self.run = None if folder is None else Run(Path(folder).expanduser())
        self.resuming = False  # a resumed run has its last.ckpt already
        self.resume_with = ""  # what resumes the run, where `fit` started it
        self.record: dict[str, Any] = {}  # what checkpoints record of their run
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self._loaded: dict[str, Any] = {}  # the best score of the checkpoint that training continues from
        self._validated: int | None = None  # the step whose weights val/auroc is of
        self._whole = False  # whether what is being saved is a whole epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the start of the run, unless it is resumed."""
        # The first process has made the folder; all must take part in saving.
        self.run = trainer.strategy.broadcast(self.run)
        if self.run and trainer.ckpt_path and Path(trainer.ckpt_path).absolute() == self.run.last.absolute():
            self.resuming = True
            self.load_state_dict(self._loaded)
        if self.run and not self.record:
            self.record = run_record(trainer, trainer_options(trainer, pl_module))
        if self.run and not self.resuming:
            self.save(trainer, self.run.last)

    def save(self, trainer: L.Trainer, path: Path) -> None:
        """Save a checkpoint that is not within an epoch."""
        self._whole = True
        trainer.save_checkpoint(path, weights_only=False)
        self._whole = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the step that val/auroc belongs to."""
        self._validated = None if trainer.sanity_checking else trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the epoch; the earlier one of two equal scores is the better one."""
        if self.run is None:
            return
        improved = False
        validated = self._validated == trainer.global_step
        score = float(trainer.callback_metrics["val/auroc"]) if validated else math.nan
        if math.isfinite(score) and (self.best_score is None or score > self.best_score):
            improved, self.best_score, self.best_epoch = True, score, trainer.current_epoch
        # The best one first: a run that is killed in between repeats the epoch, and finds it best again.
        self.save(trainer, self.run.best if improved else self.run.last)
        if improved and trainer.is_global_zero:
            atomic_link(self.run.best, self.run.last)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the record of the run."""
        checkpoint["pcam"] = {**self.record, "whole": self._whole}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Report how a stopped run is resumed."""
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException | OSError)
        if self.run and stopped and self.run.last.is_file():
            saved = "the last whole epoch" if trainer.current_epoch else "the start"
            call = self.resume_with or f'trainer.fit(model, data, ckpt_path="{self.run.last.absolute()}")'
            rank_zero_info(f"\nstopped; {self.run.last} is of {saved}. Resume with: {call}")

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the best score for a resumed run; a new run that starts from another run's checkpoint has none."""
        self._loaded = state_dict
        if self.resuming:
            self.best_score, self.best_epoch = state_dict.get("best_score"), state_dict.get("best_epoch")
