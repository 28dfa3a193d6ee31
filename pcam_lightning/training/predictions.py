"""Logits of all processes, joined by id, and the CSV files that they are written to."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from scipy.special import logit as to_logit

from pcam_lightning.data.csv_tables import read_labels, read_text, without_suffix
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.table_file import LEVELS
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.lightning_internals import keyboard_interrupt
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn, shorten
from pcam_lightning.utils.system import compile_errors

_NO_LABELS = "has no labels; evaluate takes `labels` FILE (id,label), and compare a CSV with id,label,logit."


class PredictionCollector(L.Callback):
    """Collects what validate, test or predict yields, and hands it on at the end, in the first process alone.

    Args:
        write: takes a row a patch, by id: `logit`, float32, and what else the steps yield.
    """

    def __init__(self, write: Callable[[pd.DataFrame], None]) -> None:
        self._write = write
        self._batches: list[dict[str, torch.Tensor]] = []

    def _keep(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any) -> None:
        """Keep rows and logits: some twelve bytes a patch."""
        if not trainer.sanity_checking:
            self._batches.append(outputs)

    def _hand_on(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        names = self._batches[0].keys()
        own = {name: torch.cat([batch[name] for batch in self._batches]).cpu().numpy() for name in names}
        self._batches.clear()
        parts: list[Any] = [own]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, own)
        if trainer.is_global_zero:
            data: PCamDataModule = trainer.datamodule  # type: ignore[attr-defined]
            table = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in names})
            self._write(table.set_index(data.ids[table.pop("row")]))

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _keep  # type: ignore[assignment]
    on_validation_end = on_test_end = on_predict_end = _hand_on


def collect_predictions(trainer: L.Trainer, model: PCamClassifier, data: PCamDataModule, stage: str) -> pd.DataFrame:
    """Run a stage: validate, test or predict.

    Returns:
        `logit` and what else its steps yield, by id; empty in all processes but the first.
    """
    more = {"return_predictions": False} if stage == "predict" else {}
    with TemporaryDirectory() as folder, keyboard_interrupt(), compile_errors():
        # By a file where a process that the trainer starts is the first one.
        file, found = Path(folder) / "logits.npz", [pd.DataFrame({"logit": np.empty(0, dtype=np.float32)})]
        trainer.callbacks.append(PredictionCollector(partial(_keep, os.getpid(), file, found)))  # type: ignore[attr-defined]
        getattr(trainer, stage)(model, datamodule=data, **more)
        if file.is_file():
            with np.load(file) as saved:
                found.append(pd.DataFrame(dict(saved)).set_index("id"))
    return found[-1]


def _keep(process: int, file: Path, found: list[pd.DataFrame], predicted: pd.DataFrame) -> None:
    """Keep what is predicted where the process that started the stage finds it."""
    if os.getpid() == process:
        found.append(predicted)
    else:
        columns: dict[str, Any] = {str(name): predicted[name].to_numpy() for name in predicted}
        np.savez(file, **columns, id=predicted.index.to_numpy(dtype=str))


def write_predictions_csv(path: Path, table: pd.DataFrame, logit: "pd.Series[float]") -> None:
    """Write id,label,logit and, where they are known, center, patient and slide, in the table's order.

    Args:
        path: the file, replaced where it is there.
        table: one row a patch, with `id`, `label` and perhaps those of `LEVELS`; patches without a logit are left out.
        logit: float32, by id.
    """
    rows = table[table["id"].isin(logit.index)]
    rows = rows.assign(logit=logit.loc[rows["id"]].to_numpy(dtype=np.float32))
    columns = ["id", "label", "logit", *(level for level in LEVELS if level in rows)]
    atomic_write(path, rows[columns].to_csv(index=False, lineterminator="\n"))


def read_predictions_csv(file: Path, labels: Path | None = None) -> pd.DataFrame:
    """Read predictions with their labels: what `write_predictions_csv` writes, or a submission with labels beside it.

    Args:
        file: CSV with id and logit, or id and label, the probability of a submission.
        labels: CSV with id,label, where `file` holds none.

    Returns:
        Columns `id`, `label`, `logit` and, where they are in the file, those of `LEVELS` (of every patch) and others.

    Raises:
        UserError: a file is missing or malformed, has no labels, or labels of one class only.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such run, cross-validation or CSV of predictions.")
    rows = read_text(file, "It is not a CSV of predictions, which has id,label,logit.").reset_index(drop=True)
    if "id" not in rows or not {"logit", "label"} & set(rows):
        raise UserError(
            f"{file}: has the columns {','.join(map(str, rows))}; id,logit or a submission's id,label are due."
        )
    if "logit" not in rows:
        if labels is None:
            raise UserError(f"{file}: {_NO_LABELS}")
        prob = pd.to_numeric(rows["label"], errors="coerce")
        if not prob.between(0, 1).all():
            raise UserError(f"{file}: its label is no probability from 0 to 1.")
        rows["logit"] = to_logit(prob.clip(1e-38, 1 - 1e-16))
    if labels is not None:
        truth = read_labels(labels, "`labels` takes a CSV with id,label").set_index("id")["label"]
        found = without_suffix(rows["id"]).map(truth)
        if missing := rows["id"][found.isna()].tolist():
            raise UserError(
                f"{labels}: {len(missing):,} of the {len(rows):,} ids of {file} have no label there, "
                f"{shorten(missing[0])} first; the ids there are such as {shorten(str(truth.index[0]))}."
            )
        rows["label"] = found
    if "label" not in rows:
        raise UserError(f"{file}: {_NO_LABELS}")
    rows["label"] = pd.to_numeric(rows["label"], errors="coerce")
    rows["logit"] = pd.to_numeric(rows["logit"], errors="coerce").astype(np.float64)
    if not np.isfinite(rows["logit"]).all() or not rows["label"].isin([0, 1]).all():
        raise UserError(f"{file}: a logit that is not a finite number, or a label that is neither 0 nor 1.")
    rows["label"] = rows["label"].astype(np.int64)
    if rows["id"].duplicated().any():
        raise UserError(f"{file}: id {rows['id'][rows['id'].duplicated()].iloc[0]} stands twice.")
    if rows["label"].nunique() < 2:
        raise UserError(f"{file}: all {len(rows):,} labels are the same; AUROC needs patches of both classes.")
    for level in LEVELS:
        if level in rows and (unknown := int((rows[level] == "").sum())):
            rank_zero_warn(f"{file}: {unknown:,} of {len(rows):,} patches have no {level} there, so that none is used.")
            rows = rows.drop(columns=level)
    return rows


def join_predictions(ids: "pd.Series[str]", logit: "pd.Series[float]", temperature: float = 1.0) -> pd.DataFrame:
    """Join logits to the ids of a submission.

    Args:
        ids: in the order of the submission, each once.
        logit: float32, by id.
        temperature: what logits are divided by.

    Returns:
        Columns `id`, `logit` (float32) and `prob`, the probability of tumor (float64).

    Raises:
        UserError: an id without a logit or with two, or a logit of another id.
    """
    if not logit.index.is_unique or set(logit.index) != set(ids):
        raise UserError(
            f"{len(logit):,} predictions for {len(ids):,} ids: each needs one; leave `trainer.limit_predict_batches` "
            "and `trainer.fast_dev_run` out."
        )
    value = (logit.loc[ids] / temperature).to_numpy(dtype=np.float32)
    # In float32 all logits above 17 become 1.0, and ties cost AUROC.
    return pd.DataFrame({"id": ids.to_numpy(), "logit": value, "prob": expit(value.astype(np.float64))})


def write_submission(path: Path, predictions: pd.DataFrame, *, overwrite: bool) -> None:
    """Write submission.csv (id,label), which Kaggle takes, and predictions.csv (id,logit and more) beside it.

    Args:
        path: of the submission; its folder is there.
        predictions: what `predict` returns: `id`, `logit`, `prob` and perhaps more columns.
        overwrite: whether a submission that is there and differs may be replaced.

    Raises:
        UserError: a prediction is NaN or infinite, or another submission is there already.
        ValueError: a probability outside [0, 1].
    """
    label = predictions["prob"].to_numpy(dtype=np.float64)
    if invalid := int((~np.isfinite(label)).sum()):
        raise UserError(f"{invalid:,} of {len(label):,} predictions are NaN or infinite: use another checkpoint.")
    if label.min() < 0 or label.max() > 1:
        raise ValueError("predictions outside [0, 1]")
    content = pd.DataFrame({"id": predictions["id"], "label": label}).to_csv(index=False, lineterminator="\n")
    same = path.exists() and path.read_bytes() == content.encode()
    if path.exists() and not same and not overwrite:
        raise UserError(
            f"{path}: exists already, with other predictions; `overwrite` replaces it, `output` DIR writes elsewhere."
        )
    # The submission comes last: where it is, the other one is.
    logits = predictions.drop(columns="prob").astype({"logit": np.float32})
    atomic_write(path.with_name("predictions.csv"), logits.to_csv(index=False, lineterminator="\n"))
    if same:
        rank_zero_info(f"{path}: the same {len(label):,} predictions are there already.")
    else:
        atomic_write(path, content)
        rank_zero_info(f"{path}: {len(label):,} predictions, mean {label.mean():.3f}.")
