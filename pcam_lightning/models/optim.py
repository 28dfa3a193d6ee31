"""Optimizers and learning rate schedules, and their tables by name."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

Options = Mapping[str, Any]  # options of PCamClassifier


def _adamw(groups: Any, options: Options, *, fused: bool) -> Optimizer:
    return torch.optim.AdamW(groups, options["lr"], weight_decay=options["weight_decay"], fused=fused)


def _sgd(groups: Any, options: Options, *, fused: bool) -> Optimizer:
    decay = options["weight_decay"]
    return torch.optim.SGD(groups, options["lr"], options["momentum"], weight_decay=decay, fused=fused)


# Keys are the values of `model.optimizer`. Functions of parameter groups, options and `fused`.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": _adamw, "sgd": _sgd}


class Schedule(NamedTuple):
    """A learning rate schedule.

    Attributes:
        build: function that returns a torch scheduler. Arguments: the optimizer with peak learning rates, the model
            options, the number of steps, and the number of steps per epoch.
        warms_up: whether it supports `model.warmup_epochs`.
        by_score: whether it is stepped with val/auroc after each validation, like ReduceLROnPlateau. Other schedules
            are stepped after each optimizer step.
    """

    build: Callable[[Optimizer, Options, int, int], LRScheduler]
    warms_up: bool = False
    by_score: bool = False


class StepSchedule(LambdaLR):
    """A schedule that multiplies the peak learning rates by a factor in each step."""

    def restore(self) -> None:
        """Set the rates of the current step, because a resumed optimizer may have those of a shorter run."""
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)


def _cosine(optimizer: Optimizer, options: Options, steps: int, steps_per_epoch: int) -> LRScheduler:
    warmup = round(steps_per_epoch * float(options["warmup_epochs"]))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        share = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))

    return StepSchedule(optimizer, factor)


def _plateau(optimizer: Optimizer, options: Options, steps: int, steps_per_epoch: int) -> LRScheduler:
    return ReduceLROnPlateau(optimizer, mode="max", patience=options["patience"])


# Keys are the values of `model.schedule`.
SCHEDULES: dict[str, Schedule] = {
    "cosine": Schedule(_cosine, warms_up=True),
    "plateau": Schedule(_plateau, by_score=True),
}


def build_optimizer(net: nn.Module, options: Options, *, fused: bool) -> Optimizer:
    """Build the optimizer of a network.

    Args:
        net: network from `build_backbone`.
        options: options of PCamClassifier; `optimizer`, `lr`, `weight_decay` and `momentum` are used.
        fused: use fused kernels.
    """
    options = {**options, "lr": float(options["lr"]), "weight_decay": float(options["weight_decay"])}
    return OPTIMIZERS[options["optimizer"]](net.parameters(), options, fused=fused)


def build_schedule(optimizer: Optimizer, options: Options, steps: int, steps_per_epoch: int) -> LRScheduler:
    """Build the learning rate schedule.

    Args:
        optimizer: optimizer with peak learning rates.
        options: options of PCamClassifier; `schedule` and the options of the schedule are used.
        steps: number of optimizer steps of the run.
        steps_per_epoch: number of optimizer steps per epoch.
    """
    return SCHEDULES[options["schedule"]].build(optimizer, options, steps, steps_per_epoch)
