"""Losses: the default is torch's cross-entropy to the last bit, the others weigh patches."""

import pytest
import torch
from conftest import NETWORK
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.losses import LOSSES
from pcam_lightning.utils.errors import UserError

LOGIT, LABEL = torch.linspace(-30, 30, 64), torch.arange(64) % 2.0
SOFT = torch.linspace(0, 1, 64)


@pytest.mark.parametrize("target", [LABEL, SOFT])
def test_the_default_is_torchs_cross_entropy_to_the_last_bit(target: torch.Tensor) -> None:
    options = PCamClassifier(NETWORK, "none").hparams
    plain = functional.binary_cross_entropy_with_logits(LOGIT, target, reduction="none")
    assert torch.equal(LOSSES[options["loss"]](LOGIT, target, options), plain)


def test_a_positive_weight_multiplies_the_loss_of_tumor() -> None:
    plain, weighted = (LOSSES["bce"](LOGIT, LABEL, {"positive_weight": weight}) for weight in (1, 3))
    torch.testing.assert_close(weighted, plain * (1 + 2 * LABEL))
    mixed = LOSSES["bce"](LOGIT, torch.full_like(LOGIT, 0.25), {"positive_weight": 3})
    torch.testing.assert_close(mixed, 0.25 * 3 * functional.softplus(-LOGIT) + 0.75 * functional.softplus(LOGIT))


def test_the_focal_loss_is_that_of_lin_2017() -> None:
    options = {"positive_weight": 1.0}
    expected = sigmoid_focal_loss(LOGIT, LABEL, alpha=-1, gamma=2)
    torch.testing.assert_close(LOSSES["focal"](LOGIT, LABEL, options), expected)
    assert LOSSES["focal"](torch.logit(SOFT, 1e-6), SOFT, options).max() < 1e-6  # nothing is left to learn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "`model.loss` 'hinge': unknown; use one of bce, focal"),
        ({"positive_weight": 0.0}, "`model.positive_weight` 0"),
        ({"positive_weight": float("inf")}, "`model.positive_weight` inf"),
        ({"patience": 1.5}, "`model.patience` 1.5: should be an integer"),
    ],
)
def test_wrong_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PCamClassifier(NETWORK, "none", **options)  # type: ignore[arg-type]
