"""The last layer of a network, which maps features to one logit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Head(nn.Linear):
    """A linear layer that runs in float32 under autocast, because ties of half-precision logits reduce the AUROC.

    Args:
        features: number of input features.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (B, F) of any precision to float32 logits (B, 1)."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


class StageHead(Head):
    """A head on the features of a network and the spatial mean of each stage output.

    Early stages encode local texture and color, which the last features may lack.

    Args:
        network: network on whose stages hooks are registered.
        features: number of features of the network.
        stages: number of channels of each stage by module name.
    """

    def __init__(self, network: nn.Module, features: int, stages: Mapping[str, int]) -> None:
        super().__init__(features + sum(stages.values()))
        self._means: list[torch.Tensor] = []
        # Attributes of timm: the order of axes, and the number of tokens without a position in the image.
        self._channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        self._prefix_tokens = int(getattr(network, "num_prefix_tokens", 0))
        network.register_forward_pre_hook(self._clear)
        for stage in stages:
            network.get_submodule(stage).register_forward_hook(self._add)
        self.register_forward_pre_hook(self._join)

    def _clear(self, network: nn.Module, given: Any) -> None:
        """Drop the means of a forward pass that ended with an error."""
        self._means = []

    def _add(self, stage: nn.Module, given: Any, output: torch.Tensor) -> None:
        """Store the mean of a feature map, (B, C, H, W) or (B, H, W, C), or of tokens, (B, N, C)."""
        if output.ndim == 3:
            mean = output[:, self._prefix_tokens :].mean(dim=1, dtype=torch.float32)
        else:
            mean = output.mean(dim=(1, 2) if self._channels_last else (2, 3), dtype=torch.float32)
        self._means.append(mean)

    def _join(self, head: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        """Return all features (B, F); hooks that are registered later receive them too."""
        means, self._means = self._means, []
        return (torch.cat([given[0].float(), *means], dim=1),)


def head_of(network: nn.Module) -> str:
    """Return the module name of the head of a network."""
    return next(str(name) for name, module in network.named_modules() if isinstance(module, Head))


def find_head(network: nn.Module) -> Head:
    """Return the head of a network."""
    return next(module for module in network.modules() if isinstance(module, Head))
