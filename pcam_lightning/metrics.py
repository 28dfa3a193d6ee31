"""AUROC, accuracy and loss of a whole epoch, as each stage logs them."""

import torch
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC
from torchmetrics.utilities import dim_zero_cat


class AUROC(BinaryAUROC):
    """Torchmetrics' AUROC, but NaN of patches of one class, where that says 0."""

    def compute(self) -> torch.Tensor:  # type: ignore[override]  # as torchmetrics has it
        """Return the AUROC of all patches, a scalar."""
        label = dim_zero_cat(self.target)
        if label.min() == label.max():
            return torch.full((), torch.nan, device=label.device)
        score: torch.Tensor = super().compute()
        return score


def build_metrics(stage: str) -> tuple[MetricCollection, MeanMetric]:
    """Return a stage's metrics, named `stage/name`, and the mean of its loss.

    None of them looks at what it is given before the epoch ends: that would wait for the device in every step.
    """
    auroc, accuracy = AUROC(validate_args=False), BinaryAccuracy(validate_args=False)
    metrics = MetricCollection({"auroc": auroc, "accuracy": accuracy}, prefix=f"{stage}/")
    return metrics, MeanMetric(nan_strategy="disable")
