"""Patches that trained the weights and then evaluate them: counted by pixels, and by ids that are their SHA-1."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST, MakeFolder
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.sources import read_train
from pcam_lightning.data.splits import split_digest
from pcam_lightning.data.training_patches import TrainingPatches

BASE = str(CONFIGS / "base.yaml")
RUNS = Path("lightning_logs") / "base"
CPU = "--trainer.accelerator=cpu"


def _table(ids: list[str], pixels: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"id": ids, "pixel_sha1": [f"{one}".rjust(40, "0").replace("x", "a") for one in pixels]})


def test_patches_are_counted_by_pixels_or_by_ids_that_are_sha1() -> None:
    a, b, c, d = (letter * 40 for letter in "abcd")
    trained = TrainingPatches.of(_table([a, b], ["1" * 40, "2" * 40]))
    assert trained.count(_table([a, c, d], ["3" * 40, "2" * 40, "4" * 40])) == 2
    both = trained | TrainingPatches.of(_table([d], ["5" * 40]))
    assert both.count(_table([a, c, d], ["3" * 40, "2" * 40, "4" * 40])) == 3
    assert not (both | TrainingPatches(known=False)).known


def test_a_file_name_says_nothing_of_the_pixels() -> None:
    """Every other folder of numbered files has a 000."""
    trained = TrainingPatches.of(_table(["000", "001"], ["1" * 40, "2" * 40]))
    assert trained.count(_table(["000", "001", "002"], ["3" * 40, "4" * 40, "2" * 40])) == 1
    before = pd.util.hash_array(np.array(["000", "001"], dtype=object)).view(np.int64)  # as older checkpoints have them
    trained = TrainingPatches(np.sort(before))
    assert trained.count(_table(["000", "001"], ["3" * 40, "4" * 40])) == 0


def test_another_folder_with_the_same_file_names(
    kaggle: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its patches did not train the network, nor did those of its slides: temperature and thresholds are kept."""
    assert _fit(kaggle(train=40)) == 0
    other = kaggle(train=40, root=tmp_path / "other")
    for file in (other / "train").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    run = RUNS / "version_0"
    before = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["pcam"]["split"]["sha256"]
    assert split_digest(*_parts_of(other)) == before  # by ids it would be the same split
    assert main(["evaluate", str(run), f"--root={other}", "--abstain=0.2", "--bootstrap_samples=100"]) == 0
    report = json.loads((run / "report.json").read_text())
    assert (report["training_overlap"], report["leak"]) == (0, "")
    assert report["thresholds"] is not None
    assert "this is not the validation part of the checkpoint's run" in capsys.readouterr().err
    assert _fit(other) == 0
    assert main(["compare", str(run), str(RUNS / "version_1")]) == 2
    assert "8 of 8 patches have the same id but different pixels" in capsys.readouterr().err


def _parts_of(root: Path) -> tuple[pd.DataFrame, np.ndarray]:
    data = PCamDataModule(root)
    data.setup("fit")
    return data.table, data.val_mask


def _fit(root: Path, *more: str) -> int:
    return main(["fit", "-c", BASE, "--data.root", str(root), "--trainer.max_epochs=1", *FAST, *more])


@pytest.mark.parametrize("way", ["weights", "ckpt_path"])
def test_weights_of_a_run_with_another_split(
    way: str, drawn: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained / "checkpoints" / "best.ckpt"  # last.ckpt resumes the run itself
    more = [f"--model.weights={checkpoint}"] if way == "weights" else [f"--ckpt_path={checkpoint}"]
    assert _fit(drawn, *more, "--trainer.max_epochs=3", "--data.split_seed=7") == 0
    parts = [pd.read_csv(run / "split.csv").set_index("id")["split"] for run in (trained, RUNS / "version_0")]
    first, second = (set(part.index[part == "val"]) for part in parts)
    expected = len(second - first)
    assert expected > 5
    printed = capsys.readouterr().err
    assert f"{expected} of {len(second)} validation patches trained the weights that this run starts from" in printed
    assert f"--data.split_file {trained / 'split.csv'} holds out the patches that its run did." in printed

    run = RUNS / "version_0"
    assert main(["evaluate", str(run)]) == 0
    sentence = f"{expected} of these {len(second)} patches trained the network: all scores are optimistic."
    assert sentence in capsys.readouterr().err
    assert sentence in (run / "report.html").read_text()
    report = json.loads((run / "report.json").read_text())
    assert report["training_overlap"] == expected
    assert report["temperature"] is None
    predict = ["predict", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--calibrate", CPU]
    assert main(predict) == 2

    # The same patches held out: nothing to report.
    assert _fit(drawn, *more, "--trainer.max_epochs=3", f"--data.split_file={trained / 'split.csv'}") == 0
    assert "trained the weights" not in capsys.readouterr().err


def test_patches_are_remembered_over_two_runs(drawn: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What trained the weights that a run started from has trained its own too."""
    first = trained / "checkpoints" / "last.ckpt"
    assert _fit(drawn, f"--model.weights={first}", "--data.split_seed=7") == 0
    second = RUNS / "version_0" / "checkpoints" / "last.ckpt"
    record = torch.load(second, weights_only=True)["trained"]
    splits = [pd.read_csv(run / "split.csv") for run in (trained, RUNS / "version_0")]
    ids = set().union(*(split.loc[split["split"] == "train", "id"] for split in splits))
    assert len(record["ids"]) == len(ids) > 97
    assert record["known"]


def test_an_evaluated_run_whose_data_changed(drawn: Path, run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path("changed")
    shutil.copytree(drawn, root, ignore=shutil.ignore_patterns(".pcam_cache"))
    labels = pd.read_csv(root / "train_labels.csv").iloc[20:]
    labels.to_csv(root / "train_labels.csv", index=False)
    assert main(["evaluate", str(run_copy), f"--root={root}", "--abstain=0.2"]) == 0
    split = pd.read_csv(run_copy / "split.csv").set_index("id")["split"]
    evaluated = pd.read_csv(run_copy / "val_predictions.csv")["id"]
    expected = int((split[evaluated] == "train").sum())
    assert expected > 0
    report = json.loads((run_copy / "report.json").read_text())
    assert report["training_overlap"] == expected
    assert report["temperature"] is None
    assert report["thresholds"] is None
    assert f"{expected} of these {len(evaluated)} patches trained the network" in (run_copy / "report.html").read_text()


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_each_stage_counts_patches_that_trained_the_network(
    stage: str, drawn: Path, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path("mixed")
    shutil.copytree(drawn, root, ignore=shutil.ignore_patterns(".pcam_cache"))
    checkpoint = str(run_copy / "checkpoints" / "best.ckpt")
    more = ["--data.split_seed=7"]
    split = pd.read_csv(run_copy / "split.csv").set_index("id")["split"]
    if stage != "validate":  # five training patches under names of the test part
        more = []
        answers = pd.read_csv(root / "answers.csv")
        for of_train, name in zip(split.index[split == "train"][:5], answers["id"], strict=False):
            shutil.copy(root / "train" / f"{of_train}.tif", root / "test" / f"{name}.tif")
    assert main([stage, "--ckpt_path", checkpoint, "--data.root", str(root), *more, CPU]) == 0
    found = re.search(r"warning: (\d+) of these (\d+) patches trained the network", capsys.readouterr().err)
    assert found
    if stage != "validate":
        assert found.groups() == ("5", "40")
    if stage == "test":
        assert json.loads((run_copy / "test.json").read_text())["training_overlap"] == 5


def test_exact_copies_on_both_sides_of_a_split_file(
    kaggle: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle(train=40)
    for number in (1, 3):
        shutil.copy(root / "train" / f"train{number:03d}.tif", root / "train" / f"train{number + 20:03d}.tif")
    ids = read_train(root)["id"]
    split = tmp_path / "split.csv"
    pd.DataFrame({"id": ids, "split": np.where(np.arange(40) < 20, "val", "train")}).to_csv(split, index=False)
    assert _fit(root, f"--data.split_file={split}") == 0
    assert "2 of 20 validation patches have an exact copy in the training part" in capsys.readouterr().err
    assert main(["evaluate", str(RUNS / "version_0")]) == 0
    assert json.loads((RUNS / "version_0" / "report.json").read_text())["training_overlap"] == 2


def test_a_run_without_overlap_reports_none(run_copy: Path) -> None:
    assert main(["evaluate", str(run_copy)]) == 0
    assert json.loads((run_copy / "report.json").read_text())["training_overlap"] == 0
