"""A checkpoint of another format is refused; `test_bundled.py` reads files that an earlier version wrote."""

from pathlib import Path

import pytest
import torch

from pcam_lightning.cli.main import main
from pcam_lightning.training.checkpoint import FORMAT


@pytest.mark.parametrize("found", [FORMAT - 1, FORMAT + 1, None])
def test_a_checkpoint_of_another_format_is_refused(
    found: int | None, small: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(small / "checkpoints" / "best.ckpt", weights_only=True)
    assert state["pcam"]["format"] == FORMAT
    state["pcam"].update(format=found, version="7.0")
    torch.save(state, tmp_path / "other.ckpt")
    assert main(["predict", "--ckpt_path", str(tmp_path / "other.ckpt"), "--data.root", str(drawn)]) == 2
    error = capsys.readouterr().err
    assert f"other.ckpt: written by pcam_lightning 7.0 in format {found}, and this version" in error
    assert f"reads format {FORMAT}; install the version that wrote it." in error
