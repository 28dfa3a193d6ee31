"""Losses, each an entry in one table."""

from collections.abc import Callable

import torch
from torch.nn import functional

from pcam_lightning.models.optim import Options

# From float32 logits (B,), targets (B,), which smoothing and mixing leave between 0 and 1, and the model's options.
Loss = Callable[[torch.Tensor, torch.Tensor, Options], torch.Tensor]
GAMMA = 2.0  # of the focal loss, the exponent that its authors found best


def cross_entropy(logit: torch.Tensor, target: torch.Tensor, options: Options) -> torch.Tensor:
    """Return the binary cross-entropy of each patch (B,), that of tumor times `positive_weight`."""
    weight = float(options["positive_weight"])
    positive = None if weight == 1 else torch.full((), weight, device=logit.device)
    return functional.binary_cross_entropy_with_logits(logit, target, pos_weight=positive, reduction="none")


def focal(logit: torch.Tensor, target: torch.Tensor, options: Options) -> torch.Tensor:
    """Return the focal loss of each patch (B,): patches that are classified well already count for little.

    Lin et al. 2017; as Li et al. 2020 (Generalized Focal Loss, equation 3) write it for targets between 0 and 1.
    """
    return (target - logit.sigmoid()).abs() ** GAMMA * cross_entropy(logit, target, options)


# By the name that `model.loss` takes: the loss of each patch (B,), whose mean is trained on.
LOSSES: dict[str, Loss] = {"bce": cross_entropy, "focal": focal}
