"""Logits of all processes -> one row an id, joined by id, checked, and written as Kaggle takes it."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch

from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, say


class SubmissionWriter(L.Callback):
    """Collects what predict yields and writes submission.csv at the end.

    Args:
        path: the file; its folder is there.
        overwrite: whether a file that is there and differs may be replaced.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path
        self.overwrite = overwrite
        self._batches: list[dict[str, torch.Tensor]] = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep rows and logits: twelve bytes a patch."""
        self._batches.append(outputs)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Join by id, check and write.

        Raises:
            UserError: another submission is there already.
        """
        row = torch.cat([batch["row"] for batch in self._batches]).cpu().numpy()
        logit = torch.cat([batch["logit"] for batch in self._batches]).cpu().numpy()
        parts: list[Any] = [(row, logit)]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, (row, logit))
        if not trainer.is_global_zero:
            return
        data: PCamDataModule = trainer.datamodule  # type: ignore[attr-defined]
        assert data.store is not None
        assert data.test_table is not None
        row = np.concatenate([part[0] for part in parts])
        logit = np.concatenate([part[1] for part in parts])
        prob = pd.Series(torch.from_numpy(logit).sigmoid().numpy(), index=data.store.ids[row])
        submission = make_submission(data.test_table["id"], prob)
        if not _write_unless_it_changes(
            self.path, submission.to_csv(index=False, lineterminator="\n"), overwrite=self.overwrite
        ):
            say(f"{self.path}: the same {len(submission):,} predictions are there already.")
        else:
            say(f"{self.path}: {len(submission):,} predictions, mean {submission['label'].mean():.3f}.")


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


def _write_unless_it_changes(path: Path, content: str, *, overwrite: bool) -> bool:
    """Write the file; tell whether anything was written."""
    if path.exists():
        if path.read_bytes() == content.encode():
            return False
        if not overwrite:
            raise UserError(f"{path}: there already, with other predictions; --overwrite replaces it.")
    write_whole(path, content)
    return True
