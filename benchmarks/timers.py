"""Callbacks for runs of the real command line, with benchmarks/ on the path: `--trainer.callbacks timers.Clock`."""

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from device import wait_for_device
from torch.nn import functional

from pcam_lightning.utils.atomic_io import atomic_write


class StepTimer(L.Callback):
    """Writes the seconds of each training or prediction step, without waiting for data.

    Args:
        file: JSON file with the end time of the first step (seconds since 1970) and the list of seconds.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.first = 0.0
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock."""
        self._stop()

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start the clock."""
        self._start()

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop the clock."""
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the times."""
        atomic_write(self.file, json.dumps({"first": self.first, "seconds": self.seconds}))

    def _start(self) -> None:
        wait_for_device()
        self._begun = time.perf_counter()

    def _stop(self) -> None:
        wait_for_device()
        self.seconds.append(time.perf_counter() - self._begun)
        self.first = self.first or time.time()


class Growth(L.Callback):
    """Progressive resizing: starts with downscaled patches (area averaging) and increases their side during training.

    Args:
        side: initial side in pixels, a multiple of 16; grows to 96 in equally long steps of 16 pixels.
        share: share of training after which patches have full size. Validation always uses full size.
    """

    def __init__(self, side: int, share: float) -> None:
        self.sides = range(side, 97, 16)
        self.share = share

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Register the scaling before the network."""
        until = float(trainer.estimated_stepping_batches) * self.share

        def scale(net: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
            number = int(trainer.global_step / until * (len(self.sides) - 1))
            if not net.training or number >= len(self.sides) - 1:
                return None
            with torch.autocast(inputs[0].device.type, enabled=False):
                scaled = functional.interpolate(inputs[0], (self.sides[number],) * 2, mode="area")
            return (scaled.contiguous(memory_format=torch.channels_last),)

        pl_module.net.register_forward_pre_hook(scale)  # type: ignore[union-attr]


class Clock(L.Callback):
    """Writes val/auroc and the seconds of training so far (without validation), and stops at a target score.

    Args:
        file: JSON file with a list of rows with step, seconds and auroc.
        target: training stops when two consecutive validations reach this val/auroc; None disables stopping.
    """

    def __init__(self, file: Path, target: float | None = None) -> None:
        self.file = file
        self.target = target
        self.rows: list[dict[str, float]] = []
        self._seconds, self._begun = 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        wait_for_device()
        self._seconds += time.perf_counter() - self._begun

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the score and restart the clock."""
        auroc = float(trainer.callback_metrics["val/auroc"])
        self.rows.append({"step": trainer.global_step, "seconds": self._seconds, "auroc": auroc})
        atomic_write(self.file, json.dumps(self.rows))
        trainer.should_stop = trainer.should_stop or reached(self.rows, self.target) is not None
        self._begun = time.perf_counter()


def reached(rows: list[dict[str, float]], target: float | None) -> float | None:
    """Return the seconds at the second of two consecutive validations that reach a score, or None."""
    for before, row in itertools.pairwise(rows):
        if target is not None and min(before["auroc"], row["auroc"]) >= target:
            return row["seconds"]
    return None


def spread(values: list[float]) -> str:
    """Return the median, minimum and maximum as text."""
    return f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"
