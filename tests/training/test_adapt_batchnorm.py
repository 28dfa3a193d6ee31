"""BatchNorm's statistics measured on the patches that are predicted, and only there."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST
from PIL import Image

from pcam_lightning import PCamClassifier, PCamDataModule
from pcam_lightning.cli.main import main
from pcam_lightning.training.adapt_batchnorm import AdaptBatchNorm
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.training.loaded_run import load_pretrained
from pcam_lightning.utils.errors import UserError

CALLBACK = "--trainer.callbacks+=pcam_lightning.training.adapt_batchnorm.AdaptBatchNorm"
CPU = "--trainer.accelerator=cpu"


def norms(model: PCamClassifier) -> list[Any]:
    return [norm for norm in model.net.modules() if isinstance(norm, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_statistics_are_those_of_the_patches(share: float, drawn: Path) -> None:
    data = PCamDataModule(drawn)
    model = PCamClassifier("resnet18", "none", crop=32)
    before = norms(model)[0].running_mean.clone() + 0.5
    norms(model)[0].running_mean.copy_(before)
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[AdaptBatchNorm(share)], logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    predicted: Any = trainer.predict(model, data)
    image = model.preprocess(torch.from_numpy(np.asarray(data.test_store.images)))
    first = model.net.get_submodule("conv1")(image).transpose(0, 1).flatten(1)
    mean, var = (value.detach() for value in (first.mean(dim=1), first.var(dim=1)))
    assert torch.allclose(norms(model)[0].running_mean, share * mean + (1 - share) * before, atol=1e-5)
    assert torch.allclose(norms(model)[0].running_var, share * var + (1 - share), atol=1e-5)
    with torch.no_grad():  # what was predicted is what the network gives with them
        logit = model.eval().predict_logits(torch.from_numpy(np.asarray(data.test_store.images)))
    ids = data.ids[predicted[0]["row"]]
    assert ids.tolist() == list(data.test_table["id"])
    rows = data.test_store.rows(data.test_table["id"])
    assert torch.allclose(predicted[0]["logit"], logit[rows], atol=1e-4)


def test_of_many_patches_some_of_the_whole_part_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcam_lightning.training.adapt_batchnorm.PATCHES", 20)
    for index in range(40):
        Image.new("RGB", (96, 96), (index // 20 * 255,) * 3).save(tmp_path / f"{index:02}.png")  # the latter are white
    model = PCamClassifier("resnet18", "none", crop=32)
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[AdaptBatchNorm()], logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.predict(model, PCamDataModule(tmp_path))
    white = model.net.get_submodule("conv1")(torch.ones(1, 3, 32, 32)).mean(dim=(0, 2, 3))
    share = norms(model)[0].running_mean / white
    assert torch.allclose(share, share[0], atol=1e-3)
    assert 0.25 < share[0] < 0.75


def test_predictions_change_and_the_run_does_not(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = run_copy / "checkpoints/best.ckpt"
    content = checkpoint.read_bytes()
    for name, more in (("plain", []), ("adapted", [CALLBACK])):
        assert main(["predict", "--ckpt_path", str(checkpoint), CPU, "--output", name, *more]) == 0
    plain, adapted = (pd.read_csv(f"{name}/predictions.csv")["logit"] for name in ("plain", "adapted"))
    assert not np.allclose(plain, adapted, atol=1e-3)
    assert "statistics are those of these patches (share 1)" in capsys.readouterr().err
    assert checkpoint.read_bytes() == content
    assert main(["test", "--ckpt_path", str(checkpoint), CPU, CALLBACK]) == 0
    assert '"batchnorm": "adapted"' in (run_copy / "test.json").read_text()
    assert main(["evaluate", str(run_copy), "--bootstrap_samples=100"]) == 0
    report = json.loads((run_copy / "report.json").read_text())
    (run_copy / "report.json").write_text(json.dumps(report | {"temperature": 2.0}))
    capsys.readouterr()
    assert main(["predict", "--ckpt_path", str(checkpoint), CPU, CALLBACK, "--calibrate"]) == 2
    assert (
        "its temperature is of the network as it was trained, and AdaptBatchNorm changes it" in capsys.readouterr().err
    )


def test_all_networks_of_an_ensemble_are_adapted(run_copy: Path) -> None:
    options = ["--ckpt_path", str(run_copy / "checkpoints/best.ckpt"), CPU, CALLBACK]
    last = str(run_copy / "checkpoints/last.ckpt")
    each = []
    for name, more in (
        ("a", options),
        ("b", ["--ckpt_path", last, CPU, CALLBACK]),
        ("ab", [*options, "--ensemble", last]),
    ):
        assert main(["predict", *more, "--output", name]) == 0
        each.append(pd.read_csv(f"{name}/predictions.csv")["logit"])
    assert list(each[2]) == pytest.approx(list((each[0] + each[1]) / 2), abs=1e-4)


def test_training_is_left_alone(drawn: Path) -> None:
    fit = ["fit", "-c", str(CONFIGS / "debug.yaml"), "--data.root", str(drawn), *FAST]
    assert main(fit) == 0
    assert main([*fit, CALLBACK]) == 0
    paths = [Path(f"lightning_logs/debug/version_{number}/checkpoints/last.ckpt") for number in (0, 1)]
    first, second = (read_checkpoint(path)["state_dict"] for path in paths)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_network_without_batchnorm_is_named(drawn: Path) -> None:
    model = PCamClassifier("timm/vit_tiny_patch16_224", "none")
    trainer = L.Trainer(accelerator="cpu", callbacks=[AdaptBatchNorm()], logger=False, enable_progress_bar=False)
    with pytest.raises(UserError, match="vit_tiny_patch16_224 has no BatchNorm; leave the callback out"):
        trainer.predict(model, PCamDataModule(drawn))


@pytest.mark.parametrize("share", [0, 1.5, -1])
def test_a_share_is_one(share: float) -> None:
    with pytest.raises(UserError, match="should be above 0 and at most 1"):
        AdaptBatchNorm(share)


def test_a_network_of_the_package_adapts(drawn: Path) -> None:
    plain = load_pretrained("pcam-small")
    model = load_pretrained("pcam-small")
    trainer = L.Trainer(accelerator="cpu", callbacks=[AdaptBatchNorm(0.5)], logger=False, enable_progress_bar=False)
    trainer.predict(model, PCamDataModule(drawn))
    assert not torch.equal(norms(plain)[0].running_mean, norms(model)[0].running_mean)
