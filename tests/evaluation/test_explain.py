"""explain and features: what a network makes of patches."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from pcam_lightning.cli.main import main
from pcam_lightning.evaluation.interpret import (
    _as_map,
    cam_layer,
    center_heat_fraction,
    center_heat_labels,
    features,
    grad_cam,
)
from pcam_lightning.models.backbones import BACKBONES
from pcam_lightning.models.classifier import PCamClassifier


def _image(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_grad_cam_of_pooled_features_is_the_heads_weights_on_the_map() -> None:
    torch.manual_seed(0)
    model = PCamClassifier(weights="none").eval()
    net = model.net
    with torch.no_grad():
        unit = model.preprocess(_image())
        seen = net.maxpool(net.relu(net.bn1(net.conv1(unit))))  # type: ignore[operator]
        seen = net.layer4(net.layer3(net.layer2(net.layer1(seen))))  # type: ignore[operator]
        expected = (seen * net.fc.weight.view(1, -1, 1, 1)).sum(dim=1, keepdim=True).relu()  # type: ignore[operator, union-attr]
        expected = functional.interpolate(expected, size=(96, 96), mode="bilinear")[:, 0]
        expected /= expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    heat = grad_cam(model, _image(), "layer4")
    np.testing.assert_allclose(heat, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "of"),
    [
        *((name, "last") for name in (*BACKBONES, "timm/vit_tiny_patch16_224", "timm/resnet18d")),
        ("efficientnet_lite0", "stages"),
        ("timm/vit_tiny_patch16_224", "stages"),
    ],
)
def test_every_kind_of_network_is_explained_and_has_features(name: str, of: Literal["last", "stages"]) -> None:
    torch.manual_seed(0)
    model = PCamClassifier(backbone=name, weights="none", crop=64, size=96, features=of)
    head = [module for module in model.net.modules() if isinstance(module, torch.nn.Linear)][-1]
    layer = cam_layer(model, _image(1))
    heat = grad_cam(model, _image(), layer)
    assert heat.shape == (3, 96, 96)
    assert np.isfinite(heat).all()
    assert heat.min() >= 0
    assert not heat[:, :16].any()  # what the network does not see has no heat
    head.weight.data.neg_()  # what spoke for normal speaks for tumor now
    assert max(heat.max(), grad_cam(model, _image(), layer).max()) == pytest.approx(1)
    found = features(model, _image())
    assert found.shape[0] == 3
    assert np.isfinite(found).all()
    with torch.no_grad():  # the head of them is the logit
        logit = model(model.preprocess(_image()))
        of_features = functional.linear(torch.from_numpy(found), head.weight, head.bias)[:, 0]
    torch.testing.assert_close(of_features, logit, atol=0.05, rtol=0.05)  # features are of bf16 where there is any


def test_a_networks_own_gradients_are_left_alone() -> None:
    model = PCamClassifier(weights="none")
    grad_cam(model, _image(1), "layer3")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tokens_become_a_map_row_by_row() -> None:
    model = PCamClassifier(backbone="timm/vit_tiny_patch16_224", weights="none")
    tokens = torch.arange(37.0).view(1, 37, 1)  # one for the class, and 6 x 6
    torch.testing.assert_close(_as_map(model.net, tokens, "")[0, 0], torch.arange(1.0, 37.0).view(6, 6))


def test_share_of_the_heat_inside() -> None:
    heat = np.zeros((3, 96, 96), dtype=np.float32)
    heat[0] = 0.5
    heat[1, 40:50, 33:63] = 1
    np.testing.assert_allclose(center_heat_fraction(heat), [1 / 9, 1, np.nan], rtol=1e-5)
    inside = np.zeros((300, 96, 96), dtype=np.float32)
    inside[:, 32:64, 32:64] = np.random.default_rng(0).random((300, 32, 32))
    assert (center_heat_fraction(inside) <= 1).all()
    assert center_heat_labels(heat) == ["11% inside", "100% inside", "no heat"]


def test_the_most_wrong_patches_and_the_share_of_a_sample(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(run_copy), "--patches=3"]) == 0
    rows = pd.read_csv(run_copy / "explain.csv")
    assert list(rows.columns) == ["id", "label", "logit", "inside"]
    assert len(rows) == 23
    assert rows["inside"].dropna().between(0, 1).all()
    wrong = (rows["logit"] > 0) != (rows["label"] == 1)
    assert wrong.any()
    assert list(run_copy.glob("explain_false_*.png"))
    message = capsys.readouterr().err
    assert "Grad-CAM of" in message
    assert "blocks.3.0.bn1" in message
    assert "11.1% for uniform heat" in message
    blank, called = rows["inside"].isna(), rows["logit"] > 0
    assert (
        f"{blank.sum()} without heat in blocks.3.0.bn1, including {(blank & called).sum()} of {called.sum()}" in message
    )


def test_chosen_patches(run_copy: Path) -> None:
    split = pd.read_csv(run_copy / "split.csv")
    chosen = split["id"][split["split"] == "val"].iloc[:2]
    assert main(["explain", str(run_copy), "--ids", ",".join(chosen), "--layer=blocks.1", "--sample=2"]) == 0
    assert (run_copy / "explain_ids.png").is_file()
    assert not list(run_copy.glob("explain_false_*.png"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--ids=nobody"], "--ids: nobody: not in the validation split"),
        (["--layer=layer9"], "--layer layer9: no such layer"),
        (["--layer=classifier"], "--layer classifier: the output of shape (16, 1) is not a feature map"),
        (["--patches=0"], "--patches 0"),
    ],
)
def test_what_is_wrong_is_one_line(
    args: list[str], message: str, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(run_copy), *args]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: {message}"[:30])
    assert not list(run_copy.glob("explain*"))


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path)]) == 2
    assert "neither a run nor a finished cross-validation" in capsys.readouterr().err
