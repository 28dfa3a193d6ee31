"""Python as the examples use it; tests/test_docs.py has the pages."""

import re
import runpy
import sys
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST, NETWORK

from pcam_lightning.cli.main import main
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.best_and_last import BestAndLastCheckpoint
from pcam_lightning.training.fit import fit
from pcam_lightning.training.options import Config
from pcam_lightning.training.predict import predict
from pcam_lightning.utils.errors import UserError

ROOT = CONFIGS.parent
QUICK = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 1}


def _config(drawn: Path, **trainer: object) -> Config:
    return Config.load(
        CONFIGS / "base.yaml",
        data={"root": str(drawn), "batch_size": 32},
        model={"backbone": NETWORK, "weights": "none", "crop": 48, "lr": 0.003},
        trainer={**QUICK, "logger": False, **trainer},
    )


@pytest.mark.parametrize("name", ["train", "own_network"])
def test_the_examples_run(
    name: str, drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(drawn), "--epochs=1"])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert "logit" in capsys.readouterr().out


def test_the_example_of_evaluation_runs(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run_copy), str(run_copy)])
    runpy.run_path(str(ROOT / "examples" / "evaluate.py"), run_name="__main__")
    assert "difference +0.0000" in capsys.readouterr().out


def test_fit_and_predict_do_what_the_commands_do(drawn: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning"):
        result = fit(_config(drawn))
        assert len(predict(str(result.checkpoint))) == 40
        assert not [record.getMessage() for record in caplog.records if record.name.startswith("lightning")]
        L.Trainer(**QUICK, logger=False)  # type: ignore[arg-type]
        assert "GPU available: False, used: False" in caplog.messages
    assert result.run is not None
    assert result.best_epoch == 1
    assert result.best_score == result.metrics["val/auroc"].iloc[0]
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), *FAST, "--trainer.max_epochs=1"]
    assert main(args) == 0
    states = [
        torch.load(f"lightning_logs/base/version_{number}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for number in (0, 1)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    predictions = predict(str(result.checkpoint))
    assert main(["predict", "--ckpt_path", str(result.checkpoint), "--trainer.accelerator=cpu"]) == 0
    submission = pd.read_csv("lightning_logs/base/version_0/submission.csv")
    assert list(predictions["id"]) == list(submission["id"])
    assert predictions["prob"].to_numpy() == pytest.approx(submission["label"].to_numpy(), abs=1e-12)


def test_the_checkpoint_of_a_plain_trainer_predicts_and_is_evaluated(drawn: Path) -> None:
    L.seed_everything(1)
    data = PCamDataModule(str(drawn), batch_size=32)
    keep = BestAndLastCheckpoint("runs/mine")
    trainer = L.Trainer(**QUICK, callbacks=[keep], logger=False)  # type: ignore[arg-type]
    trainer.fit(PCamClassifier(NETWORK, "none", crop=48), data)
    best = "runs/mine/checkpoints/best.ckpt"
    assert len(predict(best)) == 40
    assert main(["validate", "--ckpt_path", best, "--trainer.accelerator=cpu"]) == 0
    found = pd.read_json("runs/mine/checkpoints/validate.json", typ="series")
    assert found["val/auroc"] == pytest.approx(keep.best_score, abs=1e-4)


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS.glob("*.yaml") if "ablations" not in path.name])
def test_a_config_alone_is_the_recipe_that_it_is_with_base(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    assert Config.load(path).plain() == Config.load(CONFIGS / "base.yaml", path).plain()
    before = [CONFIGS / f"{one}.yaml" for one in re.findall(r"-c configs/(\w+)", path.read_text().splitlines()[0])]
    assert Config.load(path).plain() == Config.load(*before).plain()


def test_options_are_merged_and_checked() -> None:
    config = Config.load(CONFIGS / "base.yaml", CONFIGS / "best.yaml", data={"batch_size": 8})
    assert config.name == "best"
    plain = config.plain()
    assert plain["data"]["batch_size"] == 8
    assert plain["model"]["augment"]["stain"] == 0.1
    changed = config.replace(trainer={"callbacks": {"class_path": "EarlyStopping", "init_args": {"monitor": "a"}}})
    assert "decay" not in str(changed.plain()["trainer"]["callbacks"])
    with pytest.raises(UserError, match="batch_sise"):
        Config.load(data={"batch_sise": 8})
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        Config.load("none.yaml")
