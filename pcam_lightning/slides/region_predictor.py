"""A network on the patches of a slide's regions, and the file that keeps its logits."""

import time
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import lightning as L
import numpy as np
import torch
from tqdm import tqdm

from pcam_lightning.models.patch_network import PatchNetwork
from pcam_lightning.models.stage_statistics import StageStatistics
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.slide_options import SlideOptions
from pcam_lightning.slides.slide_regions import RegionBatch, SlideDataModule, SlideRegions, cut_patches
from pcam_lightning.training.feature_distance import FeatureDistance
from pcam_lightning.training.lightning_internals import keyboard_interrupt
from pcam_lightning.utils.atomic_io import atomic_open
from pcam_lightning.utils.errors import UserError, is_rank_zero, rank_zero_warn

_EVERY = 30.0  # seconds of predictions that a killed process may lose


class SlidePredictor(L.LightningModule):
    """Predicts the patches of a region.

    Args:
        network: what predicts them.
        stride: distance of neighboring patches, in pixels.
        batch_size: patches that go through the network at once.
        distance: from the training patches, of features of the network's early stages; None where it is not known.
    """

    def __init__(
        self, network: PatchNetwork, stride: int, batch_size: int, distance: FeatureDistance | None = None
    ) -> None:
        super().__init__()
        self.network, self.stride, self.batch_size, self.distance = network, stride, batch_size, distance
        self._statistics: StageStatistics | None = None

    def on_predict_start(self) -> None:
        """Fold BatchNorm, and look at the early stages where distances are asked for."""
        self.network.fold()
        if self.distance is not None:
            self._statistics = StageStatistics(self.network.predictor, self.network.hparams["backbone"])

    def predict_step(self, batch: RegionBatch, batch_idx: int) -> RegionBatch:
        """Return `square`, int64 (N,), `logit` and, where it is known, `ood_distance`, float32 (N,), and `damaged`.

        Where nothing can be read, the batch as it came.
        """
        if "error" in batch or not len(batch["row"]):
            return batch
        places = zip(batch["row"].split(self.batch_size), batch["column"].split(self.batch_size), strict=True)
        logits, distances = [], []
        for row, column in places:
            patches = cut_patches(batch["image"], row, column, self.stride)
            logits.append(self.network.predict_logits(patches, folded=True))
            if self._statistics is not None and self.distance is not None:
                distances.append(self.distance(self._statistics.take()))
        logit = torch.cat(logits).float()
        predicted = {name: batch[name] for name in ("square", "damaged")}
        predicted["logit"] = torch.where(logit.isfinite(), logit, torch.nan)
        return {**predicted, "ood_distance": torch.cat(distances)} if distances else predicted


class LogitFile(L.Callback):
    """Keeps the logits of a process in a file, so that an interrupted prediction can be resumed.

    Args:
        path: .npz of `write_logits`; the number of the process is added to its name.
        key: what the logits depend on.
        known: logits and distances that are known already.
        total: patches to predict in all processes.
    """

    def __init__(self, path: Path, key: str, known: "Logits", total: int) -> None:
        self.path, self.key, self.total = path, key, total
        self.logit, self.damaged = known.logit.copy(), known.damaged.copy()
        self.ood_distance = known.ood_distance.copy()
        self.error = ""
        self._written = time.monotonic()
        self._bar: Any = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show a progress bar."""
        total = self.total // trainer.world_size  # of this process, nearly
        self._bar = tqdm(total=total, desc=self.path.parent.name, unit=" patches", disable=not trainer.is_global_zero)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any) -> None:
        """Keep the logits of a region, or the first error.

        An error is raised when all processes have ended: each of them learns of it.
        """
        if "error" in outputs:
            self.error = self.error or outputs["error"]
            return
        square = outputs["square"].cpu().numpy()
        for name, values in (("logit", self.logit), ("ood_distance", self.ood_distance)):
            if name in outputs:
                values.reshape(-1)[square] = outputs[name].cpu().numpy()
        self.damaged.reshape(-1)[outputs["damaged"].cpu().numpy()] = True
        self._bar.update(len(outputs["square"]) + len(outputs["damaged"]))
        if time.monotonic() - self._written > _EVERY:
            self._write(trainer)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        self._bar.close()
        self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the file where the prediction is interrupted."""
        if self._bar is not None:
            self._bar.close()
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        part = self.path.with_name(f"{self.path.stem}_{trainer.global_rank}.npz")
        write_logits(part, self.logit, self.key, self.error, self.ood_distance, self.damaged)
        self._written = time.monotonic()


class Logits(NamedTuple):
    """What is known of the squares of a slide.

    Attributes:
        logit: float32 (rows, columns), NaN where there is none.
        ood_distance: from the training patches, the same.
        damaged: squares that cannot be read, bool (rows, columns).
        error: of a process, if any.
    """

    logit: np.ndarray
    ood_distance: np.ndarray
    damaged: np.ndarray
    error: str = ""


def write_logits(
    path: Path,
    logit: np.ndarray,
    key: str,
    error: str = "",
    ood_distance: np.ndarray | None = None,
    damaged: np.ndarray | None = None,
) -> None:
    """Write logits and what they depend on; see `Logits`."""
    ood_distance = np.full_like(logit, np.nan) if ood_distance is None else ood_distance
    damaged = np.zeros(logit.shape, dtype=bool) if damaged is None else damaged
    with atomic_open(path) as file:
        np.savez_compressed(
            file, logit=logit, ood_distance=ood_distance, damaged=damaged, key=np.array(key), error=np.array(error)
        )


def read_logits(path: Path, key: str, shape: tuple[int, ...]) -> Logits:
    """Read what `write_logits` and `LogitFile` have written with the same key."""
    nothing = np.full(shape, np.nan, dtype=np.float32)
    found = Logits(nothing, nothing, np.zeros(shape, dtype=bool))
    for part in (path, *sorted(path.parent.glob(f"{path.stem}_*.npz"))):
        try:
            with np.load(part) as arrays:
                if str(arrays["key"]) == key and arrays["logit"].shape == shape:
                    logit = np.where(np.isnan(found.logit), arrays["logit"], found.logit)
                    distance = np.where(np.isnan(found.ood_distance), arrays["ood_distance"], found.ood_distance)
                    damaged = (found.damaged | arrays["damaged"]) & np.isnan(logit)
                    found = Logits(logit, distance, damaged, found.error or str(arrays["error"]))
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):  # none there, damaged, or of another version
            continue
    return found


def predict_squares(
    path: Path,
    grid: PatchGrid,
    squares: np.ndarray,
    network: PatchNetwork,
    file: Path,
    key: str,
    options: SlideOptions,
    distance: FeatureDistance | None,
) -> Logits:
    """Return logits and distances of squares: those that are in a file, and the others predicted.

    Args:
        path: of the slide.
        grid: of its patches.
        squares: which to predict, bool (rows, columns) of the grid.
        network: what predicts them.
        file: .npz of `write_logits`; it has all of them afterwards.
        key: what they depend on.
        options: how they are predicted.
        distance: from the training patches; None where it is not known.

    Raises:
        UserError: the slide cannot be opened, most of it cannot be read, or a logit is no finite number.
    """
    found = read_logits(file, key, squares.shape)
    unknown = np.isnan(found.logit) if distance is None else np.isnan(found.logit) | np.isnan(found.ood_distance)
    missing = unknown & squares
    if missing.any():
        callback = LogitFile(file, key, found, int(missing.sum()))
        trainer = options.build_trainer(callback)
        regions = SlideRegions(path, grid, list(grid.regions(missing)), missing)
        predictor = SlidePredictor(network, options.stride, options.batch_size, distance)
        with keyboard_interrupt():
            trainer.predict(predictor, SlideDataModule(regions, options.num_workers), return_predictions=False)
        trainer.strategy.barrier()
        found = read_logits(file, key, squares.shape)
        trainer.strategy.barrier()  # before the parts are removed
        if count := int((np.isnan(found.logit) & squares & ~found.damaged).sum()):
            raise UserError(found.error or f"{path}: {count:,} logits are not finite numbers; try `precision` 32-true.")
    logit, far = (np.where(squares, values, np.float32(np.nan)) for values in (found.logit, found.ood_distance))
    found = Logits(logit, far, found.damaged & squares)
    _report_damage(path, grid, found.damaged, squares)
    if is_rank_zero():
        write_logits(file, found.logit, key, ood_distance=found.ood_distance, damaged=found.damaged)
        for part in file.parent.glob(f"{file.stem}_*.npz"):
            part.unlink()
    return found


def _report_damage(path: Path, grid: PatchGrid, damaged: np.ndarray, squares: np.ndarray) -> None:
    """Warn of squares that cannot be read, bool (rows, columns), among those to predict.

    Raises:
        UserError: these are most of them.
    """
    if not damaged.any():
        return
    row, column = np.argwhere(damaged)[0] * grid.square
    count, total = damaged.sum(), squares.sum()
    message = f"{path}: damaged at x {column:,}, y {row:,}: {count:,} of {total:,} squares cannot be read"
    if 2 * count > total:
        raise UserError(f"{message}. Copy the slide again from where it came.")
    rank_zero_warn(f"{message} and are left empty.")
