"""What older versions have written is read, or made anew, or refused; each is said. `make_old.py` made the files."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAST, MakeFolder
from make_old import OLD
from PIL import Image

from pcam_lightning import store as store_module
from pcam_lightning.checkpoint import FORMAT
from pcam_lightning.cli import main
from pcam_lightning.store import open_store
from pcam_lightning.table import read_train

VERSIONS = sorted(path.name for path in OLD.iterdir())
CPU = "--trainer.accelerator=cpu"


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest) -> Path:
    """Return the folder of a version's files."""
    return OLD / str(request.param)


def test_an_old_checkpoint_predicts_what_it_did_and_old_packed_images_are_packed_anew(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path("data")
    (root / "test").mkdir(parents=True)
    (packed,) = (old / "cache").glob("test-*")
    for patch_id, pixels in zip(pd.read_csv(packed / "index.csv")["id"], np.load(packed / "images.npy"), strict=True):
        Image.fromarray(pixels).save(root / "test" / f"{patch_id}.tif")
    shutil.copytree(old / "cache", root / ".pcam_cache")
    predict = ["predict", "--ckpt_path", str(old / "last.ckpt"), "--data.root=data", "--output=out", CPU]
    assert main([*predict, "--trainer.precision=32-true"]) == 0
    now, then = (pd.read_csv(folder / "predictions.csv") for folder in (Path("out"), old))
    assert list(now["id"]) == list(then["id"])
    np.testing.assert_allclose(now["logit"], then["logit"], atol=1e-4)
    assert "of other files, or of another version; packing again" in capsys.readouterr().err
    assert not (root / ".pcam_cache" / packed.name).exists()


def test_a_run_goes_on_from_an_old_checkpoint(old: Path, drawn: Path) -> None:
    args = ["fit", "--ckpt_path", str(old / "last.ckpt"), "--data.root", str(drawn), "--trainer.max_epochs=3", *FAST]
    recorded = torch.load(old / "last.ckpt", weights_only=True)["pcam"]["config"]["model"]
    names = ("backbone", "optimizer", "momentum", "lr")
    assert main([*args, *(f"--model.{name}={recorded[name]}" for name in names)]) == 0
    assert list(pd.read_csv("lightning_logs/default/version_0/metrics.csv")["epoch"]) == [3]


def test_packed_images_of_an_older_format_are_packed_anew(
    kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle()
    before = open_store(read_train(root), root, "train")
    monkeypatch.setattr(store_module, "FORMAT", store_module.FORMAT + 1)
    capsys.readouterr()
    after = open_store(read_train(root), root, "train")
    assert "what is packed there is of other files, or of another version; packing again" in capsys.readouterr().err
    assert after.path != before.path
    assert not before.path.exists()


def test_a_newer_checkpoint_is_refused(
    small: Path, tmp_path: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(small / "checkpoints" / "best.ckpt", weights_only=True)
    assert state["pcam"]["format"] == FORMAT
    state["pcam"].update(format=FORMAT + 1, version="7.0")
    torch.save(state, tmp_path / "newer.ckpt")
    assert main(["predict", "--ckpt_path", str(tmp_path / "newer.ckpt"), "--data.root", str(drawn), CPU]) == 2
    assert "newer.ckpt: made by pcam_lightning 7.0, which is newer than this one" in capsys.readouterr().err
