"""Optimizers and learning rate schedules, each an entry in one table."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from pcam_lightning.models.backbones import layers

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


def _half_cosine(share: float) -> float:
    """Fall from 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


def _fall(step: int, steps: int, warmup: int) -> float:
    return _half_cosine((step - warmup) / max(1, steps - warmup))


def _cosine(optimizer: Optimizer, options: Options, steps: int, steps_per_epoch: int) -> LRScheduler:
    warmup = round(steps_per_epoch * float(options["warmup_epochs"]))
    return StepSchedule(
        optimizer, lambda step: _fall(step, steps, warmup) if step >= warmup else (step + 1) / (warmup + 1)
    )


def _one_cycle(optimizer: Optimizer, options: Options, steps: int, steps_per_epoch: int) -> LRScheduler:
    rise = round(0.3 * steps)
    return StepSchedule(
        optimizer, lambda step: _fall(step, steps, rise) if step >= rise else 1 - 0.96 * _half_cosine(step / rise)
    )


def _plateau(optimizer: Optimizer, options: Options, steps: int, steps_per_epoch: int) -> LRScheduler:
    return ReduceLROnPlateau(optimizer, mode="max", patience=options["patience"])


# By the name that `model.schedule` takes.
SCHEDULES: dict[str, Schedule] = {
    "cosine": Schedule(_cosine, warms_up=True),
    "one_cycle": Schedule(_one_cycle),
    "plateau": Schedule(_plateau, by_score=True),
}


def build_optimizer(net: nn.Module, options: Options, *, fused: bool) -> Optimizer:
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


def build_schedule(optimizer: Optimizer, options: Options, steps: int, steps_per_epoch: int) -> LRScheduler:
    """Build the schedule of the learning rate.

    Args:
        optimizer: whose rates are the highest ones.
        options: `schedule` and its own, as PCamClassifier explains them.
        steps: of the whole run.
        steps_per_epoch: of one epoch.
    """
    return SCHEDULES[options["schedule"]].build(optimizer, options, steps, steps_per_epoch)
