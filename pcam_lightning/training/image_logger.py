"""Images on a run's TensorBoard page: scores, top errors, and the first augmented batch."""

from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from pcam_lightning.data.batches import Batch
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.plotting import patch_grids, plots
from pcam_lightning.plotting.style import as_array
from pcam_lightning.training.metrics_csv import RunTensorBoardLogger
from pcam_lightning.training.predictions import PredictionCollector
from pcam_lightning.transforms.augment import augment

FIRST = 15  # of the first batch


class ImageLogger(PredictionCollector):
    """Draws after each validation, and the first augmented batch once.

    Args:
        page: where they go; None in all processes but the first.
        data: whose validation part is shown.
    """

    def __init__(self, page: RunTensorBoardLogger | None, data: PCamDataModule) -> None:
        super().__init__(self._log_validation)
        self._page, self._data = page, data
        self._labels = data.table.set_index("id")["label"]
        self._step = 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the step."""
        self._step = trainer.global_step

    def _log_validation(self, predicted: pd.DataFrame) -> None:
        logit = predicted["logit"]
        store = self._data.train_store
        assert store is not None
        label = self._labels.loc[logit.index].to_numpy()
        if len(set(label)) < 2 or not np.isfinite(logit).all():  # nothing to draw a curve of
            return
        self._show("val/scores", plots.evaluation_panel(label, logit.to_numpy()))
        ids = logit.index.to_series()
        for kind, (_, figure) in patch_grids.error_grids(ids, label, logit.to_numpy(), store).items():
            self._show(f"val/{kind}", figure)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Show the first batch of the run as its step will see it."""
        if trainer.global_step or batch_idx or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, PCamClassifier)
        with torch.no_grad(), torch.random.fork_rng(), torch.autocast(pl_module.device.type, enabled=False):
            pl_module.on_train_batch_start(batch, batch_idx)  # the step's own draws
            unit, _ = augment(batch["image"], batch["label"], pl_module.augmentation, pl_module.preprocess.stain)
        ids = [patch_id[:12] for patch_id in self._data.ids[batch["row"][:FIRST].cpu().numpy()]]
        images = batch["image"][:FIRST].cpu().numpy()
        self._show("train/first batch", patch_grids.augmented_grid(images, unit[:FIRST], ids))

    def _show(self, name: str, figure: Figure) -> None:
        assert self._page is not None
        page: Any = self._page.experiment
        page.add_image(name, as_array(figure), self._step, dataformats="HWC")
