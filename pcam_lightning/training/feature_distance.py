"""How far patches lie from the training patches, in the features of their network's early stages."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from sklearn.covariance import LedoitWolf

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.splits import split_digest
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.stage_statistics import StageStatistics
from pcam_lightning.training.lightning_internals import keyboard_interrupt
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.training.options import Config
from pcam_lightning.training.trainer import build_trainer
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import BundledRun
from pcam_lightning.utils.system import quiet_lightning, supported_precision

FILE = "training_features.safetensors"  # in a run's folder
_RECORD = "pcam_lightning.feature_distance"  # of the file's metadata
_MOST = 4000  # patches of each part, drawn at random
_QUANTILE = 0.99  # share of the validation patches that are in distribution


@dataclass(frozen=True)
class FeatureDistance:
    """Mahalanobis distances from the training patches (Lee et al. 2018).

    Attributes:
        mean: of the training patches' features, float32 (F,).
        whiten: what brings their covariance to the identity, float32 (F, F).
        threshold: distance above which a patch is out of distribution: 99 % of the validation patches are below it.
        step: of training, of the network's checkpoint.
        pixels: fingerprint of the labeled patches of the network's run, which it was measured on; None of a network
            that records none.
    """

    mean: torch.Tensor
    whiten: torch.Tensor
    threshold: float
    step: int
    pixels: str | None = None

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return the distances (B,) of features (B, F), in standard deviations per feature: 1 is common."""
        with torch.autocast(features.device.type, enabled=False):
            white = (features.float() - self.mean.to(features.device)) @ self.whiten.to(features.device)
            return white.square().mean(dim=1).sqrt()

    def write(self, path: Path) -> None:
        """Write all of it to a file."""
        record = json.dumps({"threshold": self.threshold, "step": self.step, "pixels": self.pixels})
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
                return cls(mean, whiten, float(record["threshold"]), int(record["step"]), record.get("pixels"))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            raise UserError(f"{path}: missing or damaged; evaluate with `abstain` 0.05 writes it.") from None

    def is_of(self, checkpoint: dict[str, Any]) -> bool:
        """Return whether it was measured on a checkpoint's network and the patches of its run."""
        return (self.step, self.pixels) == (checkpoint["global_step"], checkpoint["pcam"]["data"].get("pixels"))


@quiet_lightning()
def measure_feature_distance(loaded: LoadedRun, data: PCamDataModule) -> FeatureDistance:
    """Measure the features of some patches that trained a network, and find the threshold on validation patches.

    Args:
        loaded: the network's run.
        data: set up for `validate`, with a validation part.

    Raises:
        UserError: the data are not those of the network's run, it has no stages that can be looked at, or the training
            patches are all the same.
    """
    record = loaded.checkpoint["pcam"]
    pixels = record["data"].get("pixels")
    known = pixels in (None, data.train_store.fingerprint)
    if not known or split_digest(data.table, data.val_mask) != record["split"]["sha256"]:
        raise UserError(f"{data.root}: not the patches and the split that trained {loaded.path}.")
    _, model, options = Config.of_run(loaded, model={"tta": "none"}).build()
    loaded.load_into(model)
    StageStatistics(model.net, model.hparams["backbone"]).close()  # an error of it comes before all the work
    collector = _Collector()
    options.precision = supported_precision(options.accelerator, options.precision)
    trainer = build_trainer(options, [collector], fits=False, devices=1)
    parts = [_draw(mask) for mask in (~data.val_mask, data.val_mask)]
    rows = data.train_store.rows(data.table["id"])[np.concatenate(parts)]
    with keyboard_interrupt():
        trainer.predict(model, dataloaders=data.labeled_dataloader(rows), return_predictions=False)
    found, count = torch.cat(collector.found), len(parts[0])
    train, val = found[:count], found[count:]
    try:
        distance = FeatureDistance(*_fit(train), 0.0, loaded.step, pixels)
    except np.linalg.LinAlgError:
        raise UserError(
            f"{data.root}: its {count:,} training patches that were measured are copies of one or two; a distance from "
            "them needs patches that differ."
        ) from None
    threshold = float(np.quantile(distance(val).numpy(), _QUANTILE))
    return replace(distance, threshold=threshold)


def features_file(loaded: LoadedRun) -> Path:
    """Return the file of a run: in its folder, or of a network that comes with the package beside its weights."""
    if isinstance(loaded.run, BundledRun):
        return loaded.run.file.with_name(f"{loaded.run.file.stem}_features.safetensors")
    return loaded.run.folder / FILE


def find_feature_distance(loaded: LoadedRun) -> FeatureDistance | None:
    """Return the distance that goes with a checkpoint; None where none has been measured on its run's patches.

    Raises:
        UserError: the file is damaged.
    """
    path = features_file(loaded)
    if not path.is_file():
        return None
    distance = FeatureDistance.read(path)
    if not distance.is_of(loaded.checkpoint):
        rank_zero_info(
            f"{path}: was measured on another checkpoint or on other patches; distances from the training patches are "
            "left out. evaluate with `abstain` 0.05 measures them again."
        )
        return None
    return distance


def _draw(mask: np.ndarray) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(np.flatnonzero(mask))[:_MOST])


def _fit(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and whitening of features (N, F); the covariance is shrunk, as few patches need it.

    Raises:
        np.linalg.LinAlgError: all are copies of one patch, or halves of two.
    """
    values = features.numpy().astype(np.float64)
    mean, scale = values.mean(axis=0), values.std(axis=0) + 1e-6
    covariance = LedoitWolf(assume_centered=True).fit((values - mean) / scale).covariance_
    lower = np.linalg.cholesky(covariance)
    if lower.diagonal().min() < 1e-6:  # singular, but for rounding
        raise np.linalg.LinAlgError
    whiten = np.linalg.inv(lower).T / scale[:, None]
    return torch.from_numpy(mean).float(), torch.from_numpy(whiten).float()


class _Features(L.Callback):
    """Has the features of a batch, (B, F), when it has been predicted."""

    def __init__(self) -> None:
        self._statistics: StageStatistics | None = None

    def on_predict_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the stages of the network that predicts."""
        assert isinstance(pl_module, PCamClassifier)
        self._statistics = StageStatistics(pl_module.predictor, pl_module.hparams["backbone"])

    def take(self, count: int) -> torch.Tensor:
        """Return the features of the batch, float32 (B, F), without the padding of a compiled network."""
        assert self._statistics is not None
        return self._statistics.take()[:count]

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
        self.found.append(self.take(len(outputs["row"])).cpu())


class AddDistance(_Features):
    """Adds `ood_distance`, float32 (B,), to what a step of predict yields.

    Args:
        distance: from the training patches.
    """

    def __init__(self, distance: FeatureDistance) -> None:
        super().__init__()
        self.distance = distance

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any) -> None:
        """Add the distances of a batch."""
        outputs["ood_distance"] = self.distance(self.take(len(outputs["row"])))
