"""A slide that several processes predict together."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forked import MAIN, run_two
from PIL import Image

from pcam_lightning.cli.main import main

pytestmark = pytest.mark.process

ARGS = (
    "--accelerator=cpu",
    "--precision=32-true",
    "--num_workers=0",
    "--ckpt_path=pcam-small",
    "--tissue=none",
    "--mpp=0.972",
)


def heatmap(slides: list[Path], output: Path, *, two: bool) -> pd.DataFrame:
    args = ["heatmap", *map(str, slides), *ARGS, f"--output={output}"]
    if two:
        done = run_two(MAIN, *args, "--devices=2")
        assert done.returncode == 0, done.stderr
    else:
        assert main(args) == 0
    assert not list(output.glob("*/logits_*.npz"))
    return pd.concat([pd.read_csv(output / slide.stem / "patches.csv") for slide in slides], ignore_index=True)


def test_two_processes_write_what_one_writes(pixels: np.ndarray, tmp_path: Path) -> None:
    slides = []
    for name, width in (("a", 320), ("b", 1100)):  # one region, so that a process has none; three regions
        slides.append(tmp_path / f"{name}.png")
        Image.fromarray(np.tile(pixels, (1, 4, 1))[:, :width]).save(slides[-1])
    one = heatmap(slides, tmp_path / "one", two=False)
    two = heatmap(slides, tmp_path / "two", two=True)
    assert len(one) == 10 * (10 + 35)
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)
