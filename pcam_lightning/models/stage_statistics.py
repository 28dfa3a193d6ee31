"""Mean and deviation of the outputs of a network's early stages, in which a patch's texture and color show."""

from typing import Any

import torch
from torch import nn

from pcam_lightning.models.backbones import early_stages

_STAGES = 2  # the later ones of a trained network hardly tell noise from tissue


class StageStatistics:
    """Looks at a network's first two stages while it runs.

    Args:
        network: in evaluation mode.
        backbone: its name, as `build_backbone` takes it.
    """

    def __init__(self, network: nn.Module, backbone: str) -> None:
        self._channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        self._prefix_tokens = int(getattr(network, "num_prefix_tokens", 0))
        names = early_stages(network, backbone)[:_STAGES]
        self._found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        self._handles = [network.get_submodule(name).register_forward_hook(self._keep(name)) for name in names]

    def _keep(self, name: str) -> Any:
        def hook(stage: nn.Module, given: Any, output: torch.Tensor) -> None:
            if output.ndim == 3:  # tokens, (B, N, C)
                values = output[:, self._prefix_tokens :]
            else:  # a map, (B, C, H, W) or (B, H, W, C)
                values = output.flatten(1, 2) if self._channels_last else output.flatten(2).mT
            values = values.float()
            self._found[name].append(torch.cat([values.mean(dim=1), values.std(dim=1)], dim=1))

        return hook

    def take(self) -> torch.Tensor:
        """Return the features of what was predicted since the last call, float32 (B, F), of several views the mean."""
        features = torch.cat([torch.stack(views).mean(dim=0) for views in self._found.values()], dim=1)
        for views in self._found.values():
            views.clear()
        return features

    def close(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()
