"""One number by one name: AUROC and accuracy of logits, the same in fit, evaluate and the submission."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pcam_lightning.metrics.classification import auroc
from pcam_lightning.metrics.torch_metrics import build_metrics
from pcam_lightning.training.predictions import (
    join_predictions,
    read_predictions_csv,
    write_predictions_csv,
    write_submission,
)


@pytest.fixture
def overconfident() -> pd.DataFrame:
    """Return 400 patches with float32 logits far above 17, where a float32 sigmoid is 1.0."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    logit = (22 + 6 * rng.normal(size=400) + 6 * label).astype(np.float32)
    return pd.DataFrame({"id": [f"p{n:03d}" for n in range(400)], "label": label, "logit": logit})


def test_auroc_of_overconfident_logits_is_the_same_everywhere(overconfident: pd.DataFrame, tmp_path: Path) -> None:
    label, logit = overconfident["label"].to_numpy(), overconfident["logit"].to_numpy()
    expected = auroc(label, logit)
    metrics, _ = build_metrics("val")
    for start in range(0, 400, 64):
        metrics.update(torch.from_numpy(logit[start : start + 64]), torch.from_numpy(label[start : start + 64]))
    assert metrics.compute()["val/auroc"].item() == pytest.approx(expected, abs=1e-6)

    write_predictions_csv(tmp_path / "val_predictions.csv", overconfident, overconfident.set_index("id")["logit"])
    kept = read_predictions_csv(tmp_path / "val_predictions.csv")
    assert auroc(kept["label"].to_numpy(), kept["logit"].to_numpy()) == expected

    by_id = overconfident.set_index("id")["logit"]
    write_submission(tmp_path / "submission.csv", join_predictions(overconfident["id"], by_id), overwrite=False)
    submission = pd.read_csv(tmp_path / "submission.csv")
    assert auroc(label, submission["label"].to_numpy()) == pytest.approx(expected, abs=1e-4)
    overconfident[["id", "label"]].to_csv(tmp_path / "answers.csv", index=False)
    evaluated = read_predictions_csv(tmp_path / "submission.csv", tmp_path / "answers.csv")
    assert auroc(evaluated["label"].to_numpy(), evaluated["logit"].to_numpy()) == pytest.approx(expected, abs=1e-4)


def test_logits_between_0_and_1_are_not_taken_for_probabilities() -> None:
    logit, label = torch.tensor([0.2, 0.4, 0.3, -0.1]), torch.tensor([1, 1, 0, 0])
    metrics, _ = build_metrics("val")
    metrics.update(logit[:3], label[:3])  # a batch of logits that are all in [0, 1]
    metrics.update(logit[3:], label[3:])
    assert metrics.compute()["val/accuracy"].item() == pytest.approx(0.75)


def test_a_submission_keeps_the_order_of_float32_logits() -> None:
    logit = pd.Series(np.linspace(-30, 20, 200, dtype=np.float32), index=[f"p{n}" for n in range(200)])
    label = join_predictions(logit.index.to_series(), logit)["prob"]
    assert label.is_monotonic_increasing
    assert label.is_unique
