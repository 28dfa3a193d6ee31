"""The weights that training starts from: a file, torchvision's or timm's."""

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn
from torchvision import models

from pcam_lightning.models.backbones import BACKBONES, TIMM, build_timm, head_of
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.safe_load import safe_load

_PREFIX = re.compile(r"^(?:(?:_orig_mod|module|model|backbone|net|network|encoder|resnet)\.)+")
# TIAToolbox numbers a ResNet's children.
_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_HINT = (
    "use `model.weights` PATH (a file of weights), `model.weights` none (random ones), or the file put into the "
    "cache folder that TORCH_HOME names, HF_HOME for timm's"
)


class WeightsUnavailable(UserError):
    """ImageNet weights that are not in the cache and cannot be fetched."""


def load_weights(network: nn.Module, name: str, weights: str, side: int = 96) -> None:
    """Load the weights that training starts from; the head stays random where the weights have no fitting one.

    Args:
        network: from `build_backbone`.
        name: of the network.
        weights: `imagenet` (torchvision's IMAGENET1K_V1, or timm's own choice, fetched once into its cache folder),
            `none`, or the path of a state dict (a pickle of tensors, or .safetensors) with torchvision's or timm's
            names, bare or inside a checkpoint; prefixes such as `module.`, `model.` and `backbone.` are taken off, and
            TIAToolbox's numbers are named.
        side: of the images, in pixels.

    Raises:
        WeightsUnavailable: ImageNet weights cannot be fetched.
        UserError: the file is missing, is not a state dict, or lacks more than the head; what does not fit is named.
    """
    if weights == "none":
        return
    if weights == "imagenet":
        state, origin = _imagenet(name, side), "ImageNet weights"
    else:
        state, origin = _read_state(Path(weights).expanduser()), weights
    own, head = network.state_dict(), f"{head_of(network)}."
    embedding = state.get("pos_embed")
    if embedding is not None and "pos_embed" in own and embedding.shape != own["pos_embed"].shape:
        state = {**state, "pos_embed": _resample(embedding, network)}
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    missing = [key for key in own if key not in fitting and not key.startswith(head)]
    # Some older files count no batches; nothing is lost with the counter.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    left_over = [key for key in state if key not in fitting]
    if missing:
        raise UserError(
            f"`model.weights` {weights}: not weights of this network: {_some(missing)} missing or of another shape"
            + (f"; not used: {_some(left_over)}" if left_over else "")
            + f". Names should be those of {name}, such as {next(iter(own))}."
        )
    network.load_state_dict(fitting, strict=False)
    if left_over:
        rank_zero_info(f"{origin}: not used: {_some(left_over)}.")


def _imagenet(name: str, side: int) -> Mapping[str, torch.Tensor]:
    if name.startswith(TIMM):
        try:
            with _timeout(20):
                state: Mapping[str, torch.Tensor] = build_timm(name, side, pretrained=True)[0].state_dict()
        except Exception as error:  # of whatever its hub's libraries raise
            raise WeightsUnavailable(f"timm cannot fetch weights of {name} ({error}); {_HINT}.") from None
        return state
    if not BACKBONES[name].imagenet:
        raise UserError(f"`model.weights` imagenet: there are none of {name}; none, or the path of its own weights.")
    url = models.get_model_weights(name).IMAGENET1K_V1.url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    try:
        if cached.is_file():
            return _read_state(cached)
        with _timeout(20):
            return torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsUnavailable(
            f"ImageNet weights are not in {cached} and cannot be fetched ({error}); {_HINT}."
        ) from None


def _resample(embedding: torch.Tensor, network: Any) -> torch.Tensor:
    """Fit the position embedding of a vision transformer's weights, (1, tokens, F), to the side of its images."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid, prefix = network.patch_embed.grid_size, network.num_prefix_tokens
    resampled: torch.Tensor = resample_abs_pos_embed(embedding, list(grid), num_prefix_tokens=prefix)
    return resampled


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Bound each wait for the network: behind some firewalls nothing answers, and torch's download waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict, nested in a checkpoint or not, prefixes taken off; as tensors and plain values only."""
    if not path.is_file():
        raise UserError(f"`model.weights` {path}: no such file; imagenet, none, or the path of a state dict.")
    try:
        state = safe_load(path)
    except ValueError as error:
        raise UserError(
            f"`model.weights` {path}: not a file of weights alone, such as a state dict or .safetensors ({error})."
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
        raise UserError(f"`model.weights` {path}: holds no tensors by name; a state dict is needed.")
    return tensors


def _plain(key: str) -> str:
    key = _PREFIX.sub("", key)
    group, _, rest = key.partition(".")
    number, _, name = rest.partition(".")
    return f"{_NUMBERED[number]}.{name}" if group == "feat_extract" and number in _NUMBERED else key


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
