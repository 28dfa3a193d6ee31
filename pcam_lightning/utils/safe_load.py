"""Reading of untrusted files, limited to tensors and plain values."""

import re
from pathlib import Path
from typing import Any

import torch

from pcam_lightning.utils.weights_file import read_weights

_WOULD_RUN = re.compile(r"GLOBAL (\S+)")  # an import in a pickle


def safe_load(path: Path) -> Any:
    """Load a file written by torch.save or a .safetensors file to the CPU.

    Returns:
        Tensors, numbers, strings, lists and mappings in the file; for .safetensors, see `read_weights`.

    Raises:
        ValueError: the file contains other objects, is damaged, or has another format.
    """
    try:
        if path.suffix == ".safetensors":
            return read_weights(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # parsers raise many types for invalid files
        if found := _WOULD_RUN.search(str(error)):
            raise ValueError(
                f"not loaded, because it contains more than tensors and plain values and would run {found[1]}"
            ) from None
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
