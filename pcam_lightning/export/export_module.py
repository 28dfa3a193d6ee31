"""ExportNetwork: preprocessing, views and ensemble as one module that can be traced."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.p4m_resnet import as_plain_layers
from pcam_lightning.transforms.geometry import d4_views


class ExportNetwork(nn.Module):
    """Maps patches to logits like `predict`, as one module.

    Args:
        networks: trained networks; their logits are averaged.
    """

    def __init__(self, networks: Sequence[PCamClassifier]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(copy.deepcopy(network.net) for network in networks)
        self.preprocess = nn.ModuleList(copy.deepcopy(network.preprocess) for network in networks)
        self.views = [network.hparams["tta"] for network in networks]
        for net in self.nets:
            as_plain_layers(net.eval())
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map patches, float (B, 3, 96, 96) in [0, 1], to logits (B,)."""
        logits = []
        for net, preprocess, views in zip(self.nets, self.preprocess, self.views, strict=True):
            seen = preprocess.finish(image if preprocess.stain is None else preprocess.stain(image))  # type: ignore[operator]
            if views == "d4":
                seen = torch.cat(list(d4_views(seen)))
            logit = net(seen).squeeze(1)
            logits.append(logit.view(8, -1).mean(dim=0) if views == "d4" else logit)
        return torch.stack(logits).mean(dim=0)


class FromBytes(nn.Module):
    """Maps decoded bytes to probabilities and logits.

    Args:
        network: network that returns logits.
    """

    def __init__(self, network: ExportNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map patches, uint8 (B, 96, 96, 3), to probabilities and logits, (B,) both."""
        logit = self.network(image.permute(0, 3, 1, 2).float() / 255)
        return logit.sigmoid(), logit


class TwoLogits(nn.Module):
    """Returns logits of two classes for programs that apply softmax; the logit of normal is 0.

    Args:
        network: network that returns logits.
    """

    def __init__(self, network: ExportNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map patches, float (B, 3, 96, 96) in [0, 1], to logits of normal and tumor, (B, 2)."""
        logit = self.network(image)
        return torch.stack([logit * 0, logit], dim=1)  # tracing zeros_like would fix the device
