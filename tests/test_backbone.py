"""Weights to start from: what fits is loaded, what does not is named, what cannot be had says the ways on."""

import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision import models

from pcam_lightning.backbone import WeightsUnavailable, body, build_backbone, load_weights
from pcam_lightning.messages import UserError

IMAGENET_FILE = models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]


@pytest.fixture
def imagenet_like() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return dict(models.resnet18(weights=None).state_dict())  # a head of 1,000 classes, as ImageNet's


def _loaded(network: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = network.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith("fc."))


def test_one_logit_and_a_body_without_the_head() -> None:
    network = build_backbone("resnet18")
    assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 1)
    inside = sum(p.numel() for module in body(network) for p in module.parameters())
    assert inside == sum(p.numel() for p in network.parameters()) - 513


def test_imagenet_from_the_cache_folder(
    imagenet_like: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(imagenet_like, cache / IMAGENET_FILE)
    network = build_backbone("resnet18")
    load_weights(network, "imagenet")
    assert _loaded(network, imagenet_like)
    assert "not used: fc.weight, fc.bias" in capsys.readouterr().err


def test_imagenet_that_cannot_be_fetched_names_three_ways_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(WeightsUnavailable, match=r"--model.weights PATH .* --model.weights none .*TORCH_HOME"):
        load_weights(build_backbone("resnet18"), "imagenet")


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "backbone.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model_state_dict"])
def test_path_with_prefixes_and_nesting(
    prefix: str, nested: str | None, imagenet_like: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state: object = {prefix + key: value for key, value in imagenet_like.items()}
    torch.save({nested: state, "epoch": 3} if nested else state, tmp_path / "weights.pth")
    network = build_backbone("resnet18")
    load_weights(network, str(tmp_path / "weights.pth"))
    assert _loaded(network, imagenet_like)


def test_a_head_of_one_logit_is_loaded_too(trained: Path) -> None:
    network = build_backbone("resnet18")
    load_weights(network, str(trained / "checkpoints" / "best.ckpt"))
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(network.state_dict()["fc.weight"], state["net.fc.weight"])


def test_none_leaves_the_network_alone() -> None:
    network = build_backbone("resnet18")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_weights(network, "none")
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


class _Runs:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_complaints_about_weights(imagenet_like: dict[str, torch.Tensor], tmp_path: Path) -> None:
    network = build_backbone("resnet18")
    before = network.state_dict()["conv1.weight"].clone()
    partial = {key: value for key, value in imagenet_like.items() if not key.startswith("layer4.1.")}
    torch.save(partial | {"other.weight": torch.zeros(1)}, tmp_path / "partial.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.save({"state_dict": _Runs(tmp_path / "touched")}, tmp_path / "code.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for name, expected in {
        "partial.pth": r"not weights of this network: layer4.1.* and \d+ more missing.*not used: .*other.weight",
        "empty.pth": "holds no tensors by name",
        "code.pth": "not a file of weights",
        "junk.pth": "not a file of weights",
        "missing.pth": "no such file; imagenet, none, or the path",
    }.items():
        with pytest.raises(UserError, match=f"--model.weights .*{re.escape(name)}: {expected}"):
            load_weights(network, str(tmp_path / name))
    assert not (tmp_path / "touched").exists()
    assert torch.equal(before, network.state_dict()["conv1.weight"])


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"--model.backbone resnet19: unknown; one of resnet18"):
        build_backbone("resnet19")
