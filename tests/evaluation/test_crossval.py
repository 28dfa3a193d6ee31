"""crossval: each patch predicted once by a network that had not seen it; interrupted anywhere, the same in the end."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import CONFIGS, FAST, TRAINER, stopping
from PIL import Image
from scipy.special import expit

from pcam_lightning.cli.main import main
from pcam_lightning.evaluation import crossval as module
from pcam_lightning.metrics.classification import auroc

BASE = str(CONFIGS / "base.yaml")
FOLDER = Path("lightning_logs/base/crossval_0")


def _args(drawn: Path) -> list[str]:
    # A map of slides lies in the folder, so that folds are of whole slides without an option.
    return ["crossval", "-c", BASE, "--folds=2", "--data.root", str(drawn), "--trainer.max_epochs=2", *FAST]


@pytest.fixture(scope="module")
def undisturbed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a cross-validation in two folds."""
    place = tmp_path_factory.mktemp("crossval")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(_args(drawn)) == 0
    return place / FOLDER


def test_out_of_fold_predictions_and_the_mean_submission(undisturbed: Path, drawn: Path) -> None:
    oof = pd.read_csv(undisturbed / "oof.csv")
    labels = pd.read_csv(drawn / "train_labels.csv").set_index("id")["label"]
    assert sorted(oof["id"]) == sorted(labels.index)
    assert (oof["label"] == labels[oof["id"]].to_numpy()).all()
    assert oof.groupby("slide")["fold"].nunique().max() == 1
    for fold in (0, 1):
        split = pd.read_csv(undisturbed / f"fold_{fold}" / "split.csv").set_index("id")["split"]
        assert set(split.index[split == "val"]) == set(oof["id"][oof["fold"] == fold])
    record = json.loads((undisturbed / "crossval.json").read_text())
    each = [auroc(part["label"].to_numpy(), part["logit"].to_numpy()) for _, part in oof.groupby("fold")]
    assert record["val/auroc"] == pytest.approx(each)
    assert record["sd"] == pytest.approx(np.std(each, ddof=1))
    logits = [pd.read_csv(undisturbed / f"fold_{fold}" / "predictions.csv")["logit"] for fold in (0, 1)]
    submission = pd.read_csv(undisturbed / "submission.csv")
    assert submission["label"].to_numpy() == pytest.approx(expit((logits[0] + logits[1]) / 2).to_numpy(), abs=1e-6)


class Stop(L.Callback):
    """Ctrl-C in the second epoch of training, or after the first batch that is judged."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    def on_validation_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.state.fn != "fit":
            raise KeyboardInterrupt

    on_predict_batch_end = on_validation_batch_end  # type: ignore[assignment]


def test_interrupted_in_every_stage_it_ends_the_same(
    undisturbed: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [0]
    monkeypatch.setattr(TRAINER, stopping(Stop(), left))
    for command, whole in enumerate((0, 1, 1, 1, 1, 1)):  # fit, validate, predict of one fold, then of the other
        left[0] = 1 + whole  # one is built to try the options
        if command == 4:  # somebody has had the first fold say something else meanwhile
            (FOLDER / "fold_0" / "val_predictions.csv").unlink()
            (FOLDER / "fold_0" / "predictions.csv").unlink()
        with contextlib.suppress(KeyboardInterrupt):
            assert main(_args(drawn)) == 130
        assert left[0] == -1
        assert not (FOLDER / "oof.csv").exists()
    assert main(_args(drawn)) == 0
    for name in ("oof.csv", "submission.csv"):
        assert (FOLDER / name).read_bytes() == (undisturbed / name).read_bytes()
    assert [path.name for path in FOLDER.parent.iterdir()] == ["crossval_0"]


def test_all_folds_are_evaluated_together(undisturbed: Path, drawn: Path) -> None:
    assert main(["evaluate", str(undisturbed), "--bootstrap_samples=200"]) == 0
    report, oof = json.loads((undisturbed / "report.json").read_text()), pd.read_csv(undisturbed / "oof.csv")
    assert report["auroc"]["value"] == pytest.approx(auroc(oof["label"].to_numpy(), oof["logit"].to_numpy()))
    assert (report["patches"], report["clustered_by"], report["leak"]) == (len(oof), "slides", "")
    assert "data:image/png" in (undisturbed / "report.html").read_text()


def test_folds_that_share_slides_are_said_to_flatter(undisturbed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "crossval_0"
    shutil.copytree(undisturbed, copy)
    oof = pd.read_csv(copy / "oof.csv")
    for rows, message in (
        (oof.assign(fold=oof.index % 2), "is optimistic: 120 of 120 patches are of slides that are in several folds."),
        (oof.drop(columns="slide"), "is optimistic: patches of one slide are in several folds."),
        (oof.assign(slide=oof["slide"].where(oof["fold"] == 0, "unknown")), "may be optimistic: "),
    ):
        rows.to_csv(copy / "oof.csv", index=False)
        assert main(["evaluate", str(copy), "--bootstrap_samples=200"]) == 0
        assert json.loads((copy / "report.json").read_text())["leak"].startswith(f"This score {message}")


def test_the_cautions_of_all_folds_are_given(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "crossval_0"
    shutil.copytree(undisturbed, copy)
    for fold, origin in enumerate(("copies", "other copies")):  # as of folds that started from pcam
        checkpoint = torch.load(copy / f"fold_{fold}/checkpoints/last.ckpt", weights_only=True)
        checkpoint["trained"] |= {"origins": [origin], "known": False}
        torch.save(checkpoint, copy / f"fold_{fold}/checkpoints/last.ckpt")
    oof = pd.read_csv(copy / "oof.csv").drop(columns="slide")
    oof.to_csv(copy / "oof.csv", index=False)
    caution = "This score may be optimistic: the network was trained on copies and other copies, and these may be of "
    both = f"This score is optimistic: patches of one slide are in several folds. {caution}the same slides."
    assert main(["evaluate", str(copy), "--bootstrap_samples=200"]) == 0
    assert json.loads((copy / "report.json").read_text())["leak"] == both
    assert both in (copy / "report.html").read_text()
    capsys.readouterr()
    assert main(["compare", str(copy), str(undisturbed), "--bootstrap_samples=200"]) == 0
    assert f"{copy}: {both[0].lower()}{both[1:]}" in capsys.readouterr().err


def test_patches_of_each_fold_that_trained_it_are_counted(
    undisturbed: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, root = tmp_path / "crossval_0", tmp_path / "same_names"
    shutil.copytree(undisturbed, copy)
    for fold in (0, 1):
        checkpoint = torch.load(copy / f"fold_{fold}/checkpoints/last.ckpt", weights_only=True)
        other = torch.load(undisturbed / f"fold_{1 - fold}/checkpoints/last.ckpt", weights_only=True)["trained"]
        checkpoint["trained"] = {**other, "known": False}  # as of weights that had been trained on the other fold
        torch.save(checkpoint, copy / f"fold_{fold}/checkpoints/last.ckpt")
    assert main(["evaluate", str(copy), "--bootstrap_samples=200"]) == 0
    assert json.loads((copy / "report.json").read_text())["training_overlap"] == 120
    shutil.copytree(drawn, root, ignore=shutil.ignore_patterns(".pcam_cache"))
    for file in (root / "train").iterdir():  # of these patches nothing is known
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    capsys.readouterr()
    assert main(["evaluate", str(copy), f"--root={root}", "--bootstrap_samples=200"]) == 0
    printed = capsys.readouterr().err
    assert f"no images: the pixels in {root} differ from those that trained {copy / 'fold_0'}" in printed
    assert json.loads((copy / "report.json").read_text())["training_overlap"] is None


def test_each_fold_is_scored_by_its_last_epoch(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best one was chosen by the very patches that it would be scored on."""
    shutil.copytree(undisturbed.parents[2], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    data = Path(yaml.safe_load((FOLDER / "config.yaml").read_text())["data"]["root"])
    for pattern in ("oof*.csv", "predictions_*.csv", "submission.csv"):
        for path in FOLDER.glob(pattern):
            path.unlink()
    for fold in (0, 1):
        best = FOLDER / f"fold_{fold}/checkpoints/best.ckpt"
        checkpoint = torch.load(best, weights_only=True)
        checkpoint["state_dict"] = {name: -value for name, value in checkpoint["state_dict"].items()}
        torch.save(checkpoint, best)
    assert main(_args(data)) == 0
    for name in ("oof.csv", "submission.csv"):
        assert (FOLDER / name).read_bytes() == (undisturbed / name).read_bytes()


def test_another_test_part_is_predicted_again(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed.parents[2], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    data = Path(yaml.safe_load((FOLDER / "config.yaml").read_text())["data"]["root"])
    before = (FOLDER / "submission.csv").read_bytes()
    record = json.loads((FOLDER / "crossval.json").read_text())
    (FOLDER / "crossval.json").write_text(json.dumps({**record, "test": "of other files"}))
    (FOLDER / "submission.csv").unlink()
    assert main(_args(data)) == 0
    assert "all folds predict it again" in capsys.readouterr().err
    assert (FOLDER / "submission.csv").read_bytes() == before


def test_ids_stay_the_text_that_they_are(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(undisturbed.parents[2], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    data = Path(yaml.safe_load((FOLDER / "config.yaml").read_text())["data"]["root"])
    before = (FOLDER / "submission.csv").read_text()
    first, second = (line.split(",")[0] for line in before.splitlines()[1:3])
    for fold in (0, 1):
        file = FOLDER / f"predictions_{fold}.csv"
        content = file.read_text().replace(first, "NA").replace(second, "0123456789")
        file.unlink()  # a link of the fold's own
        file.write_text(content)
    for name in ("oof.csv", "submission.csv"):
        (FOLDER / name).unlink()
    assert main(_args(data)) == 0
    assert (FOLDER / "submission.csv").read_text() == before.replace(first, "NA").replace(second, "0123456789")


def test_what_is_wrong_leaves_no_folder(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*_args(drawn), "--model.weights=nowhere.pt"]) == 2
    assert "error: --model.weights nowhere.pt: no such file" in capsys.readouterr().err
    assert not Path("lightning_logs/base").exists()


def test_finished_it_does_nothing_more_and_another_recipe_starts_anew(
    undisturbed: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(undisturbed.parents[2])
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.ckpt")}
    assert main(_args(drawn)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.ckpt")}
    assert main([*_args(drawn), "--trainer.devices=2"]) == 2
    assert "crossval trains on one device" in capsys.readouterr().err
    assert not (undisturbed.parent / "crossval_1").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--folds=1"], "--folds 1: should be at least"),
        (["--ckpt_path=last"], "unrecognized arguments: --ckpt_path"),
        (["--data.fold=1", "--data.folds=2"], "crossval runs all folds"),
        (["--trainer.limit_val_batches=1"], "crossval validates on all held-out patches"),
        (["--model.lr=-1"], "--model.lr -1"),
    ],
)
def test_complaints(flags: list[str], expected: str, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args: list[Any] = [*_args(drawn), *flags]
    assert main(args) == 2
    assert expected in capsys.readouterr().err
    assert not Path("lightning_logs").exists()


def test_an_edited_map_of_slides_starts_anew(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever folds the edit changes: nobody finds out after hours that they do not go together."""
    known = pd.read_csv(drawn / "patch_id_wsi_full.csv")
    args = [*_args(drawn), "--data.slides=map.csv", "--trainer.max_epochs=1"]
    for number, table in enumerate((known, known.replace(known["wsi"].iloc[0], "renamed"))):
        table.to_csv("map.csv", index=False)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(TRAINER, stopping(Stop(), [2]))  # after the first fold is fitted
            main(args)
        assert len(list(FOLDER.parent.glob("crossval_*"))) == number + 1


def test_a_test_part_that_is_gone_leaves_its_submission(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Path
) -> None:
    shutil.copytree(undisturbed.parents[2], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    before = {path: path.read_bytes() for path in FOLDER.glob("*.csv")}
    monkeypatch.setattr(module, "parts", lambda root, columns: ["train"])
    assert main(_args(drawn)) == 0
    assert {path: path.read_bytes() for path in FOLDER.glob("*.csv")} == before
