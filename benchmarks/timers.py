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
    """Writes the seconds of each step with its data at hand already, of training or of predicting.

    Args:
        file: JSON, with the time at which the first step ended (since 1970) and the list of seconds.
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
        """Write what was timed."""
        atomic_write(self.file, json.dumps({"first": self.first, "seconds": self.seconds}))

    def _start(self) -> None:
        wait_for_device()
        self._begun = time.perf_counter()

    def _stop(self) -> None:
        wait_for_device()
        self.seconds.append(time.perf_counter() - self._begun)
        self.first = self.first or time.time()


class Growth(L.Callback):
    """Lets patches grow while training: they are scaled down, averaging over the area of each new pixel.

    Args:
        side: in pixels when training begins, a multiple of 16; up to 96 in steps of 16, all equally long.
        share: of training after which they are whole. Patches are validated as they are.
    """

    def __init__(self, side: int, share: float) -> None:
        self.sides = range(side, 97, 16)
        self.share = share

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the scaling before the network."""
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
    """Writes val/auroc against the seconds of training so far, validation left out; stops where a score is reached.

    Args:
        file: JSON, a list of rows with step, seconds and auroc.
        target: val/auroc that two validations in a row must reach for training to stop; None to go on to the end.
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
        """Note the score, and start the clock again."""
        auroc = float(trainer.callback_metrics["val/auroc"])
        self.rows.append({"step": trainer.global_step, "seconds": self._seconds, "auroc": auroc})
        atomic_write(self.file, json.dumps(self.rows))
        trainer.should_stop = trainer.should_stop or reached(self.rows, self.target) is not None
        self._begun = time.perf_counter()


def reached(rows: list[dict[str, float]], target: float | None) -> float | None:
    """Return the seconds at the second of two validations in a row that reach a score; None where there are none."""
    for before, row in itertools.pairwise(rows):
        if target is not None and min(before["auroc"], row["auroc"]) >= target:
            return row["seconds"]
    return None


def spread(values: list[float]) -> str:
    """Tell a median with its lowest and highest value."""
    return f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"
