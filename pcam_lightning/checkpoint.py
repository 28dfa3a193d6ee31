"""best.ckpt and last.ckpt: when they are written, how, and what they tell of their run."""

import io
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from pcam_lightning import __version__
from pcam_lightning.files import link_whole, write_whole
from pcam_lightning.messages import UserError, say
from pcam_lightning.run import Run
from pcam_lightning.tensors import read_tensors

_LAUNCHERS = ".temp.ckpt"  # by which Lightning's spawn and fork launchers hand weights to the process that called fit
FORMAT = 1  # of what a checkpoint tells of its run; one of a higher number is refused


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads tensors and plain values only.

    Lightning's own writer goes through a temporary file in the system's folder: moved across file systems, that is a
    copy, and a copy can stop half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint beside its place, then rename it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # of a callback of the user's own
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of this project, see `read_checkpoint`, or the weights that started processes leave."""
        if Path(path).name == _LAUNCHERS:
            state: dict[str, Any] = read_tensors(Path(path))
            return state
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project, tensors on the CPU.

    Raises:
        UserError: missing, damaged, or not one of ours; a pickle that would run code is not read.
    """
    if found := next((one for one in (Run(path).best, Run(path).last) if one.is_file()), None):
        raise UserError(f"{path}: the folder of a run, and no checkpoint; {found} is one.")
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; runs keep theirs in lightning_logs/NAME/version_N/checkpoints/.")
    try:
        checkpoint = read_tensors(path)
    except ValueError as error:
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({error}).") from None
    record = checkpoint.get("pcam") if isinstance(checkpoint, dict) else None
    if not (isinstance(record, dict) and {"config", "data", "split"} <= set(record) and "state_dict" in checkpoint):
        raise UserError(f"{path}: not a checkpoint of this project; weights from elsewhere go to fit --model.weights.")
    if record.get("format", FORMAT) > FORMAT:
        raise UserError(
            f"{path}: made by pcam_lightning {record.get('version')}, which is newer than this one, {__version__}; "
            "install that version to read it."
        )
    whole: dict[str, Any] = checkpoint
    return whole


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return the whole epochs that a checkpoint's run has had."""
    return int(checkpoint["epoch"]) + 1 if checkpoint["global_step"] else 0


def has_ended(checkpoint: dict[str, Any], max_epochs: int | None, max_steps: int) -> bool:
    """Tell whether a checkpoint's run has had all epochs or steps, -1 for no limit."""
    return 0 < (max_epochs or -1) <= epochs_done(checkpoint) or 0 < max_steps <= checkpoint["global_step"]


def run_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a checkpoint's run that count beyond training.

    A stranger's checkpoint may hold others, callbacks with a class of their choice for one: these are left out.
    """
    config = checkpoint["pcam"]["config"]
    return {
        "seed_everything": config["seed_everything"],
        "data": config["data"],
        # To compile pays in training at most, and needs a compiler that the machine which predicts may not have.
        "model": {**config["model"], "compile": False},
        "trainer": {"precision": config["trainer"]["precision"]},
    }


class KeepCheckpoints(Checkpoint):
    """Keeps the best epoch's checkpoint and the last whole epoch's, and nothing else.

    last.ckpt is there from the first step on, so that a run that is stopped in its first epoch can go on too. An
    interrupted epoch is never saved: the resumed run repeats it from its start, and so is the same run.
    """

    def __init__(self) -> None:
        self.run: Run | None = None  # None: nothing is kept
        self.goes_on = False  # a resumed run has its last.ckpt already
        self.way_on = "the same command"  # what goes on with the run
        self.record: dict[str, Any] = {}  # what the checkpoint tells of its run
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self._validated: int | None = None  # the step whose weights val/auroc is of
        self._whole = False  # whether what is being saved is a whole epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save where the run starts, unless it goes on from there."""
        # The first process has made the folder; all must take part in saving.
        self.run = trainer.strategy.broadcast(self.run)
        if self.run and not self.goes_on:
            self._save(trainer, self.run.last)

    def _save(self, trainer: L.Trainer, path: Path) -> None:
        self._whole = True
        trainer.save_checkpoint(path, weights_only=False)
        self._whole = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note which weights val/auroc is of."""
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
        self._save(trainer, self.run.best if improved else self.run.last)
        if improved and trainer.is_global_zero:
            link_whole(self.run.best, self.run.last)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what the checkpoint tells of its run."""
        checkpoint["pcam"] = {**self.record, "whole": self._whole}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say how a stopped run goes on."""
        if self.run and isinstance(exception, KeyboardInterrupt | OSError) and self.run.last.is_file():
            of = "the last whole epoch" if trainer.current_epoch else "the start"
            say(f"\nstopped; {self.run.last} is of {of}. What goes on from it: {self.way_on}")

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score so far; a new run that starts from another's checkpoint has none."""
        if self.goes_on:
            self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
