"""BatchNorm: measuring its statistics, and folding it into convolutions."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pcam_lightning.models.heads import StageHead


@torch.no_grad()
def measure_statistics(
    network: nn.Module, norms: Sequence[Any], images: Iterator[torch.Tensor], reduce: Callable[[torch.Tensor], Any]
) -> None:
    """Set running statistics to their mean over the given batches.

    Averaged weights need this: averaged running statistics are not the statistics of the averaged network (Izmailov et
    al. 2018).

    Args:
        network: network that maps images to logits, in evaluation mode.
        norms: BatchNorm layers to measure.
        images: one or more batches of preprocessed training patches, float (B, 3, H, W).
        reduce: function that averages a tensor over all processes.
    """
    statistics = list(chain.from_iterable((norm.running_mean, norm.running_var) for norm in norms))
    total = [torch.zeros_like(value) for value in statistics]
    batches = 0
    with _follows_each_batch(norms):
        for image in images:
            network(image)
            torch._foreach_add_(total, statistics)
            batches += 1
    torch._foreach_div_(total, batches)
    for value, mean in zip(statistics, total, strict=True):
        value.copy_(reduce(mean))


@contextmanager
def _follows_each_batch(norms: Sequence[Any]) -> Iterator[None]:
    """Set running statistics to those of the latest batch."""
    before = [(norm, norm.training, norm.momentum) for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    try:
        yield
    finally:
        for norm, training, momentum in before:
            norm.training, norm.momentum = training, momentum


def fold_batchnorm(network: nn.Module, image: torch.Tensor) -> nn.Module | None:
    """Fold the BatchNorm layers of a network, in evaluation mode, into the convolutions before them.

    The folded network reads and writes less memory.

    Args:
        network: network that maps images to logits; not modified.
        image: example input, float (1, 3, H, W), used to trace the order of layers.

    Returns:
        A copy with equal outputs up to rounding. None if nothing can be folded, hooks are registered, or outputs
        differ, for example if other layers use the output of a convolution too.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) or _has_foreign_hooks(network):
        return None
    folded = copy.deepcopy(network).eval()
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        pairs, expected = _pairs(folded, image)
        for convolution, norm in pairs:
            _fold(folded, convolution, norm)
        if not pairs or not torch.allclose(folded(image), expected, rtol=1e-3, atol=1e-4):
            return None
    return folded


def _has_foreign_hooks(network: nn.Module) -> bool:
    """Return whether a layer has hooks of others than `StageHead`, which a copy would not call."""
    each = ((*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()) for layer in network.modules())
    hooks = chain.from_iterable(each)
    return not all(isinstance(getattr(hook, "__self__", None), StageHead) for hook in hooks)


def _pairs(network: nn.Module, image: torch.Tensor) -> tuple[list[tuple[str, str]], torch.Tensor]:
    """Return name pairs of a convolution and the BatchNorm layer after it, and the logits."""
    made: dict[int, tuple[str, torch.Tensor]] = {}  # keeps the tensor alive, so that its id is unique
    calls: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, given: Any, output: torch.Tensor) -> None:
            made[id(output)] = (name, output)
            calls[name] += 1

        return hook

    def pair(name: str) -> Any:
        def hook(layer: nn.Module, given: Any) -> None:
            calls[name] += 1
            if id(given[0]) in made:
                pairs.append((made[id(given[0])][0], name))

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        if isinstance(module, nn.Conv2d)
        else module.register_forward_pre_hook(pair(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    logits = network(image)
    for handle in handles:
        handle.remove()
    once = [names for names in pairs if all(calls[name] == 1 for name in names)]
    return [names for names in once if all(map(_is_replaceable, map(network.get_submodule, names)))], logits


def _is_replaceable(layer: nn.Module) -> bool:
    """Return whether no hook, such as that of a `StageHead`, uses the output, and running statistics exist."""
    return not layer._forward_hooks and getattr(layer, "running_mean", layer) is not None


def _fold(network: nn.Module, convolution: str, norm: str) -> None:
    layer: Any = network.get_submodule(convolution)
    norm_layer: Any = network.get_submodule(norm)
    layer.weight, layer.bias = fuse_conv_bn_weights(
        layer.weight,
        layer.bias,
        norm_layer.running_mean,
        norm_layer.running_var,
        norm_layer.eps,
        norm_layer.weight,
        norm_layer.bias,
    )
    # Keep the activation of timm's combined norm and activation layers.
    network.set_submodule(norm, getattr(norm_layer, "act", None) or nn.Identity())
