"""How far patches lie from the training patches, in the features of their network's early stages."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from sklearn.covariance import LedoitWolf

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.stage_statistics import StageStatistics
from pcam_lightning.training.checkpoint import load_classifier, read_checkpoint
from pcam_lightning.training.options import Config
from pcam_lightning.training.trainer import build_trainer
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.bundled import bundled_file
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import run_of

FILE = "training_features.safetensors"  # in a run's folder
_RECORD = "pcam_lightning.feature_distance"  # of the file's metadata
_MOST = 4000  # patches of each part, drawn at random
_LIKE = 0.99  # share of the validation patches that are not unlike the training patches


@dataclass(frozen=True)
class FeatureDistance:
    """Mahalanobis distances from the training patches (Lee et al. 2018).

    Attributes:
        mean: of the training patches' features, float32 (F,).
        whiten: what brings their covariance to the identity, float32 (F, F).
        threshold: distance above which a patch is unlike them: 99 % of the validation patches are below it.
        made_by: what features depend on: `step` of training, `tta`.
    """

    mean: torch.Tensor
    whiten: torch.Tensor
    threshold: float
    made_by: dict[str, Any]

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return the distances (B,) of features (B, F), in standard deviations per feature: 1 is common."""
        with torch.autocast(features.device.type, enabled=False):
            white = (features.float() - self.mean.to(features.device)) @ self.whiten.to(features.device)
            return white.square().mean(dim=1).sqrt()

    def write(self, path: Path) -> None:
        """Write all of it to a file."""
        record = json.dumps({"threshold": self.threshold, "made_by": self.made_by})
        tensors = {"mean": self.mean.contiguous(), "whiten": self.whiten.contiguous()}
        atomic_write(path, safetensors.torch.save(tensors, {_RECORD: record}))

    @classmethod
    def read(cls, path: Path) -> "FeatureDistance":
        """Read what `write` has written.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})[_RECORD])
                mean, whiten = file.get_tensor("mean"), file.get_tensor("whiten")
                return cls(mean, whiten, float(record["threshold"]), {**record["made_by"]})
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            raise UserError(f"{path}: missing or damaged; evaluate with `abstain` 0.05 writes it.") from None


def measure_feature_distance(
    ckpt_path: Path, checkpoint: dict[str, Any], data: PCamDataModule, made_by: dict[str, Any]
) -> FeatureDistance:
    """Measure the features of some training patches, and find the threshold on validation patches.

    Args:
        ckpt_path: of the network.
        checkpoint: what `read_checkpoint` returns.
        data: set up for `validate`, with a validation part.
        made_by: see `FeatureDistance`.
    """
    model = load_classifier(ckpt_path, checkpoint, made_by["tta"])
    collector = _Collector()
    trainer = build_trainer(Config.of_checkpoint(checkpoint).build()[2], [collector], fits=False, devices=1)
    parts = [_draw(mask) for mask in (~data.val_mask, data.val_mask)]
    rows = data.train_store.rows(data.table["id"])[np.concatenate(parts)]
    trainer.predict(model, dataloaders=data.labeled_dataloader(rows), return_predictions=False)
    found, count = torch.cat(collector.found), len(parts[0])
    train, val = found[:count], found[count:]
    distance = FeatureDistance(*_fit(train), 0.0, made_by)
    threshold = float(np.quantile(distance(val).numpy(), _LIKE))
    return FeatureDistance(distance.mean, distance.whiten, threshold, made_by)


def features_file(ckpt_path: Path | str) -> Path:
    """Return the file of a checkpoint: in the folder of its run, or of a network of the package beside its weights."""
    bundled = bundled_file(ckpt_path)
    return (
        run_of(Path(ckpt_path)).folder / FILE
        if bundled is None
        else bundled.with_name(f"{bundled.stem}_features.safetensors")
    )


def find_feature_distance(ckpt_path: Path | str) -> FeatureDistance | None:
    """Return the distance that goes with a checkpoint; None where none has been measured, or for another epoch."""
    path = features_file(Path(ckpt_path).expanduser())
    if not path.is_file():
        return None
    distance = FeatureDistance.read(path)
    if distance.made_by["step"] != read_checkpoint(Path(ckpt_path).expanduser())["global_step"]:
        rank_zero_info(
            f"{path}: is of another checkpoint of the run; distances from the training patches are left out."
        )
        return None
    return distance


def _draw(mask: np.ndarray) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(np.flatnonzero(mask))[:_MOST])


def _fit(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and whitening of features (N, F); the covariance is shrunk, as few patches need it."""
    values = features.numpy().astype(np.float64)
    mean, scale = values.mean(axis=0), values.std(axis=0) + 1e-6
    covariance = LedoitWolf(assume_centered=True).fit((values - mean) / scale).covariance_
    whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T / scale[:, None]
    return torch.from_numpy(mean).float(), torch.from_numpy(whiten).float()


class _Features(L.Callback):
    """Has the features of a batch, (B, F), when it has been predicted."""

    def __init__(self) -> None:
        self._statistics: StageStatistics | None = None

    def on_predict_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the stages of the network that predicts."""
        assert isinstance(pl_module, PCamClassifier)
        self._statistics = StageStatistics(pl_module.predictor, pl_module.hparams["backbone"])

    def take(self) -> torch.Tensor:
        """Return the features of the batch, float32 (B, F)."""
        assert self._statistics is not None
        return self._statistics.take()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look no longer."""
        if self._statistics is not None:
            self._statistics.close()


class _Collector(_Features):
    """Collects the features of all batches, on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.Tensor] = []

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any) -> None:
        """Keep a batch."""
        self.found.append(self.take().cpu())


class AddDistance(_Features):
    """Adds `distance`, float32 (B,), to what a step of predict yields.

    Args:
        distance: from the training patches.
    """

    def __init__(self, distance: FeatureDistance) -> None:
        super().__init__()
        self.distance = distance

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any) -> None:
        """Add the distances of a batch."""
        outputs["distance"] = self.distance(self.take())
