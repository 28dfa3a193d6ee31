"""The precision that this machine can train in, and the memory that it keeps."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_info

from pcam_lightning.utils.system import quiet_lightning, supported_precision


@pytest.mark.parametrize(
    ("cpu", "chosen", "asked_for"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx512_bf16", "bf16-mixed", "bf16-mixed"),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16", "bf16-mixed", "bf16-mixed"),
        ("Features : asimd bf16", "bf16-mixed", "bf16-mixed"),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16", "32-true", "bf16-mixed"),  # slower there, and not refused
        ("vendor_id : GenuineIntel\nflags : avx512f", "32-true", "32-true"),
        (None, "32-true", "32-true"),
    ],
)
def test_a_cpu_trains_in_what_is_faster_and_says_so(
    cpu: str | None,
    chosen: str,
    asked_for: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pcam_lightning.utils.system.CPU_INFO", tmp_path / "cpuinfo")
    if cpu is not None:
        (tmp_path / "cpuinfo").write_text(cpu)
    assert supported_precision("cpu", "16-mixed") == chosen
    assert "instead of 16-mixed" in capsys.readouterr().err
    assert supported_precision("cpu", "bf16-mixed") == asked_for


@pytest.mark.parametrize("precision", ["32-true", "64-true", None])
def test_what_is_no_half_precision_stays(precision: str | None) -> None:
    assert supported_precision("auto", precision) == precision


def test_a_gpu_keeps_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert supported_precision("auto", "16-mixed") == "16-mixed"
    assert supported_precision("gpu", "bf16-mixed") == "bf16-mixed"


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_a_gpu_without_bf16_trains_in_float16_and_says_so(
    accelerator: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert supported_precision(accelerator, "bf16-mixed") == "16-mixed"
    assert "precision: 16-mixed instead of bf16-mixed" in capsys.readouterr().err
    assert supported_precision(accelerator, "16-mixed") == "16-mixed"
    assert capsys.readouterr().err == ""


_FAULTS = """
import resource, torch
from pcam_lightning.utils.system import keep_freed_memory
kept = keep_freed_memory()
for _ in range(30):  # until the heap has found its size
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(10_000_000)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_freed_memory_is_taken_again_without_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    assert int(faults) < 1000 if kept == "True" else int(faults) > 0  # 40 MB are 9,766 pages, five times


def test_lightning_is_quiet_while_the_package_works_and_afterwards_as_before(caplog: pytest.LogCaptureFixture) -> None:
    known = ["💡 Tip: a product", "A CUDA device that has Tensor Cores. To", "GPU available: True, used: True",
             "TPU available: False", "Using bfloat16 Automatic Mixed Precision (AMP)",
             "\nDetected KeyboardInterrupt, attempting", "[rank: 0] Received SIGTERM: 15"]  # fmt: skip
    others = ["Metric val/auroc improved by 0.1"]
    before = list(warnings.filters)
    with caplog.at_level("INFO"):
        with quiet_lightning():
            with quiet_lightning():  # as where `crossval` calls `fit`
                pass
            for message in (*known, *others):
                rank_zero_info(message)
        assert caplog.messages == others
        assert warnings.filters == before
        for message in known:
            rank_zero_info(message)
    assert caplog.messages == [*others, *known]
