"""predict, test and validate: everything from the checkpoint, the user's word last, a submission Kaggle takes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST, NETWORK, MakeFolder
from sklearn.metrics import roc_auc_score

from pcam_lightning.cli.main import main
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.training.predictions import (
    join_predictions,
    read_predictions_csv,
    write_predictions_csv,
    write_submission,
)
from pcam_lightning.utils.errors import UserError

CPU = "--trainer.accelerator=cpu"
BASE = str(CONFIGS / "base.yaml")


def _ckpt(run: Path) -> str:
    return str(run / "checkpoints" / "best.ckpt")


def test_submission_is_what_kaggle_takes(run_copy: Path, drawn: Path) -> None:
    assert main(["predict", "--ckpt_path", _ckpt(run_copy), CPU]) == 0
    text = (run_copy / "submission.csv").read_text()
    assert text.startswith("id,label\n")
    submission = pd.read_csv(run_copy / "submission.csv", float_precision="round_trip")
    assert list(submission["id"]) == list(pd.read_csv(drawn / "sample_submission.csv")["id"])
    assert submission["label"].between(0, 1).all()
    assert submission["label"].is_unique  # logits of half precision would tie
    assert (submission["label"].astype(str) == [row.split(",")[1] for row in text.split()[1:]]).all()
    assert [path.name for path in run_copy.parent.iterdir()] == ["version_0"]  # no folder beside the run


def test_same_predictions_are_left_alone_others_need_overwrite(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict = ["predict", "--ckpt_path", _ckpt(run_copy), CPU]
    assert main(predict) == 0
    assert main(predict) == 0
    assert "the same 40 predictions are there already" in capsys.readouterr().err
    (run_copy / "submission.csv").write_text("id,label\nmine,0.5\n")
    assert main(predict) == 2
    assert re.search(r"error: \S*submission.csv: exists already.*--overwrite", capsys.readouterr().err)
    assert "mine" in (run_copy / "submission.csv").read_text()
    assert main([*predict, "--overwrite"]) == 0
    assert "mine" not in (run_copy / "submission.csv").read_text()


def test_scores_by_id_agree_with_the_test_stage(run_copy: Path, drawn: Path) -> None:
    for command in ("predict", "test"):
        assert main([command, "--ckpt_path", _ckpt(run_copy), CPU, "--trainer.precision=32-true"]) == 0
    submission = pd.read_csv(run_copy / "submission.csv").set_index("id")["label"]
    answers = pd.read_csv(drawn / "answers.csv").set_index("id")["label"]
    message = json.loads((run_copy / "test.json").read_text())
    assert message["test/auroc"] == pytest.approx(roc_auc_score(answers, submission[answers.index]), abs=1e-6)


def test_a_compiled_run_is_predicted_without_a_compiler(run_copy: Path) -> None:
    checkpoint = torch.load(_ckpt(run_copy), weights_only=True)
    checkpoint["pcam"]["config"]["model"]["compile"] = True
    torch.save(checkpoint, _ckpt(run_copy))
    assert LoadedRun.open(_ckpt(run_copy)).inference_config()["model"]["compile"] is False


def test_validate_repeats_the_score_of_the_best_epoch(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--ckpt_path", _ckpt(run_copy), CPU]) == 0
    best = pd.read_csv(run_copy / "metrics.csv")["val/auroc"].max()
    assert json.loads((run_copy / "validate.json").read_text())["val/auroc"] == pytest.approx(best, abs=1e-6)
    assert "warning" not in capsys.readouterr().err
    assert main(["validate", "--ckpt_path", _ckpt(run_copy), "--data.split_seed=3", CPU]) == 0
    assert "not the validation part of the checkpoint's run" in capsys.readouterr().err


def test_a_machine_with_test_alone_and_a_checkpoint_moved_away(run_copy: Path, drawn: Path, tmp_path: Path) -> None:
    assert main(["predict", "--ckpt_path", _ckpt(run_copy), CPU]) == 0
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(drawn / "test", elsewhere / "data" / "test")
    shutil.copy(drawn / "sample_submission.csv", elsewhere / "data")
    shutil.copy(_ckpt(run_copy), elsewhere / "model.ckpt")
    args = ["predict", "--ckpt_path", str(elsewhere / "model.ckpt"), "--data.root", str(elsewhere / "data"), CPU]
    assert main(args) == 0
    assert (elsewhere / "submission.csv").read_text() == (run_copy / "submission.csv").read_text()


def test_what_the_user_adds_wins(run_copy: Path, kaggle: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"data:\n  root: {kaggle()}\n  batch_size: 3\n")
    assert main(["predict", "-c", str(tmp_path / "mine.yaml"), "--ckpt_path", _ckpt(run_copy), CPU]) == 0
    assert list(pd.read_csv(run_copy / "submission.csv")["id"]) == ["test003", "test002", "test001", "test000"]


def test_test_without_answers(run_copy: Path, kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--ckpt_path", _ckpt(run_copy), "--data.root", str(kaggle()), CPU]) == 2
    assert re.search(r"error: .*answers.csv: no such file", capsys.readouterr().err)


def test_a_config_whose_root_is_null_names_no_other_folder(run_copy: Path, drawn: Path) -> None:
    config = ["-c", str(CONFIGS / "base.yaml"), f"--model.backbone={NETWORK}"]
    assert main(["predict", *config, "--ckpt_path", _ckpt(run_copy), CPU]) == 0
    assert len(pd.read_csv(run_copy / "submission.csv")) == len(pd.read_csv(drawn / "sample_submission.csv"))


def test_a_part_of_the_patches_is_no_submission(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict = ["predict", "--ckpt_path", _ckpt(run_copy), "--data.batch_size=5", CPU]
    assert main([*predict, "--trainer.limit_predict_batches=2"]) == 2
    assert re.search(r"error: 10 predictions for 40 ids: .*--trainer.limit_predict_batches", capsys.readouterr().err)


def test_a_run_that_cannot_be_written(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root, as which tests may run, may write anywhere
    assert main(["predict", "--ckpt_path", _ckpt(run_copy), CPU]) == 2
    assert re.search(
        r"error: .*version_0: the result folder cannot be written; copy the checkpoint", capsys.readouterr().err
    )


def test_a_file_is_not_taken_for_a_folder(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--ckpt_path", _ckpt(run_copy), "--output=mine.csv", CPU]) == 2
    assert re.search(r"error: .*mine\.csv: takes a folder; submission\.csv", capsys.readouterr().err)
    assert not Path("mine.csv").exists()


def test_a_checkpoint_is_read_once_and_the_folder_of_a_run_is_its_best(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, plain = [], torch.load

    def load(path: Path, **how: Any) -> Any:
        read.append(path)
        return plain(path, **how)

    monkeypatch.setattr(torch, "load", load)
    assert main(["predict", "--ckpt_path", str(run_copy), CPU]) == 0
    assert len(read) == 1
    first = (run_copy / "submission.csv").read_bytes()
    assert main(["predict", "--ckpt_path", _ckpt(run_copy), CPU, "--overwrite"]) == 0
    assert (run_copy / "submission.csv").read_bytes() == first
    assert main(["evaluate", str(run_copy), "--bootstrap_samples=100"]) == 0
    assert len(read) == 3


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_no_checkpoint_no_prediction(stage: str, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([stage, "--data.root", str(drawn), *FAST]) == 2
    assert f"error: --ckpt_path is required: {stage}" in capsys.readouterr().err


def test_a_submission_needs_one_probability_for_each_id() -> None:
    ids = pd.Series(["b", "a"])
    good = pd.Series([0.25, 1.0], index=["a", "b"], dtype=np.float32)
    assert join_predictions(ids, good)["logit"].tolist() == [1.0, 0.25]
    for wrong in (good[:1], pd.concat([good, good]), good.rename({"a": "c"})):
        with pytest.raises(UserError, match=r"predictions for 2 ids: each needs one"):
            join_predictions(ids, wrong)
    predictions = pd.DataFrame({"id": ids, "logit": [0.0, 0.0], "prob": [0.5, 2.0]})
    with pytest.raises(ValueError, match="outside"):
        write_submission(Path("submission.csv"), predictions, overwrite=False)
    with pytest.raises(UserError, match="1 of 2 predictions are NaN or infinite"):
        write_submission(Path("submission.csv"), predictions.assign(prob=[0.5, np.nan]), overwrite=False)


def test_predictions_are_joined_by_id_in_whichever_order_they_come() -> None:
    """Of several processes each hands over its own share: their order is not the table's."""
    logit = pd.Series([3.0, -2.0, 1.0], index=["c", "a", "b"], dtype=np.float32)
    table = pd.DataFrame({"id": ["b", "c", "a"]})
    predictions = join_predictions(table["id"], logit)
    write_submission(Path("submission.csv"), predictions, overwrite=False)
    assert Path("predictions.csv").read_text() == "id,logit\nb,1.0\nc,3.0\na,-2.0\n"
    submission = pd.read_csv("submission.csv")
    assert list(submission["id"]) == ["b", "c", "a"]
    assert submission["label"].to_numpy() == pytest.approx([0.731059, 0.952574, 0.119203], abs=1e-6)

    table = pd.DataFrame({"id": ["a", "b", "c", "d"], "label": [0, 1, 1, 0]})  # d has no logit
    write_predictions_csv(Path("labeled.csv"), table, logit)
    assert Path("labeled.csv").read_text() == "id,label,logit\na,0,-2.0\nb,1,1.0\nc,1,3.0\n"

    table.iloc[[3, 1, 0, 2]].to_csv("answers.csv", index=False)
    rows = read_predictions_csv(Path("submission.csv"), Path("answers.csv"))
    assert list(rows["label"]) == [1, 1, 0]
    assert rows["logit"].to_numpy() == pytest.approx([1, 3, -2], abs=1e-5)


def _second(drawn: Path) -> Path:
    """Train another network, of another kind, with its own pixels' mean; return its checkpoint."""
    flags = [
        "--model.backbone=timm/test_resnet",
        "--model.normalize=own",
        "--model.stain=reinhard",
        "--seed_everything=7",
    ]
    assert main(["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.max_epochs=1", *FAST, *flags]) == 0
    return Path("lightning_logs/base/version_1/checkpoints/last.ckpt")


def _logits(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv").set_index("id")


def test_an_ensemble_is_the_mean_of_its_networks_in_any_order(run_copy: Path, drawn: Path) -> None:
    first, second = run_copy / "checkpoints" / "best.ckpt", _second(drawn)
    cpu = "--trainer.accelerator=cpu"
    for name, checkpoints in (("a", (first,)), ("b", (second,)), ("ab", (first, second)), ("ba", (second, first))):
        also = ["--ensemble", *map(str, checkpoints[1:])] if checkpoints[1:] else []
        assert main(["predict", "--ckpt_path", str(checkpoints[0]), "--output", name, cpu, *also]) == 0
    assert Path("ab/submission.csv").read_bytes() == Path("ba/submission.csv").read_bytes()
    # Logits of this short run may be hundreds, where float32 has steps of 3e-5.
    mean = (_logits(Path("a")) + _logits(Path("b"))) / 2
    assert _logits(Path("ab"))["logit"].to_numpy() == pytest.approx(mean["logit"].to_numpy(), abs=1e-5, rel=2e-7)
    assert not (run_copy / "submission.csv").exists()
    # Of one network it is the run itself.
    assert main(["predict", "--ckpt_path", str(first), cpu]) == 0
    assert (run_copy / "submission.csv").read_bytes() == Path("a/submission.csv").read_bytes()
    # The user's word on the views is for all of them.
    for name, checkpoints in (("a8", (first,)), ("b8", (second,)), ("ab8", (first, second))):
        also = ["--ensemble", *map(str, checkpoints[1:])] if checkpoints[1:] else []
        views = ["--model.tta=d4", cpu, *also]
        assert main(["predict", "--ckpt_path", str(checkpoints[0]), "--output", name, *views]) == 0
    mean = (_logits(Path("a8")) + _logits(Path("b8"))) / 2
    assert _logits(Path("ab8"))["logit"].to_numpy() == pytest.approx(mean["logit"].to_numpy(), abs=1e-5, rel=2e-7)
    assert not np.allclose(_logits(Path("ab8")), _logits(Path("ab")), atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--ensemble", "OTHER", "--output=out"],
            r"its run had --trainer.precision \S+, and that of .* set the option",
        ),
        (["--ensemble", "COPY"], "--output DIR takes them"),
        (["--ensemble", "SAME", "--output=out"], "is there twice"),
        (["--ensemble", "nowhere.ckpt", "--output=out"], "nowhere.ckpt: no such checkpoint"),
        (
            ["--ensemble", "COPY", "--output=out", "--calibrate"],
            "needs the temperature of one run",
        ),
    ],
)
def test_complaints_about_ensembles(
    flags: list[str], expected: str, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run_copy / "checkpoints" / "best.ckpt"
    shutil.copy(checkpoint, "copy.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    own = state["pcam"]["config"]["trainer"]["precision"]  # float32 on a CPU without bf16
    state["pcam"]["config"]["trainer"]["precision"] = "bf16-mixed" if own == "32-true" else "32-true"
    torch.save(state, "other.ckpt")
    names = {"COPY": "copy.ckpt", "OTHER": "other.ckpt", "SAME": str(checkpoint)}
    assert main(["predict", "--ckpt_path", str(checkpoint), *(names.get(flag, flag) for flag in flags)]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not Path("out/submission.csv").exists()


def test_networks_of_unequal_runs_are_one_ensemble_in_any_order(run_copy: Path) -> None:
    first = run_copy / "checkpoints" / "best.ckpt"
    state = torch.load(first, weights_only=True)
    state["pcam"]["config"]["trainer"]["precision"] = "32-true"
    state["pcam"]["config"]["data"]["batch_size"] = 3
    state["pcam"]["config"]["model"]["crop"] = state["hyper_parameters"]["crop"] = 64
    torch.save(state, "other.ckpt")
    for name, one, other in (("ab", str(first), "other.ckpt"), ("ba", "other.ckpt", str(first))):
        args = ["--ensemble", other, "--output", name, "--trainer.precision=bf16-mixed", CPU]
        assert main(["predict", "--ckpt_path", one, *args]) == 0
    assert Path("ab/submission.csv").read_bytes() == Path("ba/submission.csv").read_bytes()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_views_are_averaged_in_validation_and_prediction(stage: str, run_copy: Path) -> None:
    part = {"validate": "val", "test": "test"}[stage]
    seen = []
    for flags in ([], ["--model.tta=d4"], ['--model={"tta": "d4"}']):
        assert main([stage, "--ckpt_path", _ckpt(run_copy), CPU, *flags]) == 0
        seen.append(pd.read_csv(run_copy / f"{part}_predictions.csv")["logit"].to_numpy())
    assert not np.allclose(seen[0], seen[1], atol=1e-4)
    assert np.array_equal(seen[1], seen[2])
