"""What older versions have written is read, or made anew, or refused; each is said. `make_old.py` made the files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import CONFIGS, FAST, MakeFolder
from make_old import OLD
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.data import packed_store as store_module
from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_train
from pcam_lightning.training.checkpoint import FORMAT

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


def test_a_run_resumes_from_an_old_checkpoint(old: Path, drawn: Path) -> None:
    args = ["fit", "--ckpt_path", str(old / "last.ckpt"), "--data.root", str(drawn), "--trainer.max_epochs=3", *FAST]
    recorded = torch.load(old / "last.ckpt", weights_only=True)["pcam"]["config"]["model"]
    names = ("backbone", "crop", "optimizer", "momentum", "lr")
    assert main([*args, *(f"--model.{name}={recorded[name]}" for name in names)]) == 0
    assert list(pd.read_csv("lightning_logs/default/version_0/metrics.csv")["epoch"]) == [3]


def test_packed_images_of_an_older_format_are_packed_anew(
    kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle()
    before = open_store(read_train(root), open_source(root), "train")
    monkeypatch.setattr(store_module, "FORMAT", store_module.FORMAT + 1)
    capsys.readouterr()
    after = open_store(read_train(root), open_source(root), "train")
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


def _as_format_1(path: Path) -> None:
    """Give a checkpoint, or a config, the names that version 0.1.0 used."""
    words = {
        "pcam_lightning.training.weight_averaging.ExponentialMovingAverage": "pcam_lightning.averaging.Averaging",
        "d4": "quarter_turns",
        "random_erasing": "erase",
    }

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {words.get(name, name): rename(each) for name, each in value.items()}
        return [rename(each) for each in value] if isinstance(value, list) else words.get(value, value)

    if path.suffix == ".yaml":
        config = yaml.safe_load(path.read_text())
        tta = config["model"].pop("tta")  # whose d4 is called so in all versions
        config = rename(config)
        config["model"]["tta"] = tta
        path.write_text(yaml.safe_dump(config))
        return
    state = torch.load(path, weights_only=True)
    record = state["pcam"]
    tta = record["config"]["model"].pop("tta")
    record["config"] = rename(record["config"])
    record["config"]["model"]["tta"] = tta
    record["format"] = 1
    state["started_from"] = state.pop("init_weights")
    for key in ("state_dict", "current_model_state"):
        state[key] = {name.replace("preprocess.std", "preprocess.deviation"): one for name, one in state[key].items()}
    keys = {"BestAndLastCheckpoint": "KeepCheckpoints", "MetricsCSV": "MetricsFile"}
    keys["ExponentialMovingAverage"] = "Averaging"
    state["callbacks"] = {keys.get(name, name): each for name, each in state["callbacks"].items()}
    path.unlink()  # best.ckpt and last.ckpt may be one file
    torch.save(state, path)


def test_a_run_of_an_earlier_version_is_resumed_in_its_folder_under_the_new_names(drawn: Path) -> None:
    averaged = "--trainer.callbacks=pcam_lightning.training.weight_averaging.ExponentialMovingAverage"
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), *FAST, averaged]
    args += ["--model.normalize=imagenet", "--model.augment.degrees=0", "--model.augment.d4=true"]
    assert main([*args, "--trainer.max_epochs=2"]) == 0
    run = Path("lightning_logs/base/version_0")
    for path in (run / "config.yaml", *(run / "checkpoints").iterdir()):
        _as_format_1(path)
    assert main(["fit", "-c", str(CONFIGS / "base.yaml"), "--ckpt_path=last", "--trainer.max_epochs=3"]) == 0
    metrics = pd.read_csv(run / "metrics.csv")
    assert list(metrics["epoch"]) == [1, 2, 3]
    best = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["BestAndLastCheckpoint"]
    assert best["best_score"] == pytest.approx(metrics["val/auroc"].max())
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["augment"]["d4"] is True
    evaluated = ["validate", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), CPU]
    assert main(evaluated) == 0
