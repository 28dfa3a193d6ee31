"""config.json, for WSInfer and timm, and model.safetensors, for timm."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import timm
import torch

from pcam_lightning.data.image_io import MPP
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.heads import head_of
from pcam_lightning.models.timm_networks import TIMM
from pcam_lightning.slides.patch_grid import PATCH
from pcam_lightning.utils.errors import rank_zero_info

CLASSES = ["normal", "tumor"]


class TimmNetwork(NamedTuple):
    """Arguments for timm to build a network: architecture and options."""

    architecture: str
    options: dict[str, Any]


def find_timm_network(networks: Sequence[PCamClassifier]) -> TimmNetwork | None:
    """Return timm's arguments for a network with the same parameters; None, with a message, if timm has none."""
    network = networks[0]
    preprocess = network.preprocess
    found = _same_in_timm(network)
    for wrong, reason in (
        (len(networks) > 1, "timm has no ensembles"),
        (preprocess.stain is not None, "timm's transform does not normalize stains"),
        (preprocess.side != preprocess.crop != PATCH, "timm's transform scales before it crops"),
        (found is None, f"timm has no {network.hparams['backbone']} with these parameters"),
    ):
        if wrong:
            rank_zero_info(f"model.safetensors: not written, because {reason}.")
            return None
    return found


def _same_in_timm(network: PCamClassifier) -> TimmNetwork | None:
    name = str(network.hparams["backbone"])
    if name.startswith(TIMM):
        config: Any = network.net.pretrained_cfg
        name = str(config["architecture"])
    elif timm.is_model(f"tf_{name}"):
        name = f"tf_{name}"
    elif not timm.is_model(name):
        return None
    head = f"{head_of(network.net)}."
    own = {key: value.shape for key, value in network.net.state_dict().items() if not key.startswith(head)}
    with_side: dict[str, Any] = {"img_size": network.preprocess.side}
    for options in (with_side, {}):
        try:
            with torch.device("meta"):
                built: Any = timm.create_model(name, num_classes=2, **options)
        except TypeError:  # most networks accept any image size and lack this option
            continue
        shapes = {key: value.shape for key, value in built.state_dict().items() if not key.startswith(head)}
        if shapes == own and built.get_classifier().in_features == network.net.get_submodule(head[:-1]).in_features:
            return TimmNetwork(name, options)
    return None


def write_config(path: Path, name: str, network: PCamClassifier, found: TimmNetwork | None) -> None:
    """Write config.json with WSInfer's keys, and with timm's keys if timm can build the network.

    Args:
        path: path of the file.
        name: name of the network, used if timm has no such network.
        network: network with the preprocessing.
        found: result of `find_timm_network`.
    """
    config: dict[str, Any] = {
        "spec_version": "1.0",
        "architecture": name if found is None else found.architecture,
        "num_classes": len(CLASSES),
        "class_names": CLASSES,
        "patch_size_pixels": PATCH,
        "spacing_um_px": MPP,
        # torchscript_model.pt contains all other preprocessing.
        "transform": [{"name": "Resize", "arguments": {"size": PATCH}}, {"name": "ToTensor"}],
    }
    if found is not None:
        head, preprocess = head_of(network.net), network.preprocess
        mean, std = [0.0] * 3, [1.0] * 3
        if preprocess.normalize != "none":
            mean, std = preprocess.mean.flatten().tolist(), preprocess.std.flatten().tolist()
        config |= {
            "num_features": network.net.get_submodule(head).in_features,
            "label_names": CLASSES,
            "model_args": found.options,
            "pretrained_cfg": {
                "architecture": found.architecture,
                "num_classes": len(CLASSES),
                "input_size": [3, preprocess.side, preprocess.side],
                "interpolation": "bilinear",
                "crop_pct": preprocess.crop / PATCH,
                "mean": mean,
                "std": std,
                "classifier": head,
            },
        }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_timm_weights(path: Path, network: PCamClassifier) -> None:
    """Write model.safetensors: the network's tensors, with one row per class in the last layer, 0 for normal."""
    head = head_of(network.net)
    state = {name: value.contiguous() for name, value in network.net.state_dict().items()}
    for name in (f"{head}.weight", f"{head}.bias"):
        state[name] = torch.cat([torch.zeros_like(state[name]), state[name]])
    path.write_bytes(safetensors.torch.save(state, {"format": "pt"}))
