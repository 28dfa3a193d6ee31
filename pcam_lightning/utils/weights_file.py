"""Weights files (.safetensors) with the training record of a checkpoint."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

from pcam_lightning.utils.atomic_io import atomic_write

_KEYS = (
    "pcam", "hyper_parameters", "init_weights", "positive_fraction", "epoch", "global_step", "pytorch-lightning_version"
)  # fmt: skip
_RECORD = "pcam_lightning.checkpoint"  # key in the metadata
_TRAINED = "trained."  # prefix of tensors that list the training patches
_FLOAT32 = ".running_var"  # variances, which half precision may round to 0 or infinity


def write_weights(path: Path, checkpoint: dict[str, Any], *, half: bool = False) -> None:
    """Write the network of a checkpoint as a .safetensors file.

    Args:
        path: file to write.
        checkpoint: checkpoint from `read_checkpoint`; states of optimizers and callbacks are omitted.
        half: store weights in half precision, which changes the logits.
    """
    tensors = {
        name: value.half() if half and value.dtype == torch.float32 and not name.endswith(_FLOAT32) else value
        for name, value in checkpoint["state_dict"].items()
    }
    trained = checkpoint["trained"]
    tensors |= {_TRAINED + name: trained[name] for name in ("ids", "pixels")}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    record = {name: checkpoint[name] for name in _KEYS}
    record |= {"known": bool(trained["known"]), "origins": list(trained["origins"])}
    atomic_write(path, safetensors.torch.save(tensors, {_RECORD: json.dumps(record)}))


def read_weights(path: Path) -> dict[str, Any]:
    """Read a .safetensors file.

    Returns:
        A checkpoint with float32 weights if `write_weights` wrote the file, otherwise tensors by name.
    """
    with safe_open(path, framework="pt") as file:
        record = (file.metadata() or {}).get(_RECORD)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if record is None:
        return tensors
    checkpoint: dict[str, Any] = json.loads(record)
    trained: dict[str, Any] = {
        name.removeprefix(_TRAINED): tensors.pop(name) for name in list(tensors) if name.startswith(_TRAINED)
    }
    state = {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}
    trained |= {name: checkpoint.pop(name) for name in ("known", "origins")}
    return {**checkpoint, "state_dict": state, "trained": trained}
