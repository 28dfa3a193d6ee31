"""Corrections of logits: which calibrations are refused."""

import json
from pathlib import Path

import pytest

from pcam_lightning.cli.main import main
from pcam_lightning.slides.slide_network import weights_sha256
from pcam_lightning.training.loaded_run import load_pretrained


@pytest.mark.parametrize("scale", [-1.0, 0.0])
def test_a_calibration_that_turns_logits_around_is_refused(
    scale: float, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = {"sha256": weights_sha256(load_pretrained("pcam-small")), "tta": "none"}
    Path("calibration.json").write_text(json.dumps({"scale": scale, "shift": 0.0, "network": network, "stride": 32}))
    args = ["--ckpt_path=pcam-small", "--tta=none", "--accelerator=cpu", "--calibration=calibration.json"]
    assert main(["heatmap", str(slide), *args]) == 2
    assert "should be finite, and the scale greater than 0" in capsys.readouterr().err
