"""Two processes do what one does."""

import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST
from forked import MAIN, Done, run_code, run_two

from pcam_lightning.cli.main import main
from pcam_lightning.data.batches import BatchSampler
from pcam_lightning.data.datamodule import PCamDataModule

pytestmark = pytest.mark.process

TWO = ("--trainer.strategy=ddp", "--trainer.devices=2")


def _check(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_fit_and_predict(drawn: Path, run_copy: Path) -> None:
    # From weights that are not random: the first epoch is frozen, the second is not.
    weights = ("--model.weights", str(run_copy / "checkpoints" / "best.ckpt"))
    configs = ("-c", str(CONFIGS / "base.yaml"), "-c", str(CONFIGS / "ddp.yaml"), "--data.root", str(drawn))
    message = _check(run_two(MAIN, "fit", *configs, "--trainer.max_epochs=2", *FAST, *weights, "--trainer.devices=2"))
    assert message.count(" to train on, 23 patches") == 1
    run = Path("lightning_logs/ddp/version_0")
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] in (2, 4)  # 2 x 32 patches
    assert pd.read_csv(run / "metrics.csv")["val/auroc"].notna().all()

    checkpoint = str(run_copy / "checkpoints" / "best.ckpt")
    plain = ("--ckpt_path", checkpoint, "--trainer.accelerator=cpu", "--trainer.precision=32-true")
    submissions, scores = [], []
    for two in (False, True):
        for command in (["predict", "--overwrite"], ["validate"]):
            if two:
                _check(run_two(MAIN, *command, *plain, *TWO))
            else:
                assert main([*command, *plain]) == 0
        submissions.append(pd.read_csv(run_copy / "submission.csv"))
        scores.append(pd.read_json(run_copy / "validate.json", typ="series")["val/auroc"])
    assert list(submissions[0]["id"]) == list(submissions[1]["id"])
    np.testing.assert_allclose(submissions[0]["label"], submissions[1]["label"], rtol=1e-4, atol=1e-6)
    assert abs(scores[0] - scores[1]) < 1e-6


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_that_the_trainer_starts_itself(strategy: str, drawn: Path) -> None:
    tiny = ("--trainer.max_epochs=1", *FAST)
    two = (f"--trainer.strategy={strategy}", "--trainer.devices=2")
    printed = _check(run_code(MAIN, "fit", "-c", CONFIGS / "base.yaml", "--data.root", drawn, *tiny, *two))
    run = Path("lightning_logs/base/version_0")
    score = pd.read_csv(run / "metrics.csv")["val/auroc"].max()
    assert f"best: epoch 1, val/auroc {score:.4f}" in printed
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    if strategy != "ddp_spawn":  # which alone sends objects to the processes that it starts
        return
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    _check(run_code(MAIN, "predict", "--ckpt_path", checkpoint, "--trainer.accelerator=cpu", *two))
    assert len(pd.read_csv(run / "submission.csv")) == 40


# A loss that is NaN in the second of two processes alone.
_POISONED = """
import sys
import torch
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.cli.main import main

step = PCamClassifier.training_step

def poisoned(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    return loss * float("nan") if self.global_rank == 1 and batch_idx == 1 else loss

PCamClassifier.training_step = poisoned
sys.exit(main(sys.argv[1:]))
"""


def test_processes_that_lightning_starts_as_commands(drawn: Path) -> None:
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), "--trainer.max_epochs=1", *FAST, *TWO]
    command = [sys.executable, "-m", "pcam_lightning", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert "best: epoch 1, val/auroc" in done.stderr
    assert [path.name for path in Path("lightning_logs/base").iterdir()] == ["version_0"]


def test_the_patches_that_another_process_diverged_on_are_named(drawn: Path) -> None:
    Path("poisoned.py").write_text(_POISONED)
    more = ("--trainer.max_epochs=1", "--data.batch_size=16", *TWO)
    args = ("fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), *FAST, *more)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "poisoned.py",
        *args,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode != 0
    assert "error: epoch 1 diverged: the loss of step 2 is NaN or infinite" in done.stderr
    data = PCamDataModule(drawn, batch_size=16)
    L.seed_everything(42)
    data.setup("fit")
    batches = list(BatchSampler(97, 16, 42, rank=1, world_size=2))
    loader = data.train_dataloader()
    expected = loader.dataset.ids(batches[1])  # type: ignore[attr-defined]
    named = pd.read_csv("lightning_logs/base/version_0/diverged.csv")["id"]
    assert list(named) == list(expected)
