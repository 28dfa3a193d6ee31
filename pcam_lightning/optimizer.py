"""How the network learns: AdamW or SGD, and the schedule of the rate over a run."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pcam_lightning.backbone import layers


def build_optimizer(net: nn.Module, options: Mapping[str, Any], *, fused: bool) -> torch.optim.Optimizer:
    """Build AdamW or SGD.

    Args:
        net: from `build_backbone`.
        options: `optimizer`, `lr`, `layer_decay`, `weight_decay` and `momentum`, as PCamClassifier explains them.
        fused: run one kernel for all parameters.
    """
    rate, decay = float(options["lr"]), float(options["weight_decay"])
    groups: Any = net.parameters()
    if options["layer_decay"] < 1:
        deep = enumerate(reversed(layers(net)))
        groups = [{"params": layer, "lr": rate * options["layer_decay"] ** depth} for depth, layer in deep]
    if options["optimizer"] == "sgd":
        return torch.optim.SGD(groups, rate, options["momentum"], weight_decay=decay, fused=fused)
    return torch.optim.AdamW(groups, rate, weight_decay=decay, fused=fused)


def build_schedule(
    optimizer: torch.optim.Optimizer, options: Mapping[str, Any], steps: int, steps_an_epoch: int
) -> LambdaLR:
    """Build the schedule of the rate, step by step.

    Args:
        optimizer: whose rates are the highest ones.
        options: `schedule` and `warmup_epochs`, as PCamClassifier explains them.
        steps: of the whole run.
        steps_an_epoch: of one epoch.
    """
    cycle = options["schedule"] == "one_cycle"
    warmup = round(0.3 * steps if cycle else steps_an_epoch * float(options["warmup_epochs"]))

    def factor(step: int) -> float:
        if step >= warmup:
            return _cosine((step - warmup) / max(1, steps - warmup))
        return 1 - 0.96 * _cosine(step / warmup) if cycle else (step + 1) / (warmup + 1)

    return LambdaLR(optimizer, factor)


def _cosine(share: float) -> float:
    """Fall from 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
