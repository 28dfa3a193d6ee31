"""evaluate and compare: pages and numbers of a run, a cross-validation or a file; what is said where they cannot be."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from pcam_lightning import evaluate
from pcam_lightning.cli.main import main
from pcam_lightning.training.feature_distance import FeatureDistance

FEW = "--bootstrap_samples=200"


def _predictions(path: Path, *, slides: bool = True, seed: int = 0, shift: float = 0.0) -> pd.DataFrame:
    """Write predictions of 20 slides whose scores differ by slide, twice as sure as they should be, and noisy."""
    rng, slide = np.random.default_rng(1), np.repeat(np.arange(20), 40)
    truth = rng.normal(0, 2, 800) + rng.normal(0, 1, 20)[slide]
    label = (rng.random(800) < expit(truth)).astype(int)
    logit = 2 * (truth + (1 - shift) * np.random.default_rng(seed).normal(0, 1, 800))
    rows = pd.DataFrame({"id": [f"p{n:04d}" for n in range(800)], "label": label, "logit": logit})
    if slides:
        rows["slide"] = [f"<b>slide {n}</b>" for n in slide]
    rows.to_csv(path, index=False)
    return rows


def test_a_file_of_predictions_with_slides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _predictions(tmp_path / "mine.csv")
    assert main(["evaluate", str(tmp_path / "mine.csv"), FEW]) == 0
    report = json.loads((tmp_path / "mine_report.json").read_text())
    assert report["auroc"]["value"] == pytest.approx(roc_auc_score(rows["label"], rows["logit"]))
    assert report["auroc"]["low"] < report["auroc"]["value"] < report["auroc"]["high"]
    assert (report["clusters"], report["clustered_by"], report["cross_fitted_over"]) == (20, "slides", "slides")
    assert report["temperature"] > 1.3
    assert report["calibration"]["calibrated"]["nll"] < report["calibration"]["as_it_is"]["nll"]
    assert [row["wrong"] for row in report["slides"]] == sorted(
        (row["wrong"] for row in report["slides"]), reverse=True
    )
    page = (tmp_path / "mine_report.html").read_text()
    assert "too narrow" not in page
    assert "<b>slide" not in page  # what comes from files is escaped
    assert page.count("<svg") == 7
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched
    assert "95 %" in capsys.readouterr().err


def test_without_slides_the_interval_is_called_too_narrow(tmp_path: Path) -> None:
    _predictions(tmp_path / "mine.csv", slides=False)
    assert main(["evaluate", str(tmp_path / "mine.csv"), FEW]) == 0
    assert "Intervals are too narrow: slides are unknown" in (tmp_path / "mine_report.html").read_text()
    assert json.loads((tmp_path / "mine_report.json").read_text())["clustered_by"] == "patches"


def test_a_submission_and_its_answers(run_copy: Path, drawn: Path) -> None:
    plain = ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    for command in ("predict", "test"):
        assert main([command, "--ckpt_path", str(run_copy / "checkpoints" / "best.ckpt"), *plain]) == 0
    answers = ["--labels", str(drawn / "answers.csv")]
    assert main(["evaluate", str(run_copy / "submission.csv"), *answers, FEW]) == 0
    report = json.loads((run_copy / "submission_report.json").read_text())
    assert not (run_copy / "report.json").exists()  # predict --calibrate takes nothing that test labels had a say in
    assert report["labels_without_prediction"] == 0
    score = json.loads((run_copy / "test.json").read_text())["test/auroc"]
    assert report["auroc"]["value"] == pytest.approx(score, abs=1e-6)


def test_a_run_is_validated_and_its_temperature_kept_for_predict(
    run_copy: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = ["--slides", str(drawn / "patch_id_wsi_full.csv")]
    assert main(["evaluate", str(run_copy), *slides, FEW]) == 0
    report = json.loads((run_copy / "report.json").read_text())
    assert report["auroc"]["value"] == pytest.approx(pd.read_csv(run_copy / "metrics.csv")["val/auroc"].max(), abs=1e-6)
    assert report["leak"] == "This score is optimistic: 23 of 23 validation patches are of slides that train it too."
    assert "This score is optimistic" in (run_copy / "report.html").read_text()
    assert "data:image/png" in (run_copy / "report.html").read_text()
    best = ["--ckpt_path", str(run_copy / "checkpoints" / "best.ckpt"), "--trainer.accelerator=cpu"]
    logits = []
    for flags in ([], ["--calibrate", "--overwrite"]):
        assert main(["predict", *best, *flags]) == 0
        logits.append(pd.read_csv(run_copy / "predictions.csv")["logit"])
    assert logits[1].to_numpy() == pytest.approx((logits[0] / report["temperature"]).to_numpy(), rel=1e-5)
    assert main(["predict", *best, "--calibrate", "--model.tta=d4"]) == 2
    assert "its temperature is of tta none, and this is tta d4" in capsys.readouterr().err


def test_a_certain_leak_comes_before_one_that_may_be(
    run_copy: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = run_copy / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["trained"] |= {"origins": ["copies"], "known": False}  # as of a run that started from pcam
    torch.save(checkpoint, best)
    assert main(["evaluate", str(run_copy), "--slides", str(drawn / "patch_id_wsi_full.csv"), FEW, "--json"]) == 0
    leak = (
        "This score is optimistic: 23 of 23 validation patches are of slides that train it too. This score may be "
        "optimistic: the network was trained on copies, and these may be of the same slides."
    )
    printed = capsys.readouterr()
    assert leak in printed.err
    assert json.loads(printed.out) == json.loads((run_copy / "report.json").read_text())
    assert json.loads(printed.out)["leak"] == leak
    assert f"python -m pcam_lightning explain {run_copy}" in printed.err  # what to run next
    assert leak in (run_copy / "report.html").read_text()
    slides = ["--slides", str(drawn / "patch_id_wsi_full.csv")]
    assert main(["compare", str(run_copy), str(run_copy), *slides, FEW, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["first"]["leak"] == leak  # progress bars of a validation go to stderr
    assert f"{run_copy}: this score is optimistic: 23 of 23 validation patches" in printed.err


def test_labels_without_a_prediction_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _predictions(tmp_path / "all.csv", slides=False)
    rows[["id", "label"]].assign(id=rows["id"] + ".tif").to_csv(tmp_path / "answers.csv", index=False)
    rows[["id", "logit"]].iloc[:200].to_csv(tmp_path / "mine.csv", index=False)
    assert main(["evaluate", str(tmp_path / "mine.csv"), "--labels", str(tmp_path / "answers.csv"), FEW]) == 0
    report = json.loads((tmp_path / "mine_report.json").read_text())
    assert (report["patches"], report["labels_without_prediction"]) == (200, 600)
    message = f"600 of the 800 patches in {tmp_path / 'answers.csv'} have no prediction and are not scored."
    assert message in capsys.readouterr().err
    assert report["warnings"][0] == message
    page = (tmp_path / "mine_report.html").read_text()
    assert message in page
    assert "<code>evaluate --slides FILE</code> (id,wsi) for intervals over slides." in page


def test_a_temperature_is_of_one_checkpoint(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_copy / "report.json").write_text('{"temperature": 2, "made_by": {"step": 1, "tta": "none"}}')
    assert main(["predict", "--ckpt_path", str(run_copy / "checkpoints" / "last.ckpt"), "--calibrate"]) == 2
    assert re.search(r"temperature is of step 1, and this is step 8", capsys.readouterr().err)
    assert not (run_copy / "submission.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slide": "one"}, "Intervals are too narrow: they are based on 1 slide, fewer than 20."),
        (
            {"logit": [9.0 if n % 2 else -9.0 for n in range(800)], "label": [n % 2 for n in range(800)]},
            "Temperature scaling failed",
        ),
        ({"slide": "one"}, "Threshold and temperature are cross-fitted over patches, because there are too few"),
        ({"fold": 0}, "slides are unknown"),  # and one fold is none to fit without
    ],
)
def test_what_cannot_be_scored_is_an_error(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _predictions(tmp_path / "mine.csv", slides=False).assign(**change)
    rows.to_csv(tmp_path / "mine.v2.csv", index=False)
    assert main(["evaluate", str(tmp_path / "mine.v2.csv"), FEW]) == 0
    assert message in capsys.readouterr().err
    assert message in (tmp_path / "mine.v2_report.html").read_text()


def test_calibrate_without_a_report(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["predict", "--ckpt_path", str(run_copy / "checkpoints" / "best.ckpt"), "--calibrate"]
    assert main(args) == 2
    assert re.search(r"error: \S*report.json: no temperature there; evaluate finds that ", capsys.readouterr().err)


def test_compare_tells_the_difference_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (_predictions(tmp_path / f"{n}.csv", seed=n, shift=n / 2) for n in (0, 1))
    assert main(["compare", str(tmp_path / "1.csv"), str(tmp_path / "0.csv"), FEW]) == 0
    message = capsys.readouterr().err
    expected = roc_auc_score(other["label"], other["logit"]) - roc_auc_score(one["label"], one["logit"])
    found = re.findall(r"difference, .*: ([+-]0\.\d{4}) \(95 % ([+-]0\.\d{4}) to ([+-]0\.\d{4})\)", message)
    assert len(found) == 2
    for value, low, high in found:
        assert float(value) == pytest.approx(expected, abs=1e-4)
        assert float(low) < float(value) < float(high)
    assert "bootstrap over 20 slides" in message


def test_compare_tells_each_hospital_and_slide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (0, 1):
        rows = _predictions(tmp_path / f"{number}.csv", slides=False, seed=number)
        index = np.arange(800)
        rows = rows.assign(center=[f"h{n}" for n in index // 200], slide=[f"s{n:02d}" for n in index // 40])
        if number:
            rows.loc[rows["center"] == "h2", "logit"] *= -1
        rows.to_csv(tmp_path / f"{number}.csv", index=False)
    assert main(["compare", str(tmp_path / "1.csv"), str(tmp_path / "0.csv"), FEW]) == 0
    message = capsys.readouterr().err
    centers = re.findall(
        r"^  (h\d): (\S+) - (\S+) = (\S+) \(95 % (\S+) to (\S+), over slides\)$", message, re.MULTILINE
    )
    assert len(centers) == 4
    assert centers[0][0] == "h2"
    for _, first, second, difference, low, high in centers:
        assert float(difference) == pytest.approx(float(first) - float(second), abs=2e-4)
        assert float(low) <= float(difference) <= float(high)
    assert "difference by slide, lowest first; the 10 lowest of 20:" in message
    assert len(re.findall(r"^  s\d\d: \S+ - \S+ = \S+$", message, re.MULTILINE)) == 10


def test_numbers_go_to_stdout_as_json_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [tmp_path / "0.csv", tmp_path / "1.csv"]
    for number, path in enumerate(targets):
        _predictions(path, seed=number)
    assert main(["evaluate", str(targets[0]), FEW, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "0_report.json").read_text())
    assert main(["compare", *map(str, targets), FEW, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["patches"] == 800
    assert found["first"]["auroc"] == pytest.approx(report["auroc"]["value"])
    assert found["delong"]["value"] == pytest.approx(found["first"]["auroc"] - found["second"]["auroc"])
    assert (found["clustered_by"], found["clusters"]) == ("slides", 20)
    assert found["bootstrap"]["low"] < found["bootstrap"]["value"] < found["bootstrap"]["high"]
    slides = found["groups"]["slide"]
    assert [one["value"] for one in slides] == sorted(one["first"] - one["second"] for one in slides)
    assert main(["compare", *map(str, targets), FEW]) == 0
    assert capsys.readouterr().out == ""


def test_compare_needs_the_same_patches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _predictions(tmp_path / "one.csv")
    _predictions(tmp_path / "other.csv").iloc[1:].to_csv(tmp_path / "other.csv", index=False)
    assert main(["compare", str(tmp_path / "one.csv"), str(tmp_path / "other.csv")]) == 2
    assert "799 in common" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such run, cross-validation or CSV"),
        ("", "not a CSV of predictions"),
        ("name,logit\na,1\n", "has the columns name,logit"),
        ("id,logit\na,1\n", "evaluate takes --labels FILE (id,label), and compare a CSV"),
        ("id,label\na,0.3\n", "evaluate takes --labels FILE (id,label), and compare a CSV"),
        ("id,label,logit\na,0,1\nb,1,x\n", "not a finite number"),
        ("id,label,logit\na,0,1\nb,2,1\n", "neither 0 nor 1"),
        ("id,label,logit\na,0,1\na,1,1\n", "id a stands twice"),
        ("id,label,logit\na,0,1\nb,0,1\n", "all 2 labels are the same"),
        ("id,label,logit\na,0,1\nb,1,1\n", "too few patches"),
    ],
)
def test_complaints(content: str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "mine.csv").write_text(content)
    assert main(["evaluate", str(tmp_path / "mine.csv")]) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.glob("*report*"))


def test_of_one_slide_nothing_tells_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _predictions(tmp_path / "mine.csv").assign(slide="one").to_csv(tmp_path / "mine.csv", index=False)
    assert main(["evaluate", str(tmp_path / "mine.csv"), FEW]) == 0
    assert re.search(r"AUROC 0\.\d{4} \(no interval, over 1 slides\)", capsys.readouterr().err)
    assert json.loads((tmp_path / "mine_report.json").read_text())["auroc"]["low"] is None


def test_data_that_moved_are_named(
    run_copy: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(run_copy / "checkpoints" / "best.ckpt", weights_only=True)
    state["pcam"]["config"]["data"]["root"] = str(tmp_path / "gone")
    torch.save(state, run_copy / "checkpoints" / "best.ckpt")
    assert main(["evaluate", str(run_copy), FEW]) == 2
    assert re.search(r"error: .*gone: no such folder; .*\(If the folder has moved, set --root", capsys.readouterr().err)
    assert main(["evaluate", str(run_copy), "--root", str(drawn), FEW]) == 0
    score = pd.read_csv(run_copy / "metrics.csv")["val/auroc"].max()
    assert json.loads((run_copy / "report.json").read_text())["auroc"]["value"] == pytest.approx(score, abs=1e-6)


def test_compare_takes_runs_and_the_slides_of_either(
    run_copy: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = ["--ckpt_path", str(run_copy / "checkpoints" / "best.ckpt"), "--trainer.accelerator=cpu"]
    assert main(["validate", *best]) == 0
    rows = pd.read_csv(run_copy / "val_predictions.csv").drop(columns="slide", errors="ignore")
    rows.assign(label=rows["label"].astype(float)).to_csv("mine.csv", index=False)
    known = pd.read_csv(drawn / "patch_id_wsi_full.csv").set_index("id")["wsi"]
    rows.assign(slide=rows["id"].map(known)).to_csv("with.csv", index=False)
    for pair in (["mine.csv", "with.csv"], ["with.csv", "mine.csv"], [str(run_copy), "with.csv"]):
        assert main(["compare", *pair, FEW]) == 0
        message = capsys.readouterr().err
        assert "bootstrap over" in message
    assert f"{run_copy} (best.ckpt, selected on these patches): AUROC" in message


def test_hospitals_and_patients_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"id": [f"p{n}" for n in range(600)], "label": np.arange(600) % 2})
    rows["center"] = [f"h{n // 300}" for n in range(600)]
    rows["patient"] = [f"q{n // 20}" for n in range(600)]
    rows["slide"] = [f"s{n // 10}" for n in range(600)]
    rows["logit"] = np.where(rows["center"] == "h1", 0.5, 2.0) * (2 * rows["label"] - 1) + rng.normal(0, 1, 600)
    rows.to_csv(tmp_path / "p.csv", index=False)
    found = evaluate(tmp_path / "p.csv", bootstrap_samples=100)
    assert found.report["clustered_by"] == "patients"  # the highest level with twenty groups
    assert found.report["clusters"] == 30
    worst, best = found.report["centers"]
    assert (worst["center"], best["center"]) == ("h1", "h0")
    assert worst["low"] < worst["auroc"] < worst["high"] < best["auroc"]
    assert worst["clustered_by"] == "slides"  # of 15 patients there are too few
    assert len(found.report["patients"]) == 30
    assert len(found.report["slides"]) == 60
    text = found.page.read_text()
    assert "By center, highest error rate first" in text
    assert text.index("By center") < text.index("By patient") < text.index("By slide")


def test_patches_between_two_thresholds_are_called_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _predictions(tmp_path / "mine.csv")
    assert main(["evaluate", str(tmp_path / "mine.csv"), FEW, "--abstain", "0.05"]) == 0
    report = json.loads((tmp_path / "mine_report.json").read_text())
    found = report["abstention"]
    assert report["thresholds"]["low"] < 0 < report["thresholds"]["high"]
    assert found["normal_called_tumor"] == pytest.approx(0.05, abs=0.02)
    assert found["tumor_called_normal"] == pytest.approx(0.05, abs=0.02)
    assert 0.3 < found["kept"] < 0.95
    assert f"abstains on {1 - found['kept']:.1%} of the patches" in capsys.readouterr().err
    wrong = ((rows["logit"] > 0) != (rows["label"] == 1)).mean()
    assert found["wrong"] < wrong
    assert 0 < report["area_under_risk_coverage"]["distance from 0.5"] < wrong
    kept = sum(row["kept"] * row["patches"] for row in report["slides"]) / 800
    assert kept == pytest.approx(found["kept"])
    page = (tmp_path / "mine_report.html").read_text()
    assert "Risk and coverage, n = 800" in page
    assert "tumor called normal" in page


def test_decisions_of_a_file_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _predictions(tmp_path / "mine.csv")
    rows["decision"] = np.where(rows["logit"] > 1, "tumor", np.where(rows["logit"] < -1, "normal", "abstain"))
    rows["sd_views"] = np.random.default_rng(0).random(800)
    rows.to_csv(tmp_path / "mine.csv", index=False)
    assert main(["evaluate", str(tmp_path / "mine.csv"), FEW]) == 0
    report = json.loads((tmp_path / "mine_report.json").read_text())
    assert report["abstention"]["kept"] == pytest.approx((rows["logit"].abs() > 1).mean())
    assert report["abstention"]["error"] is None
    areas = report["area_under_risk_coverage"]
    assert areas["agreement of views or networks"] > areas["distance from 0.5"]
    assert main(["evaluate", str(tmp_path / "mine.csv"), FEW, "--abstain", "0.1"]) == 2
    rows.assign(decision="perhaps").to_csv(tmp_path / "other.csv", index=False)
    assert main(["evaluate", str(tmp_path / "other.csv"), FEW]) == 0
    assert main(["evaluate", str(tmp_path / "mine.csv"), FEW, "--abstain", "0.6"]) == 2
    printed = capsys.readouterr().err
    assert "--abstain: the file already has a column decision" in printed
    assert "other.csv: column decision is ignored, because predict does not write 'perhaps' there" in printed
    assert "error: --abstain 0.6: should be an error rate between 0 and 0.5" in printed


def test_a_runs_thresholds_decide_its_predictions(
    run_copy: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict = ["predict", "--ckpt_path", str(run_copy / "checkpoints/best.ckpt"), "--trainer.accelerator=cpu"]
    assert main([*predict, "--abstain"]) == 2
    assert main(["evaluate", str(run_copy), FEW]) == 0
    assert main([*predict, "--abstain"]) == 2
    assert capsys.readouterr().err.count("no thresholds there; evaluate with --abstain 0.05 finds those") == 2
    assert main(["evaluate", str(run_copy), FEW, "--abstain", "0.2"]) == 0
    found = json.loads((run_copy / "report.json").read_text())["thresholds"]
    capsys.readouterr()
    assert main([*predict, "--abstain"]) == 0
    rows = pd.read_csv(run_copy / "predictions.csv")
    low, high = (bound if value is None else value for value, bound in ((found["low"], -1e9), (found["high"], 1e9)))
    expected = np.where(rows["logit"] > high, "tumor", np.where(rows["logit"] < low, "normal", "abstain"))
    assert rows["decision"].tolist() == expected.tolist()
    printed = capsys.readouterr().err
    assert f"abstains on {(expected == 'abstain').mean():.1%} of 40 patches" in printed
    assert f"report.json: its thresholds are of the patches in {drawn}.\n" in printed
    assert pd.read_csv(run_copy / "submission.csv").columns.tolist() == ["id", "label"]
    assert main([*predict, "--abstain", "--model.tta=d4"]) == 2
    assert "its thresholds are of tta none, and this is tta d4" in capsys.readouterr().err
    assert (rows["ood_distance"] >= 0).all()
    features = FeatureDistance.read(run_copy / "training_features.safetensors")
    assert rows["ood"].tolist() == (rows["ood_distance"] > features.threshold).tolist()
    (run_copy / "training_features.safetensors").write_bytes(b"no")
    assert main([*predict, "--abstain"]) == 2
    assert "training_features.safetensors: missing or damaged; evaluate with --abstain 0.05" in capsys.readouterr().err
    assert main(["evaluate", str(run_copy), FEW, "--abstain", "0.2"]) == 0  # measures them again
    assert main([*predict, "--abstain"]) == 0
    assert main([*predict, "--model.tta=d4", "--output=d4"]) == 0
    assert (pd.read_csv("d4/predictions.csv")["sd_views"] > 0).any()
    report = json.loads((run_copy / "report.json").read_text())  # as of patches that trained the network
    (run_copy / "report.json").write_text(json.dumps({**report, "thresholds": None}))
    assert main([*predict, "--abstain"]) == 2


@pytest.mark.parametrize(
    ("name", "value"), [("ood_distance", ""), ("sd_views", "inf"), ("ood", ""), ("ood_distance", "far")]
)
def test_columns_of_another_kind_are_not_used(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _predictions(tmp_path / "mine.csv")
    rows.assign(**{name: [value, *["0.5"] * 799]}).to_csv(tmp_path / "mine.csv", index=False)
    assert main(["evaluate", str(tmp_path / "mine.csv"), FEW]) == 0
    assert f"mine.csv: column {name} is ignored, because" in capsys.readouterr().err
