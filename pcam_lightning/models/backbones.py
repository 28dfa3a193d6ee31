"""Networks by name, each with one logit."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision import models

from pcam_lightning.models.p4m_resnet import P4MResNet
from pcam_lightning.utils.errors import UserError

TIMM = "timm/"  # prefix of any network of timm's
P4M_SIDE = 16  # what the four halvings of p4m_resnet16 divide the side of an image by


class Backbone(NamedTuple):
    """A network.

    Attributes:
        build: makes it from random weights.
        head: name of the layer that gives way to the head.
        imagenet: whether torchvision has ImageNet weights of it.
        multiple: what divides the side of its images.
    """

    build: Callable[[], nn.Module]
    head: str
    imagenet: bool = True
    multiple: int = 1


def _torchvision(name: str, head: str) -> Backbone:
    return Backbone(partial(models.get_model, name, weights=None), head)


# By the name that `model.backbone` takes.
BACKBONES: dict[str, Backbone] = {
    **{name: _torchvision(name, "fc") for name in ("resnet18", "resnet34", "resnet50")},
    "convnext_tiny": _torchvision("convnext_tiny", "classifier.2"),
    **{name: _torchvision(name, "classifier.1") for name in ("efficientnet_b0", "efficientnet_b3")},
    # Each halving of an odd side would drop one border of two, another one of a turned patch.
    "p4m_resnet16": Backbone(partial(P4MResNet, 2, (4, 8, 16, 32), (1, 2, 2, 2)), "fc", False, P4M_SIDE),
}


class Head(nn.Linear):
    """A linear layer in float32 whatever autocast says: logits of half precision tie, and ties cost AUROC."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (B, F) of any precision to float32 logits (B, 1)."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


def build_backbone(name: str, side: int = 96) -> nn.Module:
    """Build a network from random weights.

    Args:
        name: one of `BACKBONES`, or timm/ and one of timm's names, for which timm has to be installed.
        side: of the images, in pixels; networks of convolutions take any.

    Returns:
        Module that takes float (B, 3, side, side) and returns float32 logits (B, 1).

    Raises:
        UserError: no such name, or no timm.
    """
    network: Any
    if name.startswith(TIMM):
        network, head = build_timm(name, side)
    elif name in BACKBONES:
        backbone = BACKBONES[name]
        if side % (multiple := backbone.multiple):
            nearest = min(range(2 * multiple, 513, multiple), key=lambda other: abs(other - side))
            raise UserError(
                f"`model.backbone` {name}: gives turned and mirrored patches the same logit for sides that {multiple} "
                f"divides, and {side} pixels is none; the nearest is {nearest} (`model.crop`, or `model.size` where "
                "that is set)."
            )
        network, head = backbone.build(), backbone.head
    else:
        names = ", ".join(BACKBONES)
        raise UserError(f"`model.backbone` {name}: unknown; one of {names}, or timm/ and a name of timm's.")
    network.set_submodule(head, Head(network.get_submodule(head).in_features, 1))
    whole: nn.Module = network
    return whole


def build_timm(name: str, side: int, **options: Any) -> tuple[Any, str]:
    """Return one of timm's networks and the name of its last layer."""
    try:
        import timm
    except ImportError:
        raise UserError(f"`model.backbone` {name}: needs timm; pip install 'pcam_lightning[timm]'.") from None
    plain = name.removeprefix(TIMM)
    try:
        if not timm.is_model(plain):
            raise UserError(f"`model.backbone` {name}: timm has no such network; timm.list_models() has their names.")
        network: Any
        try:
            network = timm.create_model(plain, num_classes=1, img_size=side, **options)
        except TypeError:  # most networks take images of any size, and no such option
            network = timm.create_model(plain, num_classes=1, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        if options:
            raise
        raise UserError(f"`model.backbone` {name}: cannot be built for {side} x {side} pixels ({error}).") from None
    head = network.default_cfg["classifier"]
    if not isinstance(head, str) or not isinstance(network.get_submodule(head), nn.Linear):
        raise UserError(f"`model.backbone` {name}: does not end in one linear layer, which the logit needs.")
    return network, head


def head_of(network: nn.Module) -> str:
    """Return the name of a network's head."""
    return next(str(name) for name, module in network.named_modules() if isinstance(module, Head))


def freeze(network: nn.Module, frozen: bool) -> None:
    """Freeze all but the head, or unfreeze all.

    What is frozen is in evaluation mode: BatchNorm leaves its running statistics alone.
    """
    head = network.get_submodule(head_of(network))
    network.requires_grad_(not frozen)
    network.train(not frozen)
    head.requires_grad_(True)
    head.train()


def layers(network: nn.Module) -> list[list[nn.Parameter]]:
    """Return the network's parameters by layer, from the input to the head; those of no layer come first."""
    parts: list[nn.Module] = []
    for module in network.children():
        parts += module.children() if isinstance(module, nn.Sequential | nn.ModuleList) else [module]
    found = [list(part.parameters()) for part in parts]
    inside = {parameter for layer in found for parameter in layer}
    rest = [parameter for parameter in network.parameters() if parameter not in inside]
    return [layer for layer in (rest, *found) if layer]
