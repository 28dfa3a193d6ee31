"""Averaging of weights over the steps of training."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging

from pcam_lightning.messages import UserError


class Averaging(WeightAveraging):
    """Validates and keeps a moving average of the weights, of BatchNorm's statistics too, instead of the last ones.

    Lightning's averaging, but in one pass over all tensors and on their device. In the first steps the average is a
    plain mean, so that the weights which training starts from have no say in it for long.

    Args:
        decay: share of the average that stays with each step, in [0, 1): it reaches over some 1 / (1 - decay) steps.
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"--trainer.callbacks.decay {decay}: should be at least 0 and less than 1, such as 0.99.")
        self.decay = decay
        super().__init__(multi_avg_fn=self._average)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the average to the device of the weights."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    @torch.no_grad()
    def _average(self, averages: Any, values: Any, steps: torch.Tensor) -> None:
        """Take a step: tensors of one kind each, and the number of steps that the averages are of."""
        if averages[0].is_floating_point():
            count = self._latest_update_step  # `steps` is a tensor on the device, which would be waited for
            torch._foreach_lerp_(averages, values, 1 - min(self.decay, count / (count + 1)))
        else:
            torch._foreach_copy_(averages, values)
