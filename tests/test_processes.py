"""Two processes do what one does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from conftest import CONFIGS, FAST

TWO = ("--trainer.strategy=ddp", "--trainer.devices=2")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def _run(*args: str, launcher: tuple[str, ...] = ()) -> str:
    command = [sys.executable, *launcher, "-m", "pcam_lightning", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_fit_and_predict(drawn: Path, run_copy: Path) -> None:
    # From weights that are not random: the first epoch is frozen, the second is not.
    weights = ("--model.weights", str(run_copy / "checkpoints" / "best.ckpt"))
    configs = ("-c", str(CONFIGS / "base.yaml"), "-c", str(CONFIGS / "ddp.yaml"), "--data.root", str(drawn))
    told = _run("fit", *configs, "--trainer.max_epochs=2", *FAST, *weights, "--trainer.devices=2")
    assert told.count(" to train on, 23 patches") == 1
    run = Path("lightning_logs/ddp/version_0")
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] in (2, 4)  # 2 x 32 patches
    assert pd.read_csv(run / "metrics.csv")["val/auroc"].notna().all()

    checkpoint = str(run_copy / "checkpoints" / "best.ckpt")
    plain = ("--ckpt_path", checkpoint, "--trainer.accelerator=cpu", "--trainer.precision=32-true")
    submissions, scores = [], []
    for flags, launcher in (((), ()), (TWO, TORCHRUN)):
        _run("predict", *plain, "--overwrite", *flags, launcher=launcher)
        submissions.append(pd.read_csv(run_copy / "submission.csv"))
        _run("validate", *plain, *flags, launcher=launcher)
        scores.append(pd.read_json(run_copy / "validate.json", typ="series")["val/auroc"])
    assert list(submissions[0]["id"]) == list(submissions[1]["id"])
    np.testing.assert_allclose(submissions[0]["label"], submissions[1]["label"], rtol=1e-4, atol=1e-6)
    assert abs(scores[0] - scores[1]) < 1e-6
