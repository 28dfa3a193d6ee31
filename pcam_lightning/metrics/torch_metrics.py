"""AUROC, accuracy and loss over a whole epoch, as logged by each stage."""

from collections.abc import Callable

import torch
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC
from torchmetrics.utilities import dim_zero_cat


class AUROC(BinaryAUROC):
    """AUROC of raw logits; NaN for a single class, where torchmetrics returns 0.

    Torchmetrics applies the sigmoid to logits first. In float32, all logits above 17 become 1.0, and these ties change
    the AUROC.
    """

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch: logits (B,) of any precision and labels (B,), 0 or 1."""
        self.preds.append(preds)
        self.target.append(target)

    def compute(self) -> torch.Tensor:  # type: ignore[override]  # same signature as torchmetrics
        """Return the AUROC of all patches as a scalar."""
        label = dim_zero_cat(self.target)
        if label.min() == label.max():
            return torch.full((), torch.nan, device=label.device)
        score: torch.Tensor = super().compute()
        return score


class Accuracy(BinaryAccuracy):
    """Accuracy of logits at a probability of 0.5.

    Torchmetrics treats a batch as probabilities if all its logits are in [0, 1].
    """

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch: logits (B,) of any precision and labels (B,), 0 or 1."""
        super().update((preds > 0).int(), target)


# Keys are the logged names after `stage/`. Each metric is updated with logits (B,) of any precision and integer labels
# (B,). It should not read their values before the epoch ends: this would wait for the device in every step.
EPOCH_METRICS: dict[str, Callable[[], Metric]] = {
    "auroc": lambda: AUROC(validate_args=False),
    "accuracy": lambda: Accuracy(validate_args=False),
}


def build_metrics(stage: str) -> tuple[MetricCollection, MeanMetric]:
    """Return the metrics of a stage, named `stage/name`, and its mean loss."""
    metrics = MetricCollection({name: build() for name, build in EPOCH_METRICS.items()}, prefix=f"{stage}/")
    return metrics, MeanMetric(nan_strategy="disable")
