"""torchscript_model.pt, for WSInfer and QuPath."""

import io
import warnings
import zipfile
from pathlib import Path

import torch
from torch.jit._trace import TracerWarning

from pcam_lightning.export.export_module import ExportNetwork, TwoLogits
from pcam_lightning.utils.errors import UserError

_DEPRECATED = (FutureWarning, DeprecationWarning)  # torch deprecates TorchScript, but WSInfer and QuPath require it


def write_torchscript(path: Path, network: ExportNetwork) -> None:
    """Write a network as TorchScript: float (N, 3, 96, 96) in [0, 1] -> logits of normal and tumor, (N, 2).

    The module is traced but not frozen, because WSInfer and QuPath access its parameters. They also apply softmax.

    Raises:
        UserError: the network cannot be traced.
    """
    example = torch.linspace(0, 1, 2 * 3 * 96 * 96).view(2, 3, 96, 96)
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            for category in (TracerWarning, *_DEPRECATED):  # constant shapes are intended
                warnings.simplefilter("ignore", category)
            traced = torch.jit.trace(TwoLogits(network).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, buffer)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path.name}: the network cannot be traced ({reason}).") from None
    path.write_bytes(_without_debug_files(buffer))


def _without_debug_files(content: io.BytesIO) -> bytes:
    """Remove the debug files from a TorchScript archive, because they contain local paths."""
    tidy = io.BytesIO()
    with zipfile.ZipFile(content) as archive, zipfile.ZipFile(tidy, "w", zipfile.ZIP_STORED) as written:
        for name in archive.namelist():
            if not name.endswith(".debug_pkl"):
                written.writestr(name, archive.read(name))
    return tidy.getvalue()


def read_torchscript(path: Path) -> torch.nn.Module:
    """Read a file written by `write_torchscript`."""
    with warnings.catch_warnings():
        for category in _DEPRECATED:
            warnings.simplefilter("ignore", category)
        module: torch.nn.Module = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return module
