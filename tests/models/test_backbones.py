"""Pretrained weights: what fits is loaded, what does not is named, what is missing names the fixes."""

import re
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import timm
import torch
from torch import nn
from torchvision import models

from pcam_lightning.models.backbones import BACKBONES, build_backbone, freeze, head_of, layers
from pcam_lightning.models.pretrained import WeightsUnavailable, load_weights
from pcam_lightning.utils.errors import UserError

IMAGENET_FILE = models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]


@pytest.fixture
def imagenet_like() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return dict(models.resnet18(weights=None).state_dict())  # a head of 1,000 classes, as ImageNet's


def _loaded(network: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = network.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith("fc."))


ALL = [*BACKBONES, "timm/vit_small_patch16_224", "timm/convnext_atto", "timm/vit_tiny_patch16_224"]


@pytest.mark.parametrize("name", ALL)
def test_one_logit_in_float32_and_a_body_that_freezes_without_the_head(name: str) -> None:
    network = build_backbone(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logit = network.eval()(torch.zeros(2, 3, 96, 96))
    assert logit.shape == (2, 1)
    assert logit.dtype == torch.float32
    freeze(network, True)
    learns = {key for key, value in network.named_parameters() if value.requires_grad}
    assert learns == {f"{head_of(network)}.weight", f"{head_of(network)}.bias"}
    assert not any(module.training for module in network.modules() if isinstance(module, nn.BatchNorm2d | nn.Dropout))
    freeze(network, False)
    assert all(value.requires_grad for value in network.parameters())
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("name", ALL)
def test_layers_are_all_parameters_once_with_the_head_last(name: str) -> None:
    network = build_backbone(name)
    found = [parameter for layer in layers(network) for parameter in layer]
    assert len(found) == len(set(found)) == len(list(network.parameters()))
    head = set(network.get_submodule(head_of(network)).parameters())
    assert head <= set(layers(network)[-1])
    assert len(layers(network)) > 6
    first = dict(network.named_parameters())
    place = next(key for key in first if first[key].dim() == 4)
    assert any(first[place] is parameter for layer in layers(network)[:2] for parameter in layer)


def test_imagenet_from_the_cache_folder(
    imagenet_like: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(imagenet_like, cache / IMAGENET_FILE)
    network = build_backbone("resnet18")
    load_weights(network, "resnet18", "imagenet")
    assert _loaded(network, imagenet_like)
    assert "not used: fc.weight, fc.bias" in capsys.readouterr().err


def test_imagenet_that_cannot_be_fetched_names_three_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(WeightsUnavailable, match=r"`model.weights` PATH .* `model.weights` none .*TORCH_HOME"):
        load_weights(build_backbone("resnet18"), "resnet18", "imagenet")


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "backbone.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model_state_dict"])
def test_path_with_prefixes_and_nesting(
    prefix: str, nested: str | None, imagenet_like: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state: object = {prefix + key: value for key, value in imagenet_like.items()}
    torch.save({nested: state, "epoch": 3} if nested else state, tmp_path / "weights.pth")
    network = build_backbone("resnet18")
    load_weights(network, "resnet18", str(tmp_path / "weights.pth"))
    assert _loaded(network, imagenet_like)


def test_a_head_of_one_logit_is_loaded_too(trained: Path) -> None:
    network = build_backbone("p4m_resnet16", 32)
    load_weights(network, "p4m_resnet16", str(trained / "checkpoints" / "best.ckpt"), 32)
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(network.state_dict()["fc.weight"], state["net.fc.weight"])


def test_none_leaves_the_network_alone() -> None:
    network = build_backbone("resnet18")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_weights(network, "resnet18", "none")
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


class _Runs:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_our_own_network_has_no_imagenet_weights() -> None:
    with pytest.raises(UserError, match="there are none of p4m_resnet16"):
        load_weights(build_backbone("p4m_resnet16"), "p4m_resnet16", "imagenet")


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
        "code.pth": "not a file of weights alone, .*holds more than tensors .*to load it would run getattr",
        "junk.pth": "not a file of weights",
        "missing.pth": "no such file; imagenet, none, or the path",
    }.items():
        with pytest.raises(UserError, match=f"`model.weights` .*{re.escape(name)}: {expected}"):
            load_weights(network, "resnet18", str(tmp_path / name))
    assert not (tmp_path / "touched").exists()
    assert torch.equal(before, network.state_dict()["conv1.weight"])


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"`model.backbone` resnet19: unknown; one of resnet18"):
        build_backbone("resnet19")
    with pytest.raises(UserError, match="timm has no such network"):
        build_backbone("timm/resnet19")


def test_safetensors(imagenet_like: dict[str, torch.Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(imagenet_like, tmp_path / "model.safetensors")
    network = build_backbone("resnet18")
    load_weights(network, "resnet18", str(tmp_path / "model.safetensors"))
    assert _loaded(network, imagenet_like)


def test_tiatoolbox_numbers_are_named(imagenet_like: dict[str, torch.Tensor], tmp_path: Path) -> None:
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    state = {
        f"feat_extract.{numbers[module]}.{name}": value
        for key, value in imagenet_like.items()
        for module, _, name in [key.partition(".")]
        if module in numbers
    }
    torch.save(state, tmp_path / "kather.pth")
    network = build_backbone("resnet18")
    load_weights(network, "resnet18", str(tmp_path / "kather.pth"))
    assert _loaded(network, imagenet_like)


def test_a_transformers_places_are_fitted_to_the_smaller_patch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "timm/vit_tiny_patch16_224"
    torch.manual_seed(1)
    larger = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()  # 14 x 14 places and a token
    rows = torch.arange(14.0).repeat_interleave(14)
    larger["pos_embed"][0, 1:] = rows[:, None]
    torch.save({"model": larger}, tmp_path / "vit.pth")
    network = build_backbone(name)
    load_weights(network, name, str(tmp_path / "vit.pth"))
    own = network.state_dict()
    assert own["pos_embed"].shape == (1, 37, 192)
    assert torch.equal(own["pos_embed"][:, 0], larger["pos_embed"][:, 0])
    fitted = own["pos_embed"][0, 1:, 0].view(6, 6)  # the rows' numbers still, of fewer rows
    assert torch.allclose(fitted, (torch.arange(6) + 0.5)[:, None] * 14 / 6 - 0.5, atol=0.35)
    assert torch.equal(own["blocks.3.attn.qkv.weight"], larger["blocks.3.attn.qkv.weight"])
    assert "not used" not in capsys.readouterr().err


def test_without_timm_its_names_tell_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm; pip install 'pcam_lightning\[timm\]'"):
        build_backbone("timm/resnet18")


def test_histology_weights_have_their_sources_names(imagenet_like: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Ciga's are a Lightning checkpoint of a network in a network; Lunit's and kaiko's are timm's, without a head."""
    body = {key: value for key, value in imagenet_like.items() if not key.startswith("fc.")}
    ciga = {f"model.resnet.{key}": value for key, value in body.items()}
    ciga |= {"model.resnet.fc.1.weight": torch.zeros(128, 512), "model.resnet.fc.3.bias": torch.zeros(128)}
    torch.save({"state_dict": ciga, "epoch": 999}, tmp_path / "ciga.ckpt")
    network = build_backbone("resnet18")
    load_weights(network, "resnet18", str(tmp_path / "ciga.ckpt"))
    assert _loaded(network, body)
    name = "timm/vit_small_patch16_224"
    large = {key: torch.randn_like(value) for key, value in build_backbone(name, 224).state_dict().items()}
    large = {key: value for key, value in large.items() if not key.startswith("head.")}
    safetensors.torch.save_file(large, tmp_path / "vit.safetensors")
    torch.save(large, tmp_path / "vit.torch")
    for file in ("vit.safetensors", "vit.torch"):
        vit = build_backbone(name, 96)
        load_weights(vit, name, str(tmp_path / file), 96)
        own = vit.state_dict()
        assert all(torch.equal(own[key], value) for key, value in large.items() if key != "pos_embed")
        assert own["pos_embed"].shape == (1, 37, 384)
