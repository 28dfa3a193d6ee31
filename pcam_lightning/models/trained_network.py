"""TrainedNetwork: a PatchNetwork that knows where its weights are from, and which patches have trained them."""

import os
from pathlib import Path
from typing import Any

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.models.patch_network import PatchNetwork
from pcam_lightning.models.pretrained import load_weights
from pcam_lightning.utils.bundled import bundled_file
from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.safe_load import safe_load

FIT_PATCHES = 512  # training patches that stains or pixel statistics are measured on


class TrainedNetwork(PatchNetwork):
    """A network that is trained from given weights; checkpoints keep what is known of them.

    Args:
        weights: what it starts from, as PCamClassifier explains it.

    Attributes:
        init_weights: what was loaded in truth.
        trained: the patches that trained its weights so far.
        positive_fraction: of the patches that it was last trained on; None where it was not.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.weights = os.fspath(weights)
        self.init_weights = "none"
        self.trained = TrainingPatches()
        self.positive_fraction: float | None = None
        self._load_pretrained_weights = True  # whether the weights it starts from are still to be loaded

    @property
    def freezes(self) -> bool:
        """Whether there is a frozen epoch at the start."""
        return self.hparams["freeze_epochs"] > 0 and self.init_weights != "none"

    def load_pretrained(self) -> None:
        """Load the weights that training starts from; `fit` calls it where neither it nor a checkpoint has been loaded.

        Raises:
            UserError: see `load_weights`.
        """
        load_weights(self.net, self.hparams["backbone"], self.weights, self.preprocess.side)
        self.init_weights = self.weights
        if self.weights not in ("imagenet", "none"):
            path = bundled_file(self.weights) or Path(self.weights).expanduser()
            self.trained = TrainingPatches.of_checkpoint(safe_load(path))
        self._load_pretrained_weights = False

    def on_fit_start(self) -> None:
        """Load the weights that training starts from, measure what preprocessing needs, and note what trains.

        A checkpoint that is resumed has brought weights and measurements already.

        Raises:
            UserError: the weights cannot be loaded, or nothing can be measured.
        """
        if self._load_pretrained_weights:
            self.load_pretrained()
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, PCamDataModule):
            self.measure(data)
            self.trained |= TrainingPatches.of(data.train_table)
            self.positive_fraction = float(data.train_table["label"].mean())
        elif self.preprocess.needs_fit and not self.preprocess.fitted:
            raise UserError(
                "`model.stain`, `model.normalize` own: are measured on training patches of a PCamDataModule; pass "
                "one as datamodule, or call preprocess.fit() first."
            )

    def measure(self, data: PCamDataModule) -> None:
        """Measure stains or pixel statistics on training patches, where preprocessing needs them and has none."""
        if self.preprocess.needs_fit and not self.preprocess.fitted:
            self.preprocess.fit(data.sample(FIT_PATCHES))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record which weights training started from, and which patches have trained them."""
        checkpoint["init_weights"] = self.init_weights
        checkpoint["trained"] = self.trained.record()
        checkpoint["positive_fraction"] = self.positive_fraction

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what is recorded of the weights."""
        self.init_weights = checkpoint["init_weights"]
        self.trained = TrainingPatches.of_checkpoint(checkpoint)
        self.positive_fraction = checkpoint["positive_fraction"]
        self._load_pretrained_weights = False
