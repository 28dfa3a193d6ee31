"""Logits of all processes -> one row an id, joined by id: what validate, test and predict leave behind."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from scipy.special import logit as to_logit

from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, say, warn
from pcam_lightning.table import read_labels, without_suffix

_KAGGLES = 57_458  # patches to predict


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
        if not trainer.sanity_checking:
            self._batches.append(outputs)

    def _hand_on(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        row = torch.cat([batch["row"] for batch in self._batches]).cpu().numpy()
        logit = torch.cat([batch["logit"] for batch in self._batches]).cpu().numpy()
        self._batches.clear()
        parts: list[Any] = [(row, logit)]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, (row, logit))
        if trainer.is_global_zero:
            data: PCamDataModule = trainer.datamodule  # type: ignore[attr-defined]
            row = np.concatenate([part[0] for part in parts])
            logit = np.concatenate([part[1] for part in parts])
            self._write(pd.Series(logit, index=data.ids[row]))

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


def read_labelled(file: Path, labels: Path | None = None) -> pd.DataFrame:
    """Read predictions with their labels: what `write_labelled` writes, or a submission with labels beside it.

    Args:
        file: CSV with id and logit, or id and label, the probability of a submission.
        labels: CSV with id,label, where `file` holds none.

    Returns:
        Columns `id`, `label`, `logit` and, where they are in the file, `slide` (of every patch) and `fold`.

    Raises:
        UserError: a file is missing or malformed, has no labels, or labels of one class only.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such run, cross-validation or CSV of predictions.")
    try:
        rows = pd.read_csv(file, dtype={"id": str, "slide": str}, keep_default_na=False, na_values={"logit": [""]})
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{file}: not a CSV of predictions ({error}).") from None
    if "id" not in rows or not {"logit", "label"} & set(rows):
        raise UserError(
            f"{file}: has the columns {','.join(map(str, rows))}; id,logit or a submission's id,label are due."
        )
    if "logit" not in rows:
        if labels is None:
            raise UserError(f"{file}: holds no labels to judge by; --labels FILE names them (id,label).")
        prob = pd.to_numeric(rows["label"], errors="coerce")
        if not prob.between(0, 1).all():
            raise UserError(f"{file}: its label is no probability from 0 to 1.")
        rows["logit"] = to_logit(prob.clip(1e-38, 1 - 1e-16))
    if labels is not None:
        truth = read_labels(labels, "--labels takes a CSV with id,label").set_index("id")["label"]
        found = without_suffix(rows["id"]).map(truth)
        if missing := int(found.isna().sum()):
            raise UserError(f"{labels}: {missing:,} of the {len(rows):,} ids of {file} have no label there.")
        rows["label"] = found
    if "label" not in rows:
        raise UserError(f"{file}: holds no labels to judge by; --labels FILE names them (id,label).")
    rows["logit"] = pd.to_numeric(rows["logit"], errors="coerce").astype(np.float64)
    if not np.isfinite(rows["logit"]).all() or not rows["label"].isin([0, 1]).all():
        raise UserError(f"{file}: a logit that is not a finite number, or a label that is neither 0 nor 1.")
    rows["label"] = rows["label"].astype(np.int64)
    if rows["id"].duplicated().any():
        raise UserError(f"{file}: id {rows['id'][rows['id'].duplicated()].iloc[0]} stands twice.")
    if rows["label"].nunique() < 2:
        raise UserError(f"{file}: all {len(rows):,} labels are the same; AUROC needs patches of both classes.")
    if "slide" in rows and (unknown := int((rows["slide"] == "").sum())):
        warn(f"{file}: {unknown:,} of {len(rows):,} patches have no slide there, so that none is used.")
        rows = rows.drop(columns="slide")
    return rows


def write_submission(
    path: Path, ids: "pd.Series[str]", logit: "pd.Series[float]", *, overwrite: bool, temperature: float = 1.0
) -> None:
    """Write submission.csv, what Kaggle takes, and predictions.csv (id,logit) beside it.

    Args:
        path: of the submission; its folder is there.
        ids: in the order of the submission, each once.
        logit: float32, by id.
        overwrite: whether a submission that is there and differs may be replaced.
        temperature: what logits are divided by.

    Raises:
        UserError: another submission is there already; see `make_submission` too.
    """
    logit = logit / temperature
    # In float32 all logits above 17 become 1.0, and ties cost AUROC.
    prob = pd.Series(expit(logit.to_numpy(dtype=np.float64)), index=logit.index)
    submission = make_submission(ids, prob)
    content = submission.to_csv(index=False, lineterminator="\n")
    same = path.exists() and path.read_bytes() == content.encode()
    if path.exists() and not same and not overwrite:
        raise UserError(
            f"{path}: there already, with other predictions; --overwrite replaces it, --output DIR leaves it."
        )
    # The submission comes last: where it is, the other one is.
    logits = pd.DataFrame({"id": ids.to_numpy(), "logit": logit.loc[ids].to_numpy(dtype=np.float32)})
    write_whole(path.with_name("predictions.csv"), logits.to_csv(index=False, lineterminator="\n"))
    if same:
        say(f"{path}: the same {len(submission):,} predictions are there already.")
    else:
        write_whole(path, content)
        say(f"{path}: {len(submission):,} predictions, mean {submission['label'].mean():.3f}.")


def say_where_it_goes(path: Path, patches: int, *, drawn: bool) -> None:
    """Say how a submission is sent, where it is one for Kaggle.

    Args:
        path: of the submission.
        patches: how many it is of.
        drawn: whether they are drawn tissue.
    """
    if drawn:
        say("Drawn tissue: nothing to submit. With data in data/, or --data.root DIR, fit trains on them.")
    elif patches == _KAGGLES:
        file = shlex.quote(str(path))
        say(f"kaggle competitions submit -c histopathologic-cancer-detection -f {file} -m MESSAGE sends it.")


def make_submission(ids: "pd.Series[str]", prob: "pd.Series[float]") -> pd.DataFrame:
    """Join probabilities to the ids of a submission.

    Args:
        ids: in the order of the submission, each once.
        prob: probability of tumor, float64, by id.

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
    label = prob.loc[ids].to_numpy(dtype=np.float64)
    if odd := int((~np.isfinite(label)).sum()):
        raise UserError(f"{odd:,} of {len(label):,} predictions are not finite: the checkpoint is of no use.")
    if label.min() < 0 or label.max() > 1:
        raise ValueError("predictions outside [0, 1]")
    return pd.DataFrame({"id": ids.to_numpy(), "label": label})
