"""The network by its name, with one logit, and the weights it starts from."""

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

from pcam_lightning.equivariant import EquivariantResNet
from pcam_lightning.messages import UserError, say
from pcam_lightning.tensors import read_tensors

P4M = "p4m_resnet16"  # ours
P4M_SIDE = 16  # what its four halvings divide the side of an image by
# Torchvision's and it, by the name of the layer that gives way to the head.
NAMES = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), "fc"),
    "convnext_tiny": "classifier.2",
    **dict.fromkeys(("efficientnet_b0", "efficientnet_b3"), "classifier.1"),
    P4M: "fc",
}
_TIMM = "timm/"
# Mean and deviation of red, green and blue that weights were trained with.
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "lunit": ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
}
_PREFIX = re.compile(r"^(?:(?:_orig_mod|module|model|backbone|net|network|encoder|resnet)\.)+")
# TIAToolbox numbers a ResNet's children.
_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_WAYS_ON = (
    "ways on: --model.weights PATH (a file of weights), --model.weights none (random ones), or the file put into the "
    "cache folder that TORCH_HOME names, HF_HOME for timm's"
)


class WeightsUnavailable(UserError):
    """ImageNet weights that are not in the cache and cannot be fetched."""


class Head(nn.Linear):
    """A linear layer in float32 whatever autocast says: logits of half precision tie, and ties cost AUROC."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (B, F) of any precision to float32 logits (B, 1)."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


def build_backbone(name: str, side: int = 96) -> nn.Module:
    """Build a network from random weights.

    Args:
        name: one of `NAMES`, or timm/ and one of timm's names, for which timm has to be installed.
        side: of the images, in pixels; networks of convolutions take any.

    Returns:
        Module that takes float (B, 3, side, side) and returns float32 logits (B, 1).

    Raises:
        UserError: no such name, or no timm.
    """
    network: Any
    if name.startswith(_TIMM):
        network, place = _build_timm(name, side)
    elif name == P4M:
        # Each halving of an odd side would drop one border of two, another one of a turned patch.
        if side % P4M_SIDE:
            nearest = min(range(2 * P4M_SIDE, 513, P4M_SIDE), key=lambda other: abs(other - side))
            raise UserError(
                f"--model.backbone {P4M}: gives turned and mirrored patches the same logit for sides that "
                f"{P4M_SIDE} divides, and {side} pixels is none; the nearest is {nearest} (--model.crop, or "
                "--model.size where that is set)."
            )
        network, place = EquivariantResNet(2, (4, 8, 16, 32), (1, 2, 2, 2)), NAMES[name]
    elif name in NAMES:
        network, place = models.get_model(name, weights=None), NAMES[name]
    else:
        raise UserError(f"--model.backbone {name}: unknown; one of {', '.join(NAMES)}, or timm/ and a name of timm's.")
    network.set_submodule(place, Head(network.get_submodule(place).in_features, 1))
    whole: nn.Module = network
    return whole


def _build_timm(name: str, side: int, **options: Any) -> tuple[Any, str]:
    """Return one of timm's networks and the name of its last layer."""
    try:
        import timm
    except ImportError:
        raise UserError(f"--model.backbone {name}: needs timm; pip install 'pcam_lightning[timm]'.") from None
    plain = name.removeprefix(_TIMM)
    try:
        if not timm.is_model(plain):
            raise UserError(f"--model.backbone {name}: timm has no such network; timm.list_models() has their names.")
        network: Any
        try:
            network = timm.create_model(plain, num_classes=1, img_size=side, **options)
        except TypeError:  # most networks take images of any size, and no such option
            network = timm.create_model(plain, num_classes=1, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        if options:
            raise
        raise UserError(f"--model.backbone {name}: cannot be built for {side} x {side} pixels ({error}).") from None
    place = network.default_cfg["classifier"]
    if not isinstance(place, str) or not isinstance(network.get_submodule(place), nn.Linear):
        raise UserError(f"--model.backbone {name}: does not end in one linear layer, which the logit needs.")
    return network, place


def head_of(network: nn.Module) -> str:
    """Return the name of a network's head."""
    return next(str(name) for name, module in network.named_modules() if isinstance(module, Head))


def freeze(network: nn.Module, frozen: bool) -> None:
    """Let the head alone learn, or all of the network.

    What is frozen is in evaluation mode: BatchNorm leaves its running statistics alone.
    """
    head = network.get_submodule(head_of(network))
    network.requires_grad_(not frozen)
    network.train(not frozen)
    head.requires_grad_(True)
    head.train()


def layers(network: nn.Module) -> list[list[nn.Parameter]]:
    """Return the network's parameters layer by layer, from the pixels to the head; what is no layer's comes first."""
    parts: list[nn.Module] = []
    for module in network.children():
        parts += module.children() if isinstance(module, nn.Sequential | nn.ModuleList) else [module]
    found = [list(part.parameters()) for part in parts]
    inside = {parameter for layer in found for parameter in layer}
    rest = [parameter for parameter in network.parameters() if parameter not in inside]
    return [layer for layer in (rest, *found) if layer]


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
    if (places := state.get("pos_embed")) is not None and "pos_embed" in own and places.shape != own["pos_embed"].shape:
        state = {**state, "pos_embed": _resample(places, network)}
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    missing = [key for key in own if key not in fitting and not key.startswith(head)]
    # Some older files count no batches; nothing is lost with the counter.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    left_over = [key for key in state if key not in fitting]
    if missing:
        raise UserError(
            f"--model.weights {weights}: not weights of this network: {_some(missing)} missing or of another shape"
            + (f"; not used: {_some(left_over)}" if left_over else "")
            + f". Names should be those of {name}, such as {next(iter(own))}."
        )
    network.load_state_dict(fitting, strict=False)
    if left_over:
        say(f"{origin}: not used: {_some(left_over)}.")


def _imagenet(name: str, side: int) -> Mapping[str, torch.Tensor]:
    if name.startswith(_TIMM):
        try:
            with _timeout(20):
                state: Mapping[str, torch.Tensor] = _build_timm(name, side, pretrained=True)[0].state_dict()
        except Exception as error:  # of whatever its hub's libraries raise
            raise WeightsUnavailable(f"timm cannot fetch weights of {name} ({error}); {_WAYS_ON}.") from None
        return state
    if name == P4M:
        raise UserError(f"--model.weights imagenet: there are none of {name}; none, or the path of its own weights.")
    url = models.get_model_weights(name).IMAGENET1K_V1.url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    try:
        if cached.is_file():
            return _read_state(cached)
        with _timeout(20):
            return torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsUnavailable(
            f"ImageNet weights are not in {cached} and cannot be fetched ({error}); {_WAYS_ON}."
        ) from None


def _resample(places: torch.Tensor, network: Any) -> torch.Tensor:
    """Fit the place embedding of a vision transformer's weights, (1, tokens, F), to the side of its images."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid, prefix = network.patch_embed.grid_size, network.num_prefix_tokens
    resampled: torch.Tensor = resample_abs_pos_embed(places, list(grid), num_prefix_tokens=prefix)
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
        raise UserError(f"--model.weights {path}: no such file; imagenet, none, or the path of a state dict.")
    try:
        state = read_tensors(path)
    except ValueError as error:
        raise UserError(
            f"--model.weights {path}: not a file of weights alone, such as a state dict or .safetensors ({error})."
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
        raise UserError(f"--model.weights {path}: holds no tensors by name; a state dict is needed.")
    return tensors


def _plain(key: str) -> str:
    key = _PREFIX.sub("", key)
    whose, _, numbered = key.partition(".")
    number, _, name = numbered.partition(".")
    return f"{_NUMBERED[number]}.{name}" if whose == "feat_extract" and number in _NUMBERED else key


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
