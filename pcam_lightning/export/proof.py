"""Comparison of exported files with the checkpoint, patch by patch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pcam_lightning.export.onnx_file import OnnxNetwork
from pcam_lightning.export.timm_files import read_timm
from pcam_lightning.export.torchscript_file import read_torchscript
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.patch_network import mean_logit
from pcam_lightning.utils.errors import UserError

TOLERANCE = 1e-3  # of a logit, in float32
_BATCH = 64

Logits = Callable[[np.ndarray], np.ndarray]  # uint8 (B, 96, 96, 3) -> float32 (B,)


class Difference(NamedTuple):
    """How the logits of an exported file differ from those of the checkpoint.

    Attributes:
        file: its name.
        compared_with: what of the checkpoint.
        mean: of the absolute differences.
        largest: of them.
        auroc: of the file; NaN where the patches are of one class.
        checkpoint_auroc: of the checkpoint.
    """

    file: str
    compared_with: str
    mean: float
    largest: float
    auroc: float
    checkpoint_auroc: float


class Comparison:
    """Patches that exported files are compared on.

    Args:
        image: uint8, (N, 96, 96, 3).
        label: 0 or 1, (N,).
    """

    def __init__(self, image: np.ndarray, label: np.ndarray) -> None:
        self.image, self.label = image, label

    def run(self, logits: Logits) -> np.ndarray:
        """Return the logits of all patches, float32 (N,)."""
        starts = range(0, len(self.image), _BATCH)
        return np.concatenate([logits(self.image[start : start + _BATCH]) for start in starts])

    def compare(self, file: str, compared_with: str, logit: np.ndarray, expected: np.ndarray) -> Difference:
        """Compare logits."""
        difference = np.abs(logit - expected)
        scores = [auroc(self.label, one) if len(set(self.label.tolist())) > 1 else np.nan for one in (logit, expected)]
        return Difference(file, compared_with, float(difference.mean()), float(difference.max()), *scores)


def checkpoint_logits(networks: Sequence[PCamClassifier], temperature: float = 1.0) -> Logits:
    """Return what maps patches to logits as `predict` does, in float32."""

    def logits(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            patches = torch.from_numpy(np.ascontiguousarray(image))
            mean = mean_logit([network.predict_logits(patches) for network in networks])
        found: np.ndarray = mean.numpy() / np.float32(temperature)
        return found

    return logits


def torchscript_logits(path: Path) -> Logits:
    """Return what maps patches to logits by a TorchScript file."""
    module = read_torchscript(path)

    def logits(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            patches = torch.from_numpy(np.ascontiguousarray(image)).permute(0, 3, 1, 2).float() / 255
            both = module(patches)
        found: np.ndarray = (both[:, 1] - both[:, 0]).numpy()
        return found

    return logits


def timm_logits(folder: Path, network: PCamClassifier) -> Logits:
    """Return what maps patches to logits by the network that timm builds, after our preprocessing."""
    module = read_timm(folder)

    def logits(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            both = module(network.preprocess(torch.from_numpy(np.ascontiguousarray(image))))
        found: np.ndarray = (both[:, 1] - both[:, 0]).numpy()
        return found

    return logits


def one_view_logits(network: PCamClassifier) -> Logits:
    """Return what maps patches to logits by one view of a network."""

    def logits(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = network(network.preprocess(torch.from_numpy(np.ascontiguousarray(image)))).numpy()
        return found

    return logits


def onnx_logits(path: Path) -> Logits:
    """Return what maps patches to logits by an ONNX file."""
    return OnnxNetwork(path).logits


def check(differences: Sequence[Difference]) -> None:
    """Check that logits are the same but for rounding.

    Raises:
        UserError: they are not.
    """
    for one in differences:
        if not one.largest <= TOLERANCE:  # NaN too
            raise UserError(
                f"{one.file}: its logits differ from those of the {one.compared_with} by up to {one.largest:.2g}, more "
                f"than {TOLERANCE:g}; nothing is written."
            )
