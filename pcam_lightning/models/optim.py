"""Optimizers and learning rate schedules, each an entry in one table."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

Options = Mapping[str, Any]  # of PCamClassifier


def _adamw(groups: Any, options: Options, *, fused: bool) -> Optimizer:
    return torch.optim.AdamW(groups, options["lr"], weight_decay=options["weight_decay"], fused=fused)


def _sgd(groups: Any, options: Options, *, fused: bool) -> Optimizer:
    decay = options["weight_decay"]
    return torch.optim.SGD(groups, options["lr"], options["momentum"], weight_decay=decay, fused=fused)


# By the name that `model.optimizer` takes: from parameter groups, the options and whether to fuse kernels.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": _adamw, "sgd": _sgd}


class Schedule(NamedTuple):
    """A learning rate schedule.

    Attributes:
        build: from the optimizer, whose rates are the highest ones, the model's options, the steps of the run and those
            of an epoch: a scheduler of torch's.
        warms_up: whether `model.warmup_epochs` goes with it.
        by_score: whether it is stepped with val/auroc after each validation, as ReduceLROnPlateau is; others are
            stepped after each step of the optimizer.
    """

    build: Callable[[Optimizer, Options, int, int], LRScheduler]
    warms_up: bool = False
    by_score: bool = False


class StepSchedule(LambdaLR):
    """A factor of the highest rates for each step."""

    def restore(self) -> None:
        """Set the rates of the present step: a resumed optimizer has those of its earlier, perhaps shorter run."""
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


# By the name that `model.schedule` takes.
SCHEDULES: dict[str, Schedule] = {
    "cosine": Schedule(_cosine, warms_up=True),
    "plateau": Schedule(_plateau, by_score=True),
}


def build_optimizer(net: nn.Module, options: Options, *, fused: bool) -> Optimizer:
    """Build the optimizer of a network.

    Args:
        net: from `build_backbone`.
        options: `optimizer`, `lr`, `weight_decay` and `momentum`, as PCamClassifier explains them.
        fused: run one kernel for all parameters.
    """
    options = {**options, "lr": float(options["lr"]), "weight_decay": float(options["weight_decay"])}
    return OPTIMIZERS[options["optimizer"]](net.parameters(), options, fused=fused)


def build_schedule(optimizer: Optimizer, options: Options, steps: int, steps_per_epoch: int) -> LRScheduler:
    """Build the schedule of the learning rate.

    Args:
        optimizer: whose rates are the highest ones.
        options: `schedule` and its own, as PCamClassifier explains them.
        steps: of the whole run.
        steps_per_epoch: of one epoch.
    """
    return SCHEDULES[options["schedule"]].build(optimizer, options, steps, steps_per_epoch)
