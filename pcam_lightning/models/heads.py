"""The last layer of a network, which makes one logit of features."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Head(nn.Linear):
    """A linear layer in float32 whatever autocast says: logits of half precision tie, and ties cost AUROC."""

    def __init__(self, features: int) -> None:
        super().__init__(features, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (B, F) of any precision to float32 logits (B, 1)."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


class StageHead(Head):
    """A head that is given, beside the network's features, the mean over the image of what each stage puts out.

    Early stages know texture and color of a few pixels, which the last features of ImageNet's classes have forgotten.

    Args:
        network: whose stages are hooked.
        features: number of the network's own features.
        stages: the channels of each stage by its name within the network.
    """

    def __init__(self, network: nn.Module, features: int, stages: Mapping[str, int]) -> None:
        super().__init__(features + sum(stages.values()))
        self._means: list[torch.Tensor] = []
        self._channels = list(stages.values())
        network.register_forward_pre_hook(self._clear)
        for stage in stages:
            network.get_submodule(stage).register_forward_hook(self._add)
        self.register_forward_pre_hook(self._join)

    def _clear(self, network: nn.Module, given: Any) -> None:
        """Forget what a forward pass left that ended with an error."""
        self._means = []

    def _add(self, stage: nn.Module, given: Any, output: torch.Tensor) -> None:
        channels = self._channels[len(self._means)]
        # (B, C, H, W), or of some networks (B, H, W, C) and of transformers (B, tokens, C).
        axis = 1 if output.ndim == 4 and output.shape[1] == channels else output.ndim - 1
        others = [other for other in range(1, output.ndim) if other != axis]
        self._means.append(output.mean(dim=others, dtype=torch.float32))

    def _join(self, head: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        """Return all features (B, F), as hooks that are registered later see them."""
        means, self._means = self._means, []
        return (torch.cat([given[0].float(), *means], dim=1),)


def head_of(network: nn.Module) -> str:
    """Return the name of a network's head."""
    return next(str(name) for name, module in network.named_modules() if isinstance(module, Head))
