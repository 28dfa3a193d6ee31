"""Mean and standard deviation of early stage outputs, which encode texture and color."""

from typing import Any

import torch
from torch import nn

from pcam_lightning.models.backbones import early_stages
from pcam_lightning.utils.errors import UserError

_STAGES = 2  # later stages of a trained network hardly separate noise from tissue


class StageStatistics:
    """Records the output statistics of the first two stages of a network.

    Args:
        network: network in evaluation mode.
        backbone: name passed to `build_backbone`.

    Raises:
        UserError: the stages cannot be read.
    """

    def __init__(self, network: nn.Module, backbone: str) -> None:
        self._channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        self._prefix_tokens = int(getattr(network, "num_prefix_tokens", 0))
        names = early_stages(network, backbone)[:_STAGES]
        self._found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        self._backbone = backbone
        try:
            stages = [(name, network.get_submodule(name)) for name in names]
        except AttributeError:
            raise self._error() from None
        self._handles = [stage.register_forward_hook(self._keep(name)) for name, stage in stages]

    def _error(self) -> UserError:
        return UserError(f"the early stages of {self._backbone} cannot be read.")

    def _keep(self, name: str) -> Any:
        def hook(stage: nn.Module, given: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor):
                return
            if output.ndim == 3:  # tokens, (B, N, C)
                values = output[:, self._prefix_tokens :]
            else:  # a feature map, (B, C, H, W) or (B, H, W, C)
                values = output.flatten(1, 2) if self._channels_last else output.flatten(2).mT
            values = values.float()
            self._found[name].append(torch.cat([values.mean(dim=1), values.std(dim=1)], dim=1))

        return hook

    def take(self) -> torch.Tensor:
        """Return the statistics of the first view of patches predicted since the last call, float32 (B, F).

        Raises:
            UserError: the stages cannot be read.
        """
        if not all(self._found.values()):
            raise self._error()
        features = torch.cat([views[0] for views in self._found.values()], dim=1)
        for views in self._found.values():
            views.clear()
        return features

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
