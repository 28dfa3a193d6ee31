"""What the checkpoints of a run record of it: version, options, data, split and steps per epoch."""

import hashlib
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch

from pcam_lightning import __version__
from pcam_lightning.data.batches import BatchSampler
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.splits import split_digest
from pcam_lightning.training.checkpoint import FORMAT
from pcam_lightning.utils.errors import UserError


def run_record(trainer: L.Trainer, options: dict[str, Any], data: PCamDataModule | None = None) -> dict[str, Any]:
    """Return what a checkpoint records of its run: version, options, data and split.

    Args:
        trainer: of the run.
        options: those of the run, as plain values.
        data: the data module, set up; by default the trainer's.

    Raises:
        UserError: the trainer's data module is another one.
    """
    data = data or getattr(trainer, "datamodule", None)
    if not isinstance(data, PCamDataModule):
        raise UserError("BestAndLastCheckpoint: records the data of a run; pass a PCamDataModule as datamodule.")
    return {
        "version": __version__,
        "format": FORMAT,
        "config": options,
        "steps_per_epoch": steps_per_epoch(trainer, data),
        "data": data_record(data),
        "split": {
            "val": int(data.val_mask.sum()),
            "sha256": split_digest(data.table, data.val_mask),
            "kind": data.split_kind,
        },
    }


def trainer_options(trainer: L.Trainer, model: Any) -> dict[str, Any]:
    """Return the options of a run that a plain trainer makes, as plain values.

    Args:
        trainer: of the run.
        model: a PCamClassifier.
    """
    data = getattr(trainer, "datamodule", None)
    names = signature(PCamDataModule.__init__).parameters if isinstance(data, PCamDataModule) else {}
    values = {name: getattr(data, name) for name in names if name != "self"}
    precision = {"32": "32-true"}.get(str(trainer.precision), str(trainer.precision))
    return {
        "seed_everything": torch.initial_seed() % 2**32,
        "data": {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()},
        "model": {**model.hparams, "weights": model.weights},
        "trainer": {"precision": precision, "max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps},
    }


def label_digest(table: pd.DataFrame) -> str:
    """Hash the labels of a table and, where it has them, the weights, by id: SHA-256, hexadecimal."""
    columns = [name for name in ("id", "label", "sample_weight") if name in table]
    return hashlib.sha256(table[columns].sort_values("id").to_csv(index=False).encode()).hexdigest()


def data_record(data: PCamDataModule) -> dict[str, Any]:
    """Return what a checkpoint records of the data of its run, which is set up."""
    record = {
        "root": str(data.root),
        "pixels": data.train_store.fingerprint,
        "patches": len(data.table),
        "labels": label_digest(data.table),
    }
    if data.extra_store is not None:
        labels = label_digest(data.train_table.iloc[int((~data.val_mask).sum()) :])
        record |= {"extra_train": data.extra_store.fingerprint, "extra_labels": labels}
    return record


def batches_per_epoch(trainer: L.Trainer, data: PCamDataModule) -> int:
    """Return how many training batches an epoch has on each device, as the trainer limits them.

    Raises:
        UserError: a limit leaves none.
    """
    batches = len(BatchSampler(len(data.train_table), data.batch_size, 0, 0, trainer.world_size))
    limit = trainer.limit_train_batches
    limited = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if limited == 0:
        raise UserError(f"`trainer.limit_train_batches` {limit}: is less than one of {batches} batches.")
    return limited


def steps_per_epoch(trainer: L.Trainer, data: PCamDataModule) -> int:
    """Return how many steps of the optimizer an epoch has."""
    return -(-batches_per_epoch(trainer, data) // trainer.accumulate_grad_batches)
