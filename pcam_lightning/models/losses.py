"""Losses and their table by name."""

from collections.abc import Callable

import torch
from torch.nn import functional

from pcam_lightning.models.optim import Options

# Function of float32 logits (B,), targets (B,) in [0, 1] (after smoothing and mixing) and the options of the model.
Loss = Callable[[torch.Tensor, torch.Tensor, Options], torch.Tensor]
GAMMA = 2.0  # exponent of the focal loss, as recommended by its authors


def cross_entropy(logit: torch.Tensor, target: torch.Tensor, options: Options) -> torch.Tensor:
    """Return the binary cross-entropy of each patch (B,); the loss of tumor is multiplied by `positive_weight`."""
    weight = float(options["positive_weight"])
    positive = None if weight == 1 else torch.full((), weight, device=logit.device)
    return functional.binary_cross_entropy_with_logits(logit, target, pos_weight=positive, reduction="none")


def focal(logit: torch.Tensor, target: torch.Tensor, options: Options) -> torch.Tensor:
    """Return the focal loss of each patch (B,), which gives well-classified patches a low weight.

    See Lin et al. 2017, and Li et al. 2020 (Generalized Focal Loss, equation 3) for targets between 0 and 1.
    """
    return (target - logit.sigmoid()).abs() ** GAMMA * cross_entropy(logit, target, options)


# Keys are the values of `model.loss`. Training minimizes the mean over patches.
LOSSES: dict[str, Loss] = {"bce": cross_entropy, "focal": focal}
