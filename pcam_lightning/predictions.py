"""Logits of all processes -> one row an id, joined by id: what validate, test and predict leave behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, say


class Collector(L.Callback):
    """Collects what validate, test or predict yields, and hands it on at the end, in the first process alone.

    Args:
        write: takes the logits, float32, by id.
    """

    def __init__(self, write: Callable[["pd.Series[float]"], None]) -> None:
        self._write = write
        self._batches: list[dict[str, torch.Tensor]] = []

    def _keep(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any) -> None:
        """Keep rows and logits: twelve bytes a patch."""
        self._batches.append(outputs)

    def _hand_on(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row = torch.cat([batch["row"] for batch in self._batches]).cpu().numpy()
        logit = torch.cat([batch["logit"] for batch in self._batches]).cpu().numpy()
        parts: list[Any] = [(row, logit)]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, (row, logit))
        if trainer.is_global_zero:
            data: PCamDataModule = trainer.datamodule  # type: ignore[attr-defined]
            assert data.store is not None
            row = np.concatenate([part[0] for part in parts])
            logit = np.concatenate([part[1] for part in parts])
            self._write(pd.Series(logit, index=data.store.ids[row]))

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _keep  # type: ignore[assignment]
    on_validation_end = on_test_end = on_predict_end = _hand_on


def write_labelled(path: Path, table: pd.DataFrame, logit: "pd.Series[float]") -> None:
    """Write id,label,logit and, where slides are known, slide, in the table's order.

    Args:
        path: the file, replaced where it is there.
        table: one row a patch, with columns `id`, `label` and perhaps `slide`; patches without a logit are left out.
        logit: float32, by id.
    """
    rows = table[table["id"].isin(logit.index)]
    rows = rows.assign(logit=logit.loc[rows["id"]].to_numpy(dtype=np.float32))
    columns = ["id", "label", "logit", *(["slide"] if "slide" in rows else [])]
    write_whole(path, rows[columns].to_csv(index=False, lineterminator="\n"))


def write_submission(path: Path, ids: "pd.Series[str]", logit: "pd.Series[float]", *, overwrite: bool) -> None:
    """Write submission.csv, what Kaggle takes, and predictions.csv (id,logit) beside it.

    Args:
        path: of the submission; its folder is there.
        ids: in the order of the submission, each once.
        logit: float32, by id.
        overwrite: whether a submission that is there and differs may be replaced.

    Raises:
        UserError: another submission is there already; see `make_submission` too.
    """
    prob = pd.Series(expit(logit.to_numpy(dtype=np.float32)), index=logit.index)
    submission = make_submission(ids, prob)
    content = submission.to_csv(index=False, lineterminator="\n")
    same = path.exists() and path.read_bytes() == content.encode()
    if path.exists() and not same and not overwrite:
        raise UserError(f"{path}: there already, with other predictions; --overwrite replaces it.")
    # The submission comes last: where it is, the other one is.
    logits = pd.DataFrame({"id": ids.to_numpy(), "logit": logit.loc[ids].to_numpy(dtype=np.float32)})
    write_whole(path.with_name("predictions.csv"), logits.to_csv(index=False, lineterminator="\n"))
    if same:
        say(f"{path}: the same {len(submission):,} predictions are there already.")
    else:
        write_whole(path, content)
        say(f"{path}: {len(submission):,} predictions, mean {submission['label'].mean():.3f}.")


def make_submission(ids: "pd.Series[str]", prob: "pd.Series[float]") -> pd.DataFrame:
    """Join probabilities to the ids of a submission.

    Args:
        ids: in the order of the submission, each once.
        prob: probability of tumour, float32, by id.

    Returns:
        Columns `id` and `label`, as Kaggle takes them.

    Raises:
        UserError: an id without a prediction or with two, or one that is not finite.
        ValueError: a value outside [0, 1].
    """
    if not prob.index.is_unique or set(prob.index) != set(ids):
        raise UserError(
            f"{len(prob):,} predictions for {len(ids):,} ids: a submission needs one each; leave "
            "--trainer.limit_predict_batches and --trainer.fast_dev_run out."
        )
    label = prob.loc[ids].to_numpy(dtype=np.float32)
    if odd := int((~np.isfinite(label)).sum()):
        raise UserError(f"{odd:,} of {len(label):,} predictions are not finite: the checkpoint is of no use.")
    if label.min() < 0 or label.max() > 1:
        raise ValueError("predictions outside [0, 1]")
    return pd.DataFrame({"id": ids.to_numpy(), "label": label})
