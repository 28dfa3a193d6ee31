"""Machine and terminal: precision, memory, home folder, third-party messages."""

import ctypes
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from pcam_lightning.utils.errors import UserError, rank_zero_info

CPU_INFO = Path("/proc/cpuinfo")  # Linux only


def supported_precision(accelerator: Any, precision: Any) -> Any:
    """Return the precision supported by this machine, and report a change.

    Args:
        accelerator: option of the trainer, such as auto, cpu or gpu.
        precision: option of the trainer, such as 16-mixed.

    Returns:
        The given precision, with these exceptions. A GPU without bf16 instructions uses 16-mixed instead of bf16. A CPU
        uses bf16-mixed instead of 16-mixed if it is faster than float32. Otherwise, and without bf16 instructions, it
        uses float32. The GPU of a Mac uses float32.
    """
    if precision not in (16, "16", "16-mixed", "bf16", "bf16-mixed"):
        return precision
    import torch  # not needed to check arguments

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if precision in ("bf16", "bf16-mixed") and not torch.cuda.is_bf16_supported(including_emulation=False):
            rank_zero_info(f"precision: 16-mixed instead of {precision}: this GPU has no bf16 instructions.")
            return "16-mixed"
        return precision
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        rank_zero_info(f"precision: float32 instead of {precision}: unsupported on the GPU of a Mac.")
        return "32-true"
    if accelerator not in ("auto", "cpu"):
        return precision
    if not cpu_has_bf16():
        rank_zero_info(f"precision: float32 instead of {precision}: this CPU has no bf16 instructions.")
        return "32-true"
    if precision in ("bf16", "bf16-mixed"):
        return "bf16-mixed"
    if not cpu_is_faster_in_bf16():
        rank_zero_info(f"precision: float32 instead of {precision}: this CPU is not faster in bf16.")
        return "32-true"
    rank_zero_info(f"precision: bf16-mixed instead of {precision} on a CPU.")
    return "bf16-mixed"


def cpu_has_bf16() -> bool:
    """Return whether Linux lists bf16 instructions of the CPU; False on other systems."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_cpu_words())


def cpu_is_faster_in_bf16() -> bool:
    """Return whether networks are faster in bf16 than in float32; an Intel CPU needs AMX for this.

    A virtual machine may hide AMX. With AVX-512 BF16 only, ResNet-18 trains at 0.74 times and predicts at 0.67 times
    the float32 rate, and EfficientNet-Lite0 at 1.05 and 0.83 times. On an AMD EPYC, ResNet-18 reaches 1.6 and 1.8 times
    (docs/speed.md).
    """
    words = _cpu_words()
    return cpu_has_bf16() and ("amx_bf16" in words or "GenuineIntel" not in words)


def _cpu_words() -> set[str]:
    return set(CPU_INFO.read_text().split()) if CPU_INFO.is_file() else set()


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the system; return whether it succeeded.

    A training step on the CPU frees and allocates a gigabyte of activations. The system clears each returned page,
    which takes 5 % of a step (benchmarks/speed.py). Peak memory does not change, but the process keeps its peak memory
    until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    return all((mallopt(mmap_max, 0), mallopt(trim_threshold, -1), mallopt(top_pad, 256 << 20)))


def expand_home(value: Any) -> Any:
    """Replace `~` at the start of paths by the home folder, in lists and mappings too.

    A path is a `Path`, the string `~`, or a string that starts with `~` and contains a slash. Names of unknown users do
    not change.
    """
    if isinstance(value, Path):
        return Path(expand_home(str(value))) if str(value).startswith("~") else value
    if isinstance(value, str):
        return os.path.expanduser(value) if value == "~" or re.match("~.*/", value) else value  # noqa: PTH111
    if isinstance(value, list | tuple):
        return type(value)(map(expand_home, value))
    if isinstance(value, dict):
        return {name: expand_home(each) for name, each in value.items()}
    if isinstance(value, Namespace):
        return Namespace(**{name: expand_home(each) for name, each in vars(value).items()})  # type: ignore[no-untyped-call]
    return value


_INTENDED = (  # warnings of Lightning about intended settings
    ".*does not have many workers.*",  # a batch is one gather from a memory map; see PCamDataModule
    ".*smaller than the logging interval.*",  # only the learning rate curve gets fewer points
    ".*callbacks used to create the checkpoint.*",  # callbacks of fit are not needed in other stages
    r".*isinstance\(treespec, LeafSpec\).*",
)
_KNOWN = re.compile(  # messages that this project reports itself, and advertisements
    r"💡|.*has Tensor Cores|\s*Detected KeyboardInterrupt|.*Received SIGTERM|[GTH]PU available|LOCAL_RANK"
    r"|Using .* Automatic Mixed Precision|Loaded model weights|Restor(ing|ed all) states"
    r"|Loading `train_dataloader` to estimate|`Trainer\.fit` stopped"
)
_LOGGERS = tuple(
    f"lightning.pytorch.{name}"
    for name in ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.signal_connector")
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's advertisements and its messages about devices and intended settings.

    Other messages are shown, such as those of user callbacks and profilers. Filters are removed at the end, so a
    `Trainer` of the user shows all messages.
    """

    def is_wanted(record: logging.LogRecord) -> bool:
        return _KNOWN.match(record.getMessage()) is None

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for one in loggers:
        one.addFilter(is_wanted)
    try:
        with warnings.catch_warnings():
            for message in _INTENDED:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for one in loggers:
            one.removeFilter(is_wanted)


@contextmanager
def compile_errors() -> Iterator[None]:
    """Turn what torch.compile raises on a machine where it fails into an error that names the option.

    Raises:
        UserError: from the block.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"`model.compile` true: torch.compile fails on this machine ({reason}); leave the option out, or false."
        ) from error
