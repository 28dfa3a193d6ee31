"""Exported files -> logits, with the preprocessing of the programs that read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torchvision import transforms

from pcam_lightning.data.image_io import MPP
from pcam_lightning.export.onnx_file import OnnxNetwork
from pcam_lightning.export.torchscript_file import read_torchscript
from pcam_lightning.training.loaded_run import load_pretrained

Logits = Callable[[np.ndarray], np.ndarray]  # uint8 (B, 96, 96, 3) -> float32 (B,)

_WSINFER_TRANSFORMS = {one.__name__: one for one in (transforms.Resize, transforms.ToTensor, transforms.Normalize)}


def onnx_logits(file: Path) -> Logits:
    """Return a function that maps patches to logits with ONNX Runtime, which takes the decoded bytes."""
    return OnnxNetwork(file).logits


def own_logits(file: Path) -> Logits:
    """Return a function that maps patches to logits like `predict` with a checkpoint."""
    network = load_pretrained(file)

    @torch.inference_mode()
    def logits(image: np.ndarray) -> np.ndarray:
        found: np.ndarray = network.predict_logits(torch.from_numpy(np.ascontiguousarray(image))).numpy()
        return found

    return logits


def wsinfer_logits(file: Path) -> Logits:
    """Return a function that maps patches to logits like WSInfer with a TorchScript file and its config.json.

    WSInfer cuts `patch_size_pixels` pixels of `spacing_um_px`, applies `transform`, and orders the classes by
    `class_names`.
    """
    config = json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
    side = round(config["patch_size_pixels"] * config["spacing_um_px"] / MPP)
    steps = [_WSINFER_TRANSFORMS[one["name"]](**one.get("arguments", {})) for one in config["transform"]]
    transform = transforms.Compose([transforms.CenterCrop(side), *steps])
    return _logits_of(read_torchscript(file), transform, config["class_names"].index("tumor"))


def timm_logits(file: Path) -> Logits:
    """Return a function that maps patches to logits with timm's network and transform, built from config.json."""
    network: Any = timm.create_model(f"local-dir:{file.parent}", pretrained=True).eval()
    data: Any = timm.data  # untyped
    transform = data.create_transform(**data.resolve_model_data_config(network))
    return _logits_of(network, transform, network.pretrained_cfg["label_names"].index("tumor"))


def _logits_of(module: torch.nn.Module, transform: Callable[[Image.Image], torch.Tensor], tumor: int) -> Logits:
    """Return a function that maps patches to logits with a network of two outputs: their difference."""

    @torch.inference_mode()
    def logits(image: np.ndarray) -> np.ndarray:
        both = module(torch.stack([transform(Image.fromarray(one)) for one in image]))
        found: np.ndarray = (both[:, tumor] - both[:, 1 - tumor]).numpy()
        return found

    return logits
