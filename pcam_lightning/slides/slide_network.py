"""The network that predicts slides, loaded once for all slides."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.feature_distance import FeatureDistance, find_feature_distance
from pcam_lightning.training.loaded_run import LoadedRun


@dataclass(frozen=True)
class SlideNetwork:
    """A network, in evaluation mode on the CPU.

    Attributes:
        name: name or path that the user passed.
        classifier: network that maps patches to logits.
        sha256: SHA-256 of the weights.
        distance: distance from the training patches; None if not measured.
    """

    name: str
    classifier: PCamClassifier
    sha256: str
    distance: FeatureDistance | None

    @classmethod
    def load(cls, target: "SlideNetwork | LoadedRun | Path | str", tta: str | None) -> "SlideNetwork":
        """Load a run, a checkpoint, pcam or pcam-small; a `SlideNetwork` is returned unchanged.

        Raises:
            UserError: the network cannot be loaded.
        """
        if isinstance(target, SlideNetwork):
            return target
        loaded = LoadedRun.open(target)
        network = loaded.classifier(tta).eval()
        return cls(loaded.name, network, weights_sha256(network), find_feature_distance(loaded))

    @property
    def tta(self) -> str:
        """Test-time augmentation."""
        return str(self.classifier.hparams["tta"])

    def describe(self) -> dict[str, Any]:
        """Return the record for slide.json."""
        return {
            "ckpt_path": self.name,
            "backbone": self.classifier.hparams["backbone"],
            "tta": self.tta,
            "sha256": self.sha256,
            "positive_fraction": self.classifier.positive_fraction,
            "caution": self.classifier.trained.caution,
        }


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()
