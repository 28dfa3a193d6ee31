"""AUROC, accuracy and loss of a whole epoch, as each stage logs them."""

from collections.abc import Callable

import torch
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC
from torchmetrics.utilities import dim_zero_cat


class AUROC(BinaryAUROC):
    """Torchmetrics' AUROC of logits as they are, and NaN of patches of one class, where that says 0.

    Torchmetrics applies the sigmoid to logits first, in their own precision: in float32 all above 17 become 1.0, and
    ties cost AUROC.
    """

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Keep a batch: logits (B,) of any precision, and labels (B,), 0 or 1."""
        self.preds.append(preds)
        self.target.append(target)

    def compute(self) -> torch.Tensor:  # type: ignore[override]  # as torchmetrics has it
        """Return the AUROC of all patches, a scalar."""
        label = dim_zero_cat(self.target)
        if label.min() == label.max():
            return torch.full((), torch.nan, device=label.device)
        score: torch.Tensor = super().compute()
        return score


class Accuracy(BinaryAccuracy):
    """Torchmetrics' accuracy at a probability of 0.5, of logits.

    Torchmetrics takes a batch whose logits all lie in [0, 1] for probabilities.
    """

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Count a batch: logits (B,) of any precision, and labels (B,), 0 or 1."""
        super().update((preds > 0).int(), target)


# By the name that a stage logs it under, after its slash. Each is updated with logits (B,) of any precision and integer
# labels (B,), and should not look at them before the epoch ends: that would wait for the device in every step.
EPOCH_METRICS: dict[str, Callable[[], Metric]] = {
    "auroc": lambda: AUROC(validate_args=False),
    "accuracy": lambda: Accuracy(validate_args=False),
}


def build_metrics(stage: str) -> tuple[MetricCollection, MeanMetric]:
    """Return a stage's metrics of logits and labels, named `stage/name`, and the mean of its loss."""
    metrics = MetricCollection({name: build() for name, build in EPOCH_METRICS.items()}, prefix=f"{stage}/")
    return metrics, MeanMetric(nan_strategy="disable")
