"""Optimizers and learning rate schedules, each an entry in one table."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pcam_lightning.models.backbones import layers

Options = Mapping[str, Any]  # of PCamClassifier
Factor = Callable[[int], float]  # of the learning rate, by step


def _adamw(groups: Any, options: Options, *, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, options["lr"], weight_decay=options["weight_decay"], fused=fused)


def _sgd(groups: Any, options: Options, *, fused: bool) -> torch.optim.Optimizer:
    decay = options["weight_decay"]
    return torch.optim.SGD(groups, options["lr"], options["momentum"], weight_decay=decay, fused=fused)


# By the name that `model.optimizer` takes: from parameter groups, the options and whether to fuse kernels.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": _adamw, "sgd": _sgd}


class Schedule(NamedTuple):
    """A learning rate schedule.

    Attributes:
        build: from the steps of the run and the steps that the rate rises: the factor of the rate by step.
        warmup: share of the run in which the rate rises; None where `model.warmup_epochs` says it.
    """

    build: Callable[[int, int], Factor]
    warmup: float | None = None


def _cosine(share: float) -> float:
    """Fall from 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


def _fall(step: int, steps: int, warmup: int) -> float:
    return _cosine((step - warmup) / max(1, steps - warmup))


def _linear_then_cosine(steps: int, warmup: int) -> Factor:
    return lambda step: _fall(step, steps, warmup) if step >= warmup else (step + 1) / (warmup + 1)


def _one_cycle(steps: int, warmup: int) -> Factor:
    return lambda step: _fall(step, steps, warmup) if step >= warmup else 1 - 0.96 * _cosine(step / warmup)


# By the name that `model.schedule` takes.
SCHEDULES: dict[str, Schedule] = {
    "cosine": Schedule(_linear_then_cosine),
    "one_cycle": Schedule(_one_cycle, warmup=0.3),
}


def build_optimizer(net: nn.Module, options: Options, *, fused: bool) -> torch.optim.Optimizer:
    """Build the optimizer of a network.

    Args:
        net: from `build_backbone`.
        options: `optimizer`, `lr`, `layer_decay`, `weight_decay` and `momentum`, as PCamClassifier explains them.
        fused: run one kernel for all parameters.
    """
    options = {**options, "lr": float(options["lr"]), "weight_decay": float(options["weight_decay"])}
    groups: Any = net.parameters()
    if options["layer_decay"] < 1:
        deep = enumerate(reversed(layers(net)))
        groups = [{"params": layer, "lr": options["lr"] * options["layer_decay"] ** depth} for depth, layer in deep]
    return OPTIMIZERS[options["optimizer"]](groups, options, fused=fused)


def build_schedule(optimizer: torch.optim.Optimizer, options: Options, steps: int, steps_per_epoch: int) -> LambdaLR:
    """Build the schedule of the learning rate, step by step.

    Args:
        optimizer: whose rates are the highest ones.
        options: `schedule` and `warmup_epochs`, as PCamClassifier explains them.
        steps: of the whole run.
        steps_per_epoch: of one epoch.
    """
    schedule = SCHEDULES[options["schedule"]]
    rise = steps_per_epoch * float(options["warmup_epochs"]) if schedule.warmup is None else schedule.warmup * steps
    return LambdaLR(optimizer, schedule.build(steps, round(rise)))
