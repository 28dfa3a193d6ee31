"""The precision that this machine can train in, and the memory that it keeps."""

import subprocess
import sys

import pytest
import torch

from pcam_lightning.utils.system import cpu_has_bf16, supported_precision


def test_a_cpu_trains_in_bf16_or_float32_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert supported_precision("cpu", "16-mixed") == ("bf16-mixed" if cpu_has_bf16() else "32-true")
    assert "instead of 16-mixed" in capsys.readouterr().err


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


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_freed_memory_is_taken_again_without_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    assert int(faults) < 1000 if kept == "True" else int(faults) > 0  # 40 MB are 9,766 pages, five times
