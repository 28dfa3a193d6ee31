"""PatchPredictor: predict single patches with an exported network, with Grad-CAM."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from pcam_lightning.evaluation.interpret import cam_layer, center_heat_fraction, grad_cam
from pcam_lightning.export.onnx_file import OnnxNetwork
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.stage_statistics import StageStatistics
from pcam_lightning.serve.upload import check_quality
from pcam_lightning.training.feature_distance import FILE as FEATURES_FILE
from pcam_lightning.training.feature_distance import FeatureDistance
from pcam_lightning.training.loaded_run import load_pretrained
from pcam_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """Prediction of a patch.

    Attributes:
        prob: probability of tumor in the center 32 x 32 pixels.
        logit: logit of the probability.
        warning: warning about an out-of-distribution patch; None if it is in distribution, or if the export has no
            features of training patches.
    """

    prob: float
    logit: float
    warning: str | None


class PatchPredictor:
    """Predicts patches with the files written by `export`.

    Args:
        folder: folder with model.onnx. Optional files are pcam_lightning*.safetensors for Grad-CAM,
            training_features.safetensors for out-of-distribution warnings, and test_vectors.npz for examples.

    Attributes:
        metadata: metadata of model.onnx, text by name.
        distance: distance from the training patches; None if not measured.
        examples: synthetic patches, uint8 (N, 96, 96, 3).

    Raises:
        UserError: model.onnx is missing, or a file is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder).expanduser()
        if not (folder / "model.onnx").is_file():
            raise UserError(f"`folder` {folder}: contains no model.onnx; name a folder written by export.")
        self._network = OnnxNetwork(folder / "model.onnx")
        self.metadata = self._network.metadata
        self._networks = [_with_layer(path) for path in sorted(folder.glob("pcam_lightning*.safetensors"))]
        path = folder / FEATURES_FILE
        self.distance = FeatureDistance.read(path) if path.is_file() and len(self._networks) == 1 else None
        self.examples = _read_examples(folder / "test_vectors.npz")

    @property
    def has_heat(self) -> bool:
        """Whether a network supports Grad-CAM."""
        return any(layer is not None for _, layer in self._networks)

    def predict(self, image: np.ndarray) -> Prediction:
        """Predict a patch, uint8 (96, 96, 3).

        Raises:
            PatchRefused: the patch is black, blank or out of focus.
        """
        check_quality(image)
        logit = float(self._network.logits(image[None])[0])
        if not math.isfinite(logit):
            raise ValueError("the logit is NaN or infinite")
        return Prediction(float(expit(logit)), logit, self._ood_warning(image))

    def _ood_warning(self, image: np.ndarray) -> str | None:
        """Return a warning if the features of a patch are out of distribution, else None."""
        if self.distance is None:
            return None
        network, _ = self._networks[0]
        statistics = StageStatistics(network.net, network.hparams["backbone"])
        try:
            with torch.no_grad():
                network.predict_logits(torch.from_numpy(image[None].copy()))
            distance = float(self.distance(statistics.take())[0])
        finally:
            statistics.close()
        if distance <= self.distance.threshold:
            return None
        return (
            f"Texture and color are out of distribution: the distance from the training patches is {distance:.2f}; for "
            f"99 % of held-out patches, it is at most {self.distance.threshold:.2f}."
        )

    def heat(self, image: np.ndarray) -> tuple[np.ndarray, float | None]:
        """Return the Grad-CAM of a patch, uint8 (96, 96, 3), averaged over the networks.

        Returns:
            Heat, float32 (96, 96), from 0 to 1; and its share in the center 32 x 32 pixels, None without heat.
        """
        batch = torch.tensor(image[None])
        heats = [grad_cam(network, batch, layer) for network, layer in self._networks if layer is not None]
        heat: np.ndarray = np.mean(heats, axis=0)
        center = float(center_heat_fraction(heat)[0])
        return heat[0], None if math.isnan(center) else center


def _with_layer(path: Path) -> tuple[PCamClassifier, str | None]:
    """Load a network and its Grad-CAM layer, which is None if unsupported."""
    network = load_pretrained(path, "none")  # heat and distance use one view
    try:
        return network, cam_layer(network, torch.zeros(1, 96, 96, 3, dtype=torch.uint8))
    except UserError:
        return network, None


def _read_examples(path: Path) -> np.ndarray:
    """Read the synthetic patches of an export, uint8 (N, 96, 96, 3); empty if the file is missing or damaged."""
    empty = np.zeros((0, 96, 96, 3), dtype=np.uint8)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image: np.ndarray = arrays["image"]
    except Exception:  # zipfile and numpy raise errors of many types over a damaged file
        return empty
    return image if image.dtype == np.uint8 and image.shape[1:] == (96, 96, 3) else empty
