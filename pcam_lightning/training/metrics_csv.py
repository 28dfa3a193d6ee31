"""What a run logs: metrics.csv and the TensorBoard page."""

import math
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.run_dir import Run


class RunTensorBoardLogger(TensorBoardLogger):
    """TensorBoard events in the run's own folder, without a curve of the epoch's number or a second file of options."""

    def __init__(self, run: Run, purge_step: int | None = None) -> None:
        super().__init__(run.folder, name="", version="", default_hp_metric=False, purge_step=purge_step)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log all but the epoch's number."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def save(self) -> None:
        """Flush the events."""
        self.experiment.flush()


class MetricsCSV(L.Callback):
    """Writes metrics.csv, a row an epoch, whole each time; logs patches/s, and once the options.

    TensorBoard gets the options beside the score, loggers of the user's own get them at the start.

    The rows travel with the checkpoint: a resumed run's file has no gap and no epoch twice.
    """

    state_key = "MetricsCSV"  # in checkpoints; a class may be renamed

    def __init__(self) -> None:
        self.run: Run | None = None  # None: no file
        self.resuming = False  # with a run that has rows already
        self.options: dict[str, Any] = {}  # what loggers get as hyper-parameters
        self.rows: list[dict[str, float]] = []
        self.logged: list[str] = []  # the loggers of the user's own that have the options
        self._patches, self._waited, self._begun, self._ended, self._paused = 0, 0.0, 0.0, 0.0, 0.0
        self._validated = self._listed = False
        self._rate = math.nan  # the highest of the parameter groups, in the latest step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the options to the user's own loggers; one that a resumed run continues has them already."""
        if not (self.options and trainer.is_global_zero):
            return
        for logger in trainer.loggers:
            if not isinstance(logger, RunTensorBoardLogger) and _identity(logger) not in self.logged:
                logger.log_hyperparams(self.options)
                self.logged.append(_identity(logger))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._patches, self._waited = 0, 0.0
        self._begun = self._ended = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last step: what its end and the next batch took. Note the learning rate."""
        self._waited += time.perf_counter() - self._ended
        # Not as it was logged last, perhaps epochs ago and by a run that has been stopped since.
        self._rate = max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count patches."""
        self._patches += len(batch["label"]) * trainer.world_size
        self._ended = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock again: validating within an epoch is no waiting. Note that the scores are of this epoch."""
        pause = time.perf_counter() - self._paused
        self._begun += pause
        self._ended += pause
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row."""
        seconds = max(self._ended - self._begun, 1e-9)
        pl_module.log("train/patches_per_second", self._patches / seconds)
        pl_module.log("train/waiting_for_data", self._waited / seconds)
        if self._validated:
            scores = [row.get("val/auroc", math.nan) for row in self.rows]
            scores.append(float(trainer.callback_metrics["val/auroc"]))
            if known := [score for score in scores if math.isfinite(score)]:  # of patches of one class there is none
                pl_module.log("val/best_auroc", max(known))
        logged = trainer.callback_metrics.items()
        values = {name: float(value) for name, value in logged if not name.startswith("train/lr")}
        values["train/lr"] = self._rate
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {name: values[name] for name in sorted(values) if self._validated or not name.startswith("val/")}
        self.rows.append(row)
        score = trainer.callback_metrics.get("val/best_auroc")
        if self._validated and not self._listed and score is not None:
            self.log_options(trainer, float(score))
        self._validated = False
        if self.run and trainer.is_global_zero:
            atomic_write(self.run.metrics, pd.DataFrame(self.rows).to_csv(index=False, lineterminator="\n"))

    def log_options(self, trainer: L.Trainer, score: float) -> None:
        """Log the options, for TensorBoard's page of hyper-parameters, which shows the latest score beside them."""
        for logger in trainer.loggers:
            if isinstance(logger, RunTensorBoardLogger):
                logger.log_hyperparams(self.options, {"val/best_auroc": score}, step=trainer.global_step)
                self._listed = True  # from the first score on, so that a run that is stopped is on the page too

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, and which loggers have the options."""
        return {"rows": self.rows, "logged": self.logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows; a new run that starts from another run's checkpoint has none."""
        if self.resuming:
            self.rows, self.logged = state_dict["rows"], state_dict["logged"]


def _identity(logger: Logger) -> str:
    """Return what names the record that a logger writes: its class, name and version, such as the id of a W&B run."""
    return f"{type(logger).__name__} {logger.name} {logger.version}"
