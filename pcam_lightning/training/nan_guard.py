"""Stops a run whose loss or weights are NaN or infinite, before a checkpoint of it is kept."""

from itertools import islice
from typing import Any

import lightning as L
import pandas as pd
import torch

from pcam_lightning.data.batches import Batch
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.run_dir import Run

_HINT = (
    "Try a lower `model.lr`, or `trainer.gradient_clip_val` 1; if 16-mixed overflows, `trainer.precision` bf16-mixed "
    "or 32-true"
)


class LossDiverged(UserError):
    """A loss or a weight is NaN or infinite."""


class NanGuard(L.Callback):
    """Checks each step's loss without waiting for the device, and at all weights before they are validated or kept.

    Raises:
        LossDiverged: from its hooks. A training batch whose loss is NaN or infinite is named, and its ids are in the
            run's `diverged.csv`.
    """

    def __init__(self) -> None:
        self.run: Run | None = None  # None: no file
        self._validated = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Get the run's folder, which the first process has made."""
        self.run = trainer.strategy.broadcast(self.run)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the record of invalid losses."""
        self._begun = trainer.global_step
        # The first bad batch of the epoch, -1 for none: on the device, and as the host last heard of it.
        self._bad = torch.full((), -1, device=pl_module.device)
        self._heard = torch.full((), -1, pin_memory=pl_module.device.type == "cuda")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note a loss that is NaN or infinite; stop at one that was noted, in this step or a few before."""
        bad = (self._bad < 0) & ~outputs["loss"].isfinite()
        self._bad = torch.where(bad, batch_idx, self._bad)
        self._heard.copy_(self._bad, non_blocking=True)
        self._stop_at(trainer, int(self._heard))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before weights that are NaN or infinite are validated."""
        if not trainer.sanity_checking:
            self._check_weights(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that val/loss is of this epoch."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before an epoch is kept whose weights or validation loss are NaN or infinite."""
        validated, self._validated = self._validated, False
        if not validated:
            self._check_weights(trainer, pl_module)
        elif not trainer.callback_metrics["val/loss"].isfinite():
            self._stop(trainer, "the validation loss is NaN or infinite")

    def _check_weights(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_at(trainer, int(self._bad))
        state = {name: value for name, value in pl_module.state_dict().items() if value.is_floating_point()}
        finite = torch.stack([value.isfinite().all() for value in state.values()]).tolist()
        if invalid := [name for name, each in zip(state, finite, strict=True) if not each]:
            self._stop(trainer, f"{len(invalid):,} tensors of the network are NaN or infinite, {invalid[0]} first")

    def _stop_at(self, trainer: L.Trainer, batch_idx: int) -> None:
        """Stop where a batch of this epoch had a loss that is NaN or infinite; -1 for none."""
        if batch_idx < 0:
            return
        step = self._begun + batch_idx // trainer.accumulate_grad_batches + 1
        loader: Any = trainer.train_dataloader
        # Which patches they were follows from the epoch: no step has to remember them.
        ids = loader.dataset.ids(next(islice(loader.sampler, batch_idx, None)))
        message = f"the loss of step {step:,} is NaN or infinite. Its {len(ids):,} patches: {', '.join(ids[:3])}"
        if self.run is not None:
            if not self.run.diverged.exists():  # of another process, whose step was the first
                atomic_write(self.run.diverged, pd.DataFrame({"id": ids}).to_csv(index=False, lineterminator="\n"))
            message += f"{', ...' if len(ids) > 3 else ''}, all of them in {self.run.diverged}"
        self._stop(trainer, message)

    def _stop(self, trainer: L.Trainer, message: str) -> None:
        saved = "the last whole epoch" if trainer.current_epoch else "the start"
        kept = f" {self.run.last} is of {saved}." if self.run is not None else ""
        raise LossDiverged(f"epoch {trainer.current_epoch + 1} diverged: {message}.{kept} {_HINT}.")
