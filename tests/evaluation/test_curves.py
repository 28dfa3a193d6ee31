"""curves: a figure of a run's epochs, or of several runs'."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.plotting.plots import best_epoch, learning_curves


def test_one_run_is_drawn_into_its_folder(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curves", str(run_copy)]) == 0
    assert Image.open(run_copy / "curves.png").width > 1000
    best = pd.read_csv(run_copy / "metrics.csv")["val/auroc"]
    assert f"best epoch {best.to_numpy().argmax() + 1}, val/auroc {best.max():.4f}" in capsys.readouterr().err


def test_several_runs_and_a_cross_validations_folds(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folds = run_copy.parent / "crossval_0"
    for fold in range(2):
        (folds / f"fold_{fold}").mkdir(parents=True)
        shutil.copyfile(run_copy / "metrics.csv", folds / f"fold_{fold}" / "metrics.csv")
    assert main(["curves", str(run_copy), str(folds), "--output", "all.png"]) == 0
    assert "all.png: 3 runs." in capsys.readouterr().err
    assert Path("all.png").is_file()


def test_lines_are_the_runs_epochs_and_the_ring_is_at_the_best() -> None:
    rows = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "train/loss": [0.7, 0.5, 0.4],
            "train/auroc": [0.6, 0.8, 0.9],
            "val/loss": [0.6, None, 0.5],
            "val/auroc": [0.85, None, 0.8],
        }
    )
    assert best_epoch(rows)["epoch"] == 1
    loss, auroc = learning_curves({"base/version_0": rows}).axes
    assert [np.asarray(line.get_ydata()).tolist() for line in loss.lines] == [[0.7, 0.5, 0.4], [0.6, 0.5], [0.6]]
    assert [np.asarray(line.get_xdata()).tolist() for line in auroc.lines[:3]] == [[1, 2, 3], [1, 3], [1]]
    bare = rows[["epoch", "train/loss", "train/auroc"]]  # of a run that held nothing out
    assert len(learning_curves({"a": bare, "b": rows}).axes) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "not the metrics of a run"),
        ("a,b\n1,2\n", "not the metrics of a run"),
        ("epoch,train/loss\nx,y\n", "not the metrics of a run"),
        ("epoch,train/loss\n", "contains no epoch yet"),
        ("\0\xff", "not the metrics of a run"),
    ],
)
def test_what_is_no_run_is_refused(content: str | None, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    if content is not None:
        Path("run/metrics.csv").write_bytes(content.encode("latin1"))
    assert main(["curves", "run"]) == 2
    assert f"error: run/metrics.csv: {message}" in capsys.readouterr().err
    assert not Path("run/curves.png").exists()


def test_a_run_is_drawn_once_and_the_folder_is_made(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curves", str(run_copy), str(run_copy)]) == 2
    assert "is listed twice" in capsys.readouterr().err
    assert main(["curves", str(run_copy), "--output", "no/where.png"]) == 2
    assert "the folder does not exist" in capsys.readouterr().err
