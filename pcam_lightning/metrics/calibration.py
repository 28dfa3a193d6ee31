"""Calibration of probabilities, temperature scaling, and cross-fitting."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error

Array = np.ndarray
Fitted = TypeVar("Fitted")

TEMPERATURES = 0.05, 20.0  # that one is sought between


def negative_log_likelihood(label: Array, logit: Array) -> float:
    """Return the mean negative log-likelihood, in nats a patch: the loss that training minimizes."""
    return float(-np.where(label == 1, log_expit(logit), log_expit(-logit)).mean())


def brier_score(label: Array, logit: Array) -> float:
    """Return the mean squared distance of probability and label."""
    return float(brier_score_loss(label, expit(logit)))


def reliability_curve(label: Array, logit: Array, bins: int = 15) -> tuple[Array, Array, Array]:
    """Return count, mean probability and share of positives of each of `bins` equal bins of probability; (bins,) each.

    Mean and share are NaN where a bin is empty.
    """
    prob = expit(logit)
    bin_index = np.minimum((prob * bins).astype(int), bins - 1)
    count = np.bincount(bin_index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return (
            count,
            np.bincount(bin_index, weights=prob, minlength=bins) / count,
            np.bincount(bin_index, weights=label == 1, minlength=bins) / count,
        )


def expected_calibration_error(label: Array, logit: Array, bins: int = 15) -> float:
    """Return the expected calibration error (Naeini et al. 2015) of the probability of tumor, in equal bins."""
    prob, truth = torch.from_numpy(np.array(expit(logit))), torch.from_numpy(np.array(label, dtype=np.int64))
    return float(binary_calibration_error(prob, truth, n_bins=bins, norm="l1"))


def fit_temperature(label: Array, logit: Array) -> float:
    """Return the temperature that minimizes the likelihood's loss of logit / temperature (Guo et al. 2017).

    It is sought between 0.05 and 20: a validation part without a single mistake has no minimum, and gets a bound.
    """
    found = minimize_scalar(
        lambda log: negative_log_likelihood(label, logit / np.exp(log)), bounds=np.log(TEMPERATURES), method="bounded"
    )
    return float(np.exp(found.x))


def fit_platt(label: Array, logit: Array) -> tuple[float, float]:
    """Return scale and shift that minimize the likelihood's loss of scale * logit + shift (Platt 1999).

    Unlike a temperature, the shift corrects for another share of positives. A weak penalty keeps the scale finite where
    the logits separate the classes.
    """
    model = LogisticRegression(C=1e3).fit(logit[:, None], label)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def cross_fit(
    label: Array, logit: Array, part: Array, fit: Callable[[Array, Array], Fitted]
) -> Iterator[tuple[Array, Fitted]]:
    """Fit something on all parts but one, for each part in turn.

    Yields:
        Mask of the part that was left out, shape (N,), and what was fitted without it.
    """
    for left_out in np.unique(part):
        mask = part == left_out
        yield mask, fit(label[~mask], logit[~mask])
