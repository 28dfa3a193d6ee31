"""Scale and shift of slide logits, because tumor is rarer in slides than in training patches."""

import json
import math
from pathlib import Path

from scipy.special import logit

from pcam_lightning.slides.slide_network import SlideNetwork
from pcam_lightning.slides.slide_options import SlideOptions
from pcam_lightning.utils.errors import UserError


def logit_correction(options: SlideOptions, network: SlideNetwork) -> dict[str, float]:
    """Return the scale and shift of the logits.

    Args:
        options: options with a prior or a calibration file.
        network: network that computed the logits.

    Raises:
        UserError: the checkpoint does not record its tumor share; or the calibration cannot be read, or was fitted
            to another network, views or stride.
    """
    if options.calibration is not None:
        return read_calibration(options.calibration, network.sha256, network.tta, options.stride)
    if options.prior is None:
        return {"scale": 1.0, "shift": 0.0}
    positive_fraction = network.classifier.positive_fraction
    if positive_fraction is None:
        raise UserError(f"`prior`: {network.name} does not record the share of tumor among its training patches.")
    return {"scale": 1.0, "shift": prior_shift(options.prior, positive_fraction)}


def read_calibration(path: Path, weights: str, tta: str, stride: int) -> dict[str, float]:
    """Read scale and shift from the calibration.json that `evaluate_slides` writes.

    Raises:
        UserError: the file is missing or malformed, or was fitted to another network, other views or another stride.
    """
    try:
        content = json.loads(path.read_text())
        found = {name: float(content[name]) for name in ("scale", "shift")}
        network = content["network"]["sha256"]
        fitted = {"tta": content["network"]["tta"], "stride": content["stride"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a calibration.json of evaluate-slides ({error}).") from None
    if not all(map(math.isfinite, found.values())) or found["scale"] <= 0:
        raise UserError(f"{path}: scale and shift should be finite, and the scale greater than 0.")
    if network != weights:
        raise UserError(f"{path}: fitted to another network, {content['network'].get('ckpt_path')}.")
    for name, value in (("tta", tta), ("stride", stride)):
        if fitted[name] != value:
            raise UserError(f"{path}: fitted with `{name}` {fitted[name]}, not {value}.")
    return found


def prior_shift(prior: float, training_prior: float) -> float:
    """Return the logit shift for a share of tumor that differs from that of the training patches.

    Saerens et al., "Adjusting the outputs of a classifier to new a priori probabilities", 2002.

    Args:
        prior: share of tumor among the squares of a slide, in (0, 1).
        training_prior: share of tumor among the training patches, in (0, 1).
    """
    return float(logit(prior) - logit(training_prior))
