"""A slide that several processes predict together."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

ARGS = ("--accelerator=cpu", "--precision=32-true", "--num_workers=0", "--ckpt_path=pcam-small", "--tissue=none")


def heatmap(slide: Path, *flags: str) -> pd.DataFrame:
    command = [sys.executable, "-m", "pcam_lightning", "heatmap", str(slide), *ARGS, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    output = next(flag.partition("=")[2] for flag in flags if flag.startswith("--output"))
    assert not list(Path(output).glob("*/logits_*.npz"))
    return pd.read_csv(Path(output) / slide.stem / "patches.csv")


@pytest.mark.parametrize("width", [320, 1100])  # one region, so that a process has none; three regions
def test_two_processes_write_what_one_writes(pixels: np.ndarray, tmp_path: Path, width: int) -> None:
    path = tmp_path / "wide.png"
    Image.fromarray(np.tile(pixels, (1, 4, 1))[:, :width]).save(path)
    one = heatmap(path, f"--output={tmp_path / 'one'}", "--mpp=0.972")
    two = heatmap(path, f"--output={tmp_path / 'two'}", "--mpp=0.972", "--devices=2")
    assert len(one) == 10 * -(-width // 32)
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)
