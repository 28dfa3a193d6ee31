"""The trained networks that come with the package: `--ckpt_path pcam` and `load_pretrained("pcam")`."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST

import pcam_lightning
from pcam_lightning import load_pretrained
from pcam_lightning.cli.main import main
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.utils.bundled import BUNDLED, WEIGHTS
from pcam_lightning.utils.run_dir import run_of
from pcam_lightning.utils.weights_file import read_weights, write_weights

BASE = str(CONFIGS / "base.yaml")
CPU = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.precision=32-true")
BYTES = {"pcam": 8e6, "pcam-small": 1.5e6}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_network_is_small_has_a_card_and_is_in_the_wheel(name: str) -> None:
    file, card = (WEIGHTS / f"{name}.{suffix}" for suffix in ("safetensors", "md"))
    assert file.stat().st_size <= BYTES[name]
    assert name in card.read_text()
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["pcam_lightning"]
    packed = {path for pattern in patterns for path in Path(pcam_lightning.__file__).parent.glob(pattern)}
    assert {file, card} <= packed


def _patches() -> torch.Tensor:
    """Return four patches that are drawn by whole numbers alone, the same on every machine, uint8 (4, 96, 96, 3)."""
    row, column = np.mgrid[:96, :96]
    waves = [abs((row * 5 + column * (3 + shift)) % (24 + 8 * shift) - 12) * 6 for shift in range(4)]
    pixels = [[np.minimum(wave + shade, 255) for shade in (150, 90, 140)] for wave in waves]
    return torch.from_numpy(np.stack(pixels).astype(np.uint8)).permute(0, 2, 3, 1).contiguous()


# Logits in float32 of `_patches`, one view and eight.
RECORDED = {
    "pcam": ([-2.86819, -3.06657, -2.96014, -2.61202], [-3.01424, -2.83931, -2.35473, -2.2357]),
    "pcam-small": ([-1.83703, -3.47122, -1.9505, -2.40606], [-1.42344, -2.53003, -2.7827, -3.06821]),
}


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("tta", ["none", "d4"])
def test_outputs_of_a_bundled_network_stay_what_they_are(name: str, tta: str) -> None:
    model = load_pretrained(name, tta)
    with torch.no_grad():
        logit = model.predict_logits(_patches())
    assert logit.dtype == torch.float32
    assert logit.tolist() == pytest.approx(RECORDED[name][tta == "d4"], abs=1e-4)


def test_commands_take_a_bundled_network_by_its_name(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--ckpt_path", "pcam-small", "--data.root", str(drawn), *CPU]) == 0
    assert main(["evaluate", "pcam-small", "--root", str(drawn), "--bootstrap_samples=100", "--abstain=0.2"]) == 0
    more = ["--abstain", "--overwrite"]
    assert main(["predict", "--ckpt_path", "pcam-small", "--data.root", str(drawn), *CPU, *more]) == 0
    assert pd.read_csv("lightning_logs/pcam-small/predictions.csv")["ood"].mean() > 0.9  # drawn tissue is
    assert main(["explain", "pcam-small", "--root", str(drawn), "--sample=20"]) == 0
    printed = capsys.readouterr()
    assert "may be optimistic: the network was trained on" in printed.err
    folder = Path("lightning_logs/pcam-small")
    leak = json.loads((folder / "report.json").read_text())["leak"]
    assert leak.startswith("This score may be optimistic: the network was trained on JPEG copies")
    assert {"submission.csv", "report.html", "val_predictions.csv", "explain.csv"} <= {
        path.name for path in folder.iterdir()
    }
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["pcam-small"]

    labels = pd.read_csv(drawn / "train_labels.csv")
    validated = pd.read_csv(folder / "val_predictions.csv")
    assert sorted(validated["id"]) == sorted(labels["id"])  # none of these patches has trained it

    predicted = pd.read_csv(folder / "predictions.csv").set_index("id")["logit"]
    data = pcam_lightning.PCamDataModule(drawn)
    data.setup("predict")
    with torch.no_grad():
        batch = next(iter(data.predict_dataloader()))
        logit = load_pretrained("pcam-small").predict_logits(batch["image"])
    assert logit.tolist() == pytest.approx(list(predicted[data.ids[batch["row"]]]), abs=1e-4)


def test_an_ensemble_of_both_has_their_mean_logit(drawn: Path) -> None:
    args = ["--data.root", str(drawn), *CPU]
    for more in (["pcam"], ["pcam-small"], ["pcam", "--ensemble", "pcam-small", "--output", "both"]):
        assert main(["predict", "--ckpt_path", *more, *args]) == 0
    each = [pd.read_csv(f"lightning_logs/{name}/predictions.csv")["logit"] for name in BUNDLED]
    both = pd.read_csv("both/predictions.csv")["logit"]
    assert list(both) == pytest.approx(list((each[0] + each[1]) / 2), abs=1e-5)


def test_training_starts_from_a_bundled_network(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--model.backbone=efficientnet_lite0_s16", "--model.weights=pcam-small", "--model.normalize=half"]
    args = ["fit", "-c", BASE, "--data.root", str(drawn), *FAST, *more, "--trainer.limit_train_batches=1"]
    assert main([*args, "--trainer.max_epochs=1", "--model.lr=0"]) == 0
    printed = capsys.readouterr().err
    assert "from pcam-small weights" in printed
    assert re.search("val/auroc may be optimistic: the weights of pcam-small were trained on JPEG copies", printed)
    made = read_checkpoint(Path("lightning_logs/base/version_0/checkpoints/last.ckpt"))
    bundled = read_checkpoint(Path("pcam-small"))
    for name, value in bundled["state_dict"].items():
        if name.startswith("net.") and name.endswith(".weight"):
            assert torch.equal(made["state_dict"][name], value), name
    assert made["trained"]["origins"] == bundled["trained"]["origins"]


def test_a_bundled_network_cannot_be_resumed(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", BASE, "--data.root", str(drawn), "--ckpt_path", "pcam", *FAST]) == 2
    assert "--ckpt_path pcam: weights alone, nothing to resume" in capsys.readouterr().err
    assert main(["fit", "-c", BASE, "--data.root", str(drawn), "--data.val_fraction=1", *FAST]) == 2
    assert "--data.val_fraction 1.0: all patches are in the validation part" in capsys.readouterr().err
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("what", ["pcam", "pcam/checkpoints/best.ckpt", "pcam/oof.csv"])
def test_a_name_that_the_user_has_too_is_refused(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(what).parent.mkdir(parents=True, exist_ok=True)
    Path(what).touch()
    for args in (["evaluate", "pcam"], ["predict", "--ckpt_path", "pcam"]):
        assert main(args) == 2
        assert "error: pcam: this name refers to a network included in the package" in capsys.readouterr().err


def test_a_data_folder_of_that_name_is_no_other_network(drawn: Path) -> None:
    Path("pcam").symlink_to(drawn)
    assert main(["predict", "--ckpt_path", "pcam", "--data.root", "pcam", *CPU]) == 0
    assert Path("lightning_logs/pcam/submission.csv").is_file()


def test_the_path_of_the_file_is_the_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(WEIGHTS)
    for path in (WEIGHTS / "pcam.safetensors", tmp_path / "link" / "pcam.safetensors"):
        assert run_of(path).folder == Path("lightning_logs/pcam")


def test_an_unknown_name_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--ckpt_path", "pcam-large"]) == 2
    assert "pcam and pcam-small come with this package" in capsys.readouterr().err


def test_a_written_network_predicts_as_its_checkpoint(small: Path, drawn: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(small / "checkpoints" / "best.ckpt")
    file = tmp_path / "work" / "mine.safetensors"
    write_weights(file, checkpoint, half=True)
    assert file.stat().st_size < (small / "checkpoints" / "best.ckpt").stat().st_size / 4
    written = read_weights(file)
    assert written["pcam"] == checkpoint["pcam"]
    assert torch.equal(written["trained"]["pixels"], checkpoint["trained"]["pixels"])
    for name, value in written["state_dict"].items():
        assert torch.allclose(value, checkpoint["state_dict"][name], rtol=1e-3, atol=1e-6), name
    for path, output in ((small / "checkpoints" / "best.ckpt", "a"), (file, "b")):
        assert main(["predict", "--ckpt_path", str(path), "--output", output, *CPU]) == 0
    a, b = (pd.read_csv(f"{output}/predictions.csv")["logit"] for output in "ab")
    assert list(b) == pytest.approx(list(a), abs=0.02)
    assert main(["validate", "--ckpt_path", str(file), "--data.val_fraction=1", *CPU]) == 0
