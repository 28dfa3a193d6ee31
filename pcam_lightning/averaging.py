"""Averaging of weights over the steps of training."""

from itertools import chain, compress
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
        self.count = 0  # of steps that the average is of
        super().__init__()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the average to the device of the weights."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the step's weights into the average; AveragedModel's own way asks the device how many it has seen."""
        if trainer.global_step <= self._latest_update_step:  # gradients are still being accumulated
            return
        self._latest_update_step = trainer.global_step
        self.update(pl_module)

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Take weights into the average; BatchNorm's counts of batches, which are no floats, are copied."""
        assert self._average_model is not None
        average, new = (list(chain(one.parameters(), one.buffers())) for one in (self._average_model.module, module))
        is_float = [tensor.is_floating_point() for tensor in average]
        share = 1 - min(self.decay, self.count / (self.count + 1))
        torch._foreach_lerp_(list(compress(average, is_float)), list(compress(new, is_float)), share)
        if not all(is_float):
            is_count = [not one for one in is_float]
            torch._foreach_copy_(list(compress(average, is_count)), list(compress(new, is_count)))
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps the average is of, and which was the last."""
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up how many steps the average is of."""
        super().load_state_dict(state_dict)
        self.count = state_dict["count"]
