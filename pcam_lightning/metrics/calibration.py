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

TEMPERATURES = 0.05, 20.0  # search range


def negative_log_likelihood(label: Array, logit: Array) -> float:
    """Return the mean negative log-likelihood in nats per patch, which training minimizes."""
    return float(-np.where(label == 1, log_expit(logit), log_expit(-logit)).mean())


def brier_score(label: Array, logit: Array) -> float:
    """Return the mean squared difference between probability and label."""
    return float(brier_score_loss(label, expit(logit)))


def reliability_curve(label: Array, logit: Array, bins: int = 15) -> tuple[Array, Array, Array]:
    """Return count, mean probability and share of positives per bin, each of shape (bins,).

    The bins have equal width. The mean and the share of an empty bin are NaN.
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
    """Return the expected calibration error (Naeini et al. 2015) of the tumor probability, with equal-width bins."""
    prob, truth = torch.from_numpy(np.array(expit(logit))), torch.from_numpy(np.array(label, dtype=np.int64))
    return float(binary_calibration_error(prob, truth, n_bins=bins, norm="l1"))


def fit_temperature(label: Array, logit: Array) -> float:
    """Return the temperature that minimizes the negative log-likelihood of logit / temperature (Guo et al. 2017).

    The search range is 0.05 to 20. Without any error there is no minimum, and a bound is returned.
    """
    found = minimize_scalar(
        lambda log: negative_log_likelihood(label, logit / np.exp(log)), bounds=np.log(TEMPERATURES), method="bounded"
    )
    return float(np.exp(found.x))


def fit_platt(label: Array, logit: Array) -> tuple[float, float]:
    """Return the scale and shift that minimize the negative log-likelihood of scale * logit + shift (Platt 1999).

    Unlike a temperature, the shift corrects for a different share of positives. A weak penalty keeps the scale finite
    if the logits separate the classes.
    """
    model = LogisticRegression(C=1e3).fit(logit[:, None], label)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def cross_fit(
    label: Array, logit: Array, fold: Array, fit: Callable[[Array, Array], Fitted]
) -> Iterator[tuple[Array, Fitted]]:
    """Call `fit` once per fold, on all other folds.

    Yields:
        Mask of the fold, shape (N,), and the result of `fit` on the other folds.
    """
    for held_out in np.unique(fold):
        mask = fold == held_out
        yield mask, fit(label[~mask], logit[~mask])
