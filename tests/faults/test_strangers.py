"""Files from strangers: what they hold is shown as text, and nothing in them is run."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import CONFIGS, NETWORK
from test_bad_input import Runs

from pcam_lightning.cli.main import main

MARKUP = "<script>alert(1)</script>"
CPU = "--trainer.accelerator=cpu"


def test_pages_show_markup_in_names_as_text(drawn: Path) -> None:
    root = Path("kaggle")
    shutil.copytree(drawn, root, ignore=shutil.ignore_patterns(".pcam_cache"))
    name = "<img src=x onerror=alert(1)>"
    labels = pd.read_csv(root / "train_labels.csv")
    old = str(labels["id"].iloc[0])
    for path, column in ((root / "train_labels.csv", "id"), (root / "patch_id_wsi_full.csv", "id")):
        path.write_text(path.read_text().replace(old, name))
        assert name in set(pd.read_csv(path)[column])
    (root / "train" / f"{old}.tif").rename(root / "train" / f"{name}.tif")
    slides = pd.read_csv(root / "patch_id_wsi_full.csv")
    slides["wsi"] = slides["wsi"].replace(slides["wsi"][0], MARKUP)
    slides.to_csv(root / "patch_id_wsi_full.csv", index=False)
    flags = ["-c", str(CONFIGS / "base.yaml"), "--data.root", str(root), f"--model.backbone={NETWORK}"]
    flags += ["--model.weights=none", "--data.slides", str(root / "patch_id_wsi_full.csv"), "--data.batch_size=32"]
    assert main(["fit", *flags, CPU, "--trainer.max_epochs=1", "--trainer.logger=false"]) == 0
    assert main(["evaluate", "lightning_logs/base/version_0", "--bootstrap_samples=100"]) == 0
    assert main(["explore", *flags, "--points=20"]) == 0
    for page in (Path("lightning_logs/base/version_0/report.html"), Path("explore/explore.html")):
        text = page.read_text()
        assert MARKUP not in text
        assert name not in text


@pytest.mark.parametrize(
    "args",
    [
        ["validate", "--ckpt_path", "x.ckpt"],
        ["test", "--ckpt_path", "x.ckpt"],
        ["predict", "--ckpt_path", "x.ckpt"],
        ["predict", "--ckpt_path", "good.ckpt", "--ensemble", "x.ckpt", "--output=out"],
        ["fit", "--ckpt_path", "x.ckpt", "--model.weights=none"],
        ["fit", "--model.weights", "x.ckpt", f"--model.backbone={NETWORK}"],
        ["explore", "--ckpt_path", "x.ckpt"],
        ["explore", "--model.weights", "x.ckpt"],
        ["evaluate", "stranger"],
        ["explain", "stranger"],
        ["fit", "--ckpt_path", "last", "-c", "version.yaml"],
    ],
    ids=" ".join,
)
def test_no_command_runs_what_a_checkpoint_brings(
    args: list[str], small: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(small / "checkpoints" / "best.ckpt", "good.ckpt")
    state = torch.load("good.ckpt", weights_only=True)
    torch.save({**state, "more": Runs()}, "x.ckpt")
    Path("version.yaml").write_text("data: {batch_size: 32}\n")
    for run in (Path("stranger"), Path("lightning_logs/version/version_0")):
        shutil.copytree(small, run)
        for name in ("best", "last"):
            (run / "checkpoints" / f"{name}.ckpt").unlink()
            shutil.copy("x.ckpt", run / "checkpoints" / f"{name}.ckpt")
    root = ["--data.root", str(drawn), CPU] if args[0] not in ("evaluate", "explain") else []
    assert main([*args, *root]) == 2
    assert "would run" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("touched").exists()
