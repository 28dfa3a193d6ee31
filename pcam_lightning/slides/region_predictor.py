"""Predict the patches of slide regions, and store their logits in a file."""

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

_EVERY = 30.0  # seconds between writes: a killed process loses at most these predictions


class SlidePredictor(L.LightningModule):
    """Predicts the patches of a region.

    Args:
        network: network that maps patches to logits.
        stride: distance between patches, in pixels.
        batch_size: patches per forward pass.
        distance: distance from the training patches by features of the early stages; None if not measured.
    """

    def __init__(
        self, network: PatchNetwork, stride: int, batch_size: int, distance: FeatureDistance | None = None
    ) -> None:
        super().__init__()
        self.network, self.stride, self.batch_size, self.distance = network, stride, batch_size, distance
        self._statistics: StageStatistics | None = None

    def on_predict_start(self) -> None:
        """Fold BatchNorm, and record early-stage statistics if distances are needed."""
        self.network.fold()
        if self.distance is not None:
            self._statistics = StageStatistics(self.network.predictor, self.network.hparams["backbone"])

    def predict_step(self, batch: RegionBatch, batch_idx: int) -> RegionBatch:
        """Return `square`, int64 (N,), `logit` and, if measured, `ood_distance`, float32 (N,), and `damaged`.

        A batch without readable squares is returned unchanged.
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
    """Writes the logits of a process to a file, so that an interrupted prediction can resume.

    Args:
        path: .npz file of `write_logits`; the rank of the process is added to its name.
        key: hash of the inputs that the logits depend on.
        known: logits and distances from an earlier call.
        total: number of patches to predict in all processes.
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
        total = self.total // trainer.world_size  # approximate share of this process
        self._bar = tqdm(total=total, desc=self.path.parent.name, unit=" patches", disable=not trainer.is_global_zero)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any) -> None:
        """Store the logits of a region, or the first error.

        The error is raised after all processes have finished, in each of them.
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
        """Write the file when the prediction is interrupted."""
        if self._bar is not None:
            self._bar.close()
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        part = self.path.with_name(f"{self.path.stem}_{trainer.global_rank}.npz")
        write_logits(part, self.logit, self.key, self.error, self.ood_distance, self.damaged)
        self._written = time.monotonic()


class Logits(NamedTuple):
    """Logits and distances of the squares of a slide.

    Attributes:
        logit: float32 (rows, columns), NaN if missing.
        ood_distance: distance from the training patches, float32 (rows, columns), NaN if missing.
        damaged: mask of unreadable squares, bool (rows, columns).
        error: error message of a process, or an empty string.
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
    """Write logits and their key; see `Logits`."""
    ood_distance = np.full_like(logit, np.nan) if ood_distance is None else ood_distance
    damaged = np.zeros(logit.shape, dtype=bool) if damaged is None else damaged
    with atomic_open(path) as file:
        np.savez_compressed(
            file, logit=logit, ood_distance=ood_distance, damaged=damaged, key=np.array(key), error=np.array(error)
        )


def read_logits(path: Path, key: str, shape: tuple[int, ...]) -> Logits:
    """Read and merge the files that `write_logits` and `LogitFile` wrote with the same key."""
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
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):  # missing, damaged, or another version
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
    """Return logits and distances of squares: read known ones from a file, and predict the others.

    Args:
        path: path of the slide.
        grid: patch grid of the slide.
        squares: mask of the squares to predict, bool (rows, columns) of the grid.
        network: network that maps patches to logits.
        file: .npz file of `write_logits`; afterwards it contains all squares.
        key: hash of the inputs that the logits depend on.
        options: options of the prediction.
        distance: distance from the training patches; None if not measured.

    Raises:
        UserError: the slide cannot be opened, most of it cannot be read, or a logit is not finite.
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
        trainer.strategy.barrier()  # all processes have read the parts before they are removed
        if count := int((np.isnan(found.logit) & squares & ~found.damaged).sum()):
            raise UserError(found.error or f"{path}: {count:,} logits are not finite; try `precision` 32-true.")
    logit, ood_distance = (
        np.where(squares, values, np.float32(np.nan)) for values in (found.logit, found.ood_distance)
    )
    found = Logits(logit, ood_distance, found.damaged & squares)
    _report_damage(path, grid, found.damaged, squares)
    if is_rank_zero():
        write_logits(file, found.logit, key, ood_distance=found.ood_distance, damaged=found.damaged)
        for part in file.parent.glob(f"{file.stem}_*.npz"):
            part.unlink()
    return found


def _report_damage(path: Path, grid: PatchGrid, damaged: np.ndarray, squares: np.ndarray) -> None:
    """Warn about unreadable squares among those to predict; both masks are bool (rows, columns).

    Raises:
        UserError: most squares cannot be read.
    """
    if not damaged.any():
        return
    row, column = np.argwhere(damaged)[0] * grid.square
    count, total = damaged.sum(), squares.sum()
    message = f"{path}: damaged at x {column:,}, y {row:,}: {count:,} of {total:,} squares cannot be read"
    if 2 * count > total:
        raise UserError(f"{message}. Copy the slide again from its source.")
    rank_zero_warn(f"{message} and stay empty.")
