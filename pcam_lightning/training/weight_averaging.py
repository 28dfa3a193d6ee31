"""Averaging of weights over the steps of training."""

from collections import deque
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from pcam_lightning.models.batchnorm import measure_statistics
from pcam_lightning.utils.errors import UserError

STATISTICS_PATCHES = 1280  # training patches that the averaged network's BatchNorm statistics are measured on


class ExponentialMovingAverage(WeightAveraging):
    """Validates and keeps a moving average of the weights instead of the last ones.

    Lightning's averaging, but in one pass over all tensors and on their device. In the first steps the average is a
    plain mean, so that the weights which training starts from do not weigh in it for long.

    The average of BatchNorm's running statistics is not that of the averaged network (Izmailov et al. 2018): they are
    measured with the averaged weights, on the last training patches of the epoch, before these are validated or kept.

    Args:
        decay: share of the average that stays with each step, in [0, 1): it reaches over some 1 / (1 - decay) steps.
    """

    state_key = "ExponentialMovingAverage"  # in checkpoints; a class may be renamed

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"`trainer.callbacks.decay` {decay}: should be at least 0 and less than 1, such as 0.99.")
        self.decay = decay
        self.count = 0  # of steps that the average is of
        self._recent: deque[Any] = deque()  # batches of this epoch, on the device, that come to STATISTICS_PATCHES
        self._measured = -1  # the step whose statistics were measured
        super().__init__()

    @property
    def averaged(self) -> nn.Module:
        """The module with the averaged weights, which Lightning's callback makes in `setup`."""
        assert self._average_model is not None
        module: nn.Module = self._average_model.module
        return module

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the average to the device of the weights."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the average from the weights that were loaded."""
        if self.count == 0:
            self.update(pl_module)
            self.count = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the batches of the last epoch: a run resumed here would not have them."""
        self._recent.clear()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average with the step's weights, without waiting for the device as AveragedModel does."""
        self._recent.append(batch)
        while sum(len(one["label"]) for one in self._recent) - len(self._recent[0]["label"]) >= STATISTICS_PATCHES:
            self._recent.popleft()
        if trainer.global_step <= self._latest_update_step:  # gradients are still being accumulated
            return
        self._latest_update_step = trainer.global_step
        self.update(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the statistics of the averaged weights, which are about to be validated."""
        if not trainer.sanity_checking:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure them before the weights are kept, where no validation has done so."""
        self._measure(trainer, pl_module)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Update the average with weights; buffers are copied."""
        average = self.averaged
        share = 1 - min(self.decay, self.count / (self.count + 1))
        torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), share)
        for own, new in zip(average.buffers(), module.buffers(), strict=True):
            own.copy_(new)
        self.count += 1

    @torch.no_grad()
    def _measure(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Set the averaged network's running statistics to their mean over the epoch's last batches.

        Those of a frozen layer stay as they are.
        """
        model: Any = self.averaged
        both: Any = zip(model.modules(), pl_module.modules(), strict=True)
        norms = [norm for norm, own in both if hasattr(own, "running_mean") and own.weight.requires_grad]
        if self._measured == trainer.global_step or not norms or not self._recent:
            return
        self._measured = trainer.global_step
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
            measure_statistics(
                model.net,
                norms,
                (pl_module.augmented(batch)[0] for batch in self._recent),
                lambda mean: trainer.strategy.reduce(mean, reduce_op="mean"),
            )

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps the average is of, and which was the last."""
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of steps that the average is of."""
        super().load_state_dict(state_dict)
        self.count = state_dict["count"]
