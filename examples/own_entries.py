r"""Add your own entries to the tables of pcam_lightning without a fork.

Copy this file to the working folder, and name it in each command, or in a config as `import: [own_entries]`:

python -m pcam_lightning fit -c configs/base.yaml --data.root DIR --import own_entries --model.loss brier \
    --model.backbone tiny --model.weights none --model.augment.gray 0.2

Commands that use the run later, such as predict and evaluate, import the file again, so keep it in the working folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torchmetrics.classification import BinaryAveragePrecision

from pcam_lightning.evaluation.report_metrics import REPORT_METRICS, ReportMetric
from pcam_lightning.metrics.calibration import brier_score
from pcam_lightning.metrics.torch_metrics import EPOCH_METRICS
from pcam_lightning.models.backbones import BACKBONES, Backbone
from pcam_lightning.models.losses import LOSSES
from pcam_lightning.models.optim import OPTIMIZERS, SCHEDULES, Schedule
from pcam_lightning.transforms.augment import add_augmentation
from pcam_lightning.transforms.step import Patches, Step


def brier(logit: torch.Tensor, target: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
    """Return the squared error of each probability (B,)."""
    return (logit.sigmoid() - target) ** 2


def adam(groups: Any, options: Mapping[str, Any], *, fused: bool) -> torch.optim.Optimizer:
    """Return an optimizer without weight decay."""
    return torch.optim.Adam(groups, options["lr"], fused=fused)


def halving(
    optimizer: torch.optim.Optimizer, options: Mapping[str, Any], steps: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Halve the learning rate after each epoch; schedulers step after each optimizer step."""
    return torch.optim.lr_scheduler.StepLR(optimizer, steps_per_epoch, gamma=0.5)


def tiny() -> nn.Module:
    """Return a network of two convolutions; the last layer is replaced with a single logit."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)),
    )


@dataclass
class Grayscale(Step):
    """Convert some patches to grayscale.

    Args:
        gray: share of the patches that are converted.
    """

    gray: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"gray": 1}

    def apply(self, patches: Patches) -> Patches:
        """Replace the channels of some patches with their mean."""
        if not self.gray:
            return patches
        image = patches.image
        chosen = (torch.rand(len(image), 1, 1, 1) < self.gray).to(image.device, non_blocking=True)
        return patches._replace(image=torch.where(chosen, image.mean(dim=1, keepdim=True), image))


LOSSES["brier"] = brier
OPTIMIZERS["adam"] = adam
SCHEDULES["halving"] = Schedule(halving)
BACKBONES["tiny"] = Backbone(tiny, head="6")
EPOCH_METRICS["average_precision"] = lambda: BinaryAveragePrecision(validate_args=False)
REPORT_METRICS["brier"] = ReportMetric("Brier score", brier_score)
add_augmentation(Grayscale)
