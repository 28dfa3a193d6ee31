"""The machine and the terminal: precision, memory, the home folder, third-party messages."""

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

CPU_INFO = Path("/proc/cpuinfo")  # Linux alone has it


def supported_precision(accelerator: Any, precision: Any) -> Any:
    """Return the precision to use on this machine, and report where it differs from the option.

    Args:
        accelerator: the trainer's option: auto, cpu, gpu, ...
        precision: the trainer's option, such as 16-mixed.

    Returns:
        16-mixed on a GPU without bf16 instructions. On a CPU, for 16-mixed bf16-mixed where it is faster than float32,
        and float32 elsewhere; bf16-mixed where the CPU has the instructions. Float32 on a Mac's GPU. Else what was
        asked for.
    """
    if precision not in (16, "16", "16-mixed", "bf16", "bf16-mixed"):
        return precision
    import torch  # the command line checks arguments without it

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if precision in ("bf16", "bf16-mixed") and not torch.cuda.is_bf16_supported(including_emulation=False):
            rank_zero_info(f"precision: 16-mixed instead of {precision}: this GPU has no bf16 instructions.")
            return "16-mixed"
        return precision
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        rank_zero_info(f"precision: float32 instead of {precision} on a Mac's GPU.")
        return "32-true"
    if accelerator not in ("auto", "cpu"):
        return precision
    if not cpu_has_bf16():
        rank_zero_info(f"precision: float32 instead of {precision}: this CPU has no bf16 instructions.")
        return "32-true"
    if precision in ("bf16", "bf16-mixed"):
        return "bf16-mixed"
    if not cpu_is_faster_in_bf16():
        rank_zero_info(f"precision: float32 instead of {precision}: this CPU is no faster in bf16.")
        return "32-true"
    rank_zero_info(f"precision: bf16-mixed instead of {precision} on a CPU.")
    return "bf16-mixed"


def cpu_has_bf16() -> bool:
    """Return whether the CPU has bf16 instructions, by Linux's list of features; false on other systems."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_cpu_words())


def cpu_is_faster_in_bf16() -> bool:
    """Return whether networks are faster in bf16 than in float32; on an Intel CPU its AMX alone makes them so.

    With AVX-512 BF16 and without AMX, which a virtual machine may hide, ResNet-18 trains at 0.74 times its rate in
    float32 and predicts at 0.67 times, EfficientNet-Lite0 at 1.05 and 0.83 times; on an AMD EPYC ResNet-18 at 1.6 and
    1.8 times (docs/speed.md).
    """
    words = _cpu_words()
    return cpu_has_bf16() and ("amx_bf16" in words or "GenuineIntel" not in words)


def _cpu_words() -> set[str]:
    return set(CPU_INFO.read_text().split()) if CPU_INFO.is_file() else set()


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of returning it to the system; return whether it does.

    A training step on the CPU frees and takes a gigabyte of activations, and each page of it that comes back from the
    system is cleared first: a twentieth of the step, see benchmarks/speed.py. It costs nothing in peak memory, but the
    process stays at its peak until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    return all((mallopt(mmap_max, 0), mallopt(trim_threshold, -1), mallopt(top_pad, 256 << 20)))


def expand_home(value: Any) -> Any:
    """Return options with `~` at the start of a path replaced by the home folder, in lists and mappings too.

    A path is a `Path`, or text that is `~` or starts with `~` and has a slash. The name of an unknown user stays.
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


_INTENDED = (  # settings that Lightning warns of
    ".*does not have many workers.*",  # a batch is one gather from a memory map; see PCamDataModule
    ".*smaller than the logging interval.*",  # the rate's curve has fewer points then, no more
    ".*callbacks used to create the checkpoint.*",  # those of fit have nothing to do in the other stages
    r".*isinstance\(treespec, LeafSpec\).*",
)
_KNOWN = re.compile(  # what this project reports itself, or what Lightning advertises
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
    """Hide Lightning's advertisements, and what it says on devices and on settings that are intended here.

    Everything else is shown, such as what callbacks and profilers of the user report. Afterwards Lightning's messages
    are what they were: those of a `Trainer` of the user's own are not this package's to hide.
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
