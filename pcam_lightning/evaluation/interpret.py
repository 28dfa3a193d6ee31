"""Interpretation of networks: features before the head, t-SNE, Grad-CAM."""

from typing import Any

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import nn
from torch.nn import functional

from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.heads import find_head
from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.system import cpu_is_faster_in_bf16

_BATCH = 64
_CELLS = 6  # minimum side of a feature map to resolve the center 32 x 32


def features(model: PCamClassifier, image: torch.Tensor) -> np.ndarray:
    """Return the input features of the head for each patch.

    Args:
        model: network on the CPU; set to evaluation mode.
        image: patches, uint8 (N, 96, 96, 3).

    Returns:
        Features, float32 (N, F).
    """
    model.eval()
    found: list[torch.Tensor] = []
    hook = find_head(model.net).register_forward_pre_hook(lambda _, given: found.append(given[0].float()))
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=cpu_is_faster_in_bf16()):
            for batch in torch.split(image, _BATCH):
                model(model.preprocess(batch))
    finally:
        hook.remove()
    return torch.cat(found).numpy()


def tsne(features: np.ndarray) -> np.ndarray:
    """Embed features in two dimensions by t-SNE (van der Maaten and Hinton 2008).

    Args:
        features: features, float32 (N, F), with N >= 8.

    Returns:
        Embedding, float32 (N, 2); deterministic.
    """
    tsne = TSNE(perplexity=min(30, (len(features) - 1) / 3), init="pca", random_state=0, n_jobs=-1)
    embedded: np.ndarray = tsne.fit_transform(features)
    return embedded


def grad_cam(model: PCamClassifier, image: torch.Tensor, layer: str) -> np.ndarray:
    """Return Grad-CAM heat maps of the tumor logit (Selvaraju et al. 2017).

    Args:
        model: network on the CPU; set to evaluation mode.
        image: patches, uint8 (N, 96, 96, 3).
        layer: module name of the layer to use, such as the result of `cam_layer`.

    Returns:
        Heat maps, float32 (N, 96, 96), scaled to a maximum of 1 per patch; all 0 if no position has a positive
        contribution.

    Raises:
        UserError: the layer does not exist, or its output is not a feature map.
    """
    model.eval()
    try:
        module = model.net.get_submodule(layer)
    except AttributeError:
        names = ", ".join(name for name, _ in model.net.named_children())
        raise UserError(f"`layer` {layer}: no such layer; the top-level layers are {names}.") from None
    output: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _, given, made: output.append(made))
    heats = []
    try:
        for batch in torch.split(image, _BATCH):
            output.clear()
            with torch.enable_grad():
                logit = model(model.preprocess(batch))
                (slope,) = torch.autograd.grad(logit.sum(), output[0])
            map_, slope = (_as_map(model.net, one.detach(), layer) for one in (output[0], slope))
            heat = (slope.mean(dim=(2, 3), keepdim=True) * map_).sum(dim=1, keepdim=True).relu()
            side = model.preprocess.crop
            heat = functional.interpolate(heat, size=(side, side), mode="bilinear")
            heat = functional.pad(heat, ((96 - side) // 2,) * 4)[:, 0]
            heats.append(heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12))
    finally:
        hook.remove()
    return torch.cat(heats).numpy()


def cam_layer(model: PCamClassifier, image: torch.Tensor) -> str:
    """Return the name of the layer for Grad-CAM: the last one with a feature map of at least 6 x 6.

    For a vision transformer, this is the norm before the last attention, because only the class token is used after it.

    Raises:
        UserError: no layer has such a feature map.
    """
    if _tokens(model.net) is not None:
        blocks: Any = model.net.blocks
        return f"blocks.{len(blocks) - 1}.norm1"
    found: list[str] = []

    def note(name: str, made: Any) -> None:
        if isinstance(made, torch.Tensor) and made.ndim == 4 and made.shape[2] == made.shape[3] >= _CELLS:
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _, given, made, name=name: note(name, made))
        for name, module in model.net.named_modules()
        if name
    ]
    try:
        with torch.inference_mode():
            model(model.preprocess(image))
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        name = model.hparams["backbone"]
        raise UserError(f"no layer of {name} has a feature map of at least {_CELLS} x {_CELLS}; set `layer`.")
    return found[-1]


def _tokens(net: nn.Module) -> tuple[int, int, int] | None:
    """Return the rows and columns of vision transformer tokens, and the number of prefix tokens."""
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    return (*grid, getattr(net, "num_prefix_tokens", 0)) if grid is not None and hasattr(net, "blocks") else None


def _as_map(net: nn.Module, output: torch.Tensor, layer: str) -> torch.Tensor:
    """Reshape a layer output to (B, C, rows, columns)."""
    if output.ndim == 3 and (tokens := _tokens(net)) is not None:
        rows, columns, before = tokens
        return torch.unflatten(output[:, before:].transpose(1, 2), 2, (rows, columns))
    if output.ndim != 4:
        raise UserError(f"`layer` {layer}: the output of shape {tuple(output.shape)} is not a feature map.")
    return output


def center_heat_labels(heat: np.ndarray) -> list[str]:
    """Return `center_heat_fraction` of each patch as text for a title."""
    return ["no heat" if np.isnan(share) else f"{share:.0%} inside" for share in center_heat_fraction(heat)]


def center_heat_fraction(heat: np.ndarray) -> np.ndarray:
    """Return the share of heat (N, 96, 96) in the center 32 x 32, (N,); NaN without heat.

    Uniform heat gives 1/9.
    """
    total = heat.sum(axis=(1, 2), dtype=np.float64)
    # Rounding could make the sum of the center exceed the total.
    inside = np.minimum(heat[:, 32:64, 32:64].sum(axis=(1, 2), dtype=np.float64), total)
    share: np.ndarray = np.divide(inside, total, out=np.full_like(total, np.nan), where=total > 0)
    return share
