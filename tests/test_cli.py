"""The command line itself: help, flags that are wrong, configs that stack, the tools, python -m."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import CONFIGS, FAST

from pcam_lightning.cli import main

# ablations.yaml holds rows of deltas, and is tested with ablate.
RUN_CONFIGS = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem != "ablations")
STACKS = [[CONFIGS / "base.yaml"] if path.stem == "base" else [CONFIGS / "base.yaml", path] for path in RUN_CONFIGS]


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack[-1].stem)
def test_every_config_fits(stack: list[Path], drawn: Path) -> None:
    configs = [word for path in stack for word in ("-c", str(path))]
    steps = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    steps.append("--data.batch_size=8")  # small enough for the largest network
    alone = ["--trainer.devices=1", "--trainer.strategy=auto"]  # several processes: test_processes.py
    assert main(["fit", *configs, "--data.root", str(drawn), *FAST, *steps, *alone]) == 0
    made = {path.name for path in Path("lightning_logs").iterdir()}
    options = yaml.safe_load(stack[-1].read_text()).get("trainer") or {}
    assert made == {stack[-1].stem} or options.get("fast_dev_run")


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.stem)
def test_a_config_starts_with_its_command(path: Path) -> None:
    head = path.read_text().splitlines()[0]
    assert re.match(rf"# python -m pcam_lightning fit .*-c configs/{path.name}", head)


def test_a_callback_of_the_users_own_is_added(drawn: Path) -> None:
    averaging = "--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging"
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), "--trainer.max_epochs=1", *FAST]
    assert main([*args, averaging]) == 0
    checkpoint = Path("lightning_logs/base/version_0/checkpoints/best.ckpt")  # the run's own callbacks were there too
    assert "current_model_state" in torch.load(checkpoint, weights_only=True)
    assert main(["predict", "--ckpt_path", str(checkpoint), "--trainer.accelerator=cpu"]) == 0


def test_configs_stack_and_the_later_wins(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model:\n  lr: 0.01\ntrainer:\n  max_epochs: 1\n")
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "-c", str(tmp_path / "mine.yaml"), "--model.lr=0.02"]
    assert main([*args, "--data.root", str(drawn), *FAST]) == 0
    config = yaml.safe_load(Path("lightning_logs/mine/version_0/config.yaml").read_text())
    assert (config["model"]["lr"], config["trainer"]["max_epochs"], config["model"]["weight_decay"]) == (0.02, 1, 0.01)


@pytest.mark.parametrize("command", [[], ["fit"], ["validate"], ["test"], ["predict"], ["synthesize"], ["pack"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: python -m pcam_lightning")
    if command in (["fit"], ["predict"]):
        assert told.splitlines()[0].endswith("[options]")
        words = " ".join(told.split())
        assert "share of each class held out for validation" in words
        assert ("goes on with the newest run" if command == ["fit"] else "version_0/checkpoints/best.ckpt. (") in words
        assert '"hpc"' not in words  # Lightning takes more places for checkpoints than a run of ours has
    if not command:
        assert all(name in told for name in ("fit", "validate", "test", "predict", "synthesize", "pack"))


def test_synthesize_then_pack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", "out", "--train", "12", "--test", "4", "--slides", "4"]) == 0
    assert len(pd.read_csv("out/train_labels.csv")) == 12
    assert main(["pack", "--data.root", "out", "--data.verify=true"]) == 0
    told = capsys.readouterr().err
    assert "out: 12 drawn patches to train on, 4 in test/." in told
    assert re.search(r"train: 12 patches, 12 distinct, in out/.pcam_cache/train-\w+/images.npy", told)
    assert re.search(r"test: 4 patches, 4 distinct", told)
    assert main(["synthesize", "bare", "--train", "12", "--test", "0", "--slides", "4"]) == 0
    assert main(["pack", "--data.root", "bare"]) == 0
    assert main(["pack", "--data.root", "out/test"]) == 0
    assert re.search(r"test: 4 patches, 4 distinct, in out/test/", capsys.readouterr().err)


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "pcam_lightning", "fit", "--data.root", "nowhere", "--trainer.accelerator=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error:")
    assert "nowhere: no such folder" in done.stderr
    assert "Traceback" not in done.stderr
