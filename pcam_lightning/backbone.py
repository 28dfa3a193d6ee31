"""The network: ResNet-18 with one logit, and the weights it starts from."""

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn
from torchvision import models

from pcam_lightning.messages import UserError, say

NAMES = ("resnet18",)
_HEAD = "fc."
_IMAGENET = models.ResNet18_Weights.IMAGENET1K_V1
_PREFIX = re.compile(r"^(?:(?:_orig_mod|module|model|backbone|net|network|encoder|resnet)\.)+")
_WAYS_ON = (
    "ways on: --model.weights PATH (a file of weights), --model.weights none (random ones), or the file put into the "
    "cache folder that TORCH_HOME names"
)


class WeightsUnavailable(UserError):
    """ImageNet weights that are not in the cache and cannot be fetched."""


class Head(nn.Linear):
    """A linear layer in float32 whatever autocast says: logits of half precision tie, and ties cost AUROC."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (B, F) of any precision to float32 logits (B, 1)."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


def build_backbone(name: str) -> nn.Module:
    """Build a network from random weights.

    Args:
        name: one of `NAMES`.

    Returns:
        Module that takes float (B, 3, H, W) and returns float32 logits (B, 1).

    Raises:
        UserError: no such name.
    """
    if name not in NAMES:
        raise UserError(f"--model.backbone {name}: unknown; one of {', '.join(NAMES)}.")
    network: nn.Module = models.resnet18(weights=None)
    network.fc = Head(512, 1)
    return network


def body(network: nn.Module) -> list[nn.Module]:
    """Return all of the network but its head: what stays frozen while the head finds its feet."""
    return [module for name, module in network.named_children() if f"{name}." != _HEAD]


def load_weights(network: nn.Module, weights: str) -> None:
    """Load the weights that training starts from; the head stays random where the weights have no fitting one.

    Args:
        network: from `build_backbone`.
        weights: `imagenet` (torchvision's IMAGENET1K_V1, fetched once into torch's cache folder), `none`, or the
            path of a state dict with torchvision's names, bare or inside a checkpoint; prefixes such as `module.`,
            `model.` and `backbone.` are taken off.

    Raises:
        WeightsUnavailable: ImageNet weights cannot be fetched.
        UserError: the file is missing, is not a state dict, or lacks more than the head; what does not fit is named.
    """
    if weights == "none":
        return
    if weights == "imagenet":
        state, origin = _imagenet(), "ImageNet weights"
    else:
        state, origin = _read_state(Path(weights)), weights
    own = network.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    missing = [key for key in own if key not in fitting and not key.startswith(_HEAD)]
    # Some older files count no batches; nothing is lost with the counter.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    left_over = [key for key in state if key not in fitting]
    if missing:
        raise UserError(
            f"--model.weights {weights}: not weights of this network: {_some(missing)} missing or of another shape"
            + (f"; not used: {_some(left_over)}" if left_over else "")
            + ". Names should be torchvision's (conv1.weight, layer1.0.bn1.bias, ...)."
        )
    network.load_state_dict(fitting, strict=False)
    if left_over:
        say(f"{origin}: not used: {_some(left_over)}.")


def _imagenet() -> Mapping[str, torch.Tensor]:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / _IMAGENET.url.rsplit("/", 1)[1]
    try:
        if cached.is_file():
            return _read_state(cached)
        with _timeout(20):
            return torch.hub.load_state_dict_from_url(_IMAGENET.url, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsUnavailable(
            f"ImageNet weights are not in {cached} and cannot be fetched ({error}); {_WAYS_ON}."
        ) from None


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
        raise UserError(f"--model.weights {path}: no such file; imagenet, none, or the path of a state dict.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parsers raise over foreign bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--model.weights {path}: not a file of weights ({reason}).") from None
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = (
        {_PREFIX.sub("", str(key)): value for key, value in state.items() if isinstance(value, torch.Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors:
        raise UserError(f"--model.weights {path}: holds no tensors by name; a state dict is needed.")
    return tensors


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
