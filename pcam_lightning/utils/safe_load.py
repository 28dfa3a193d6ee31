"""Reading of untrusted files: tensors and plain values only, nothing that could run code."""

import re
from pathlib import Path
from typing import Any

import torch

from pcam_lightning.utils.weights_file import read_weights

_WOULD_RUN = re.compile(r"GLOBAL (\S+)")  # what a pickle calls whatever it would import


def safe_load(path: Path) -> Any:
    """Read what torch.save wrote, or a .safetensors file, to the CPU.

    Returns:
        Whatever the file holds: tensors, numbers, texts, lists and mappings; see `read_weights` of .safetensors.

    Raises:
        ValueError: it holds more than that, which is named, or is damaged, or another kind of file.
    """
    try:
        if path.suffix == ".safetensors":
            return read_weights(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the parsers raise whatever they raise over foreign bytes
        if found := _WOULD_RUN.search(str(error)):
            raise ValueError(
                f"holds more than tensors and plain values: to load it would run {found[1]}, so it is not loaded"
            ) from None
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
