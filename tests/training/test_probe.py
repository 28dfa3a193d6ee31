"""probe: a logistic regression on frozen features, kept as a run that every other command takes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST, NETWORK
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pcam_lightning import Config
from pcam_lightning.cli.main import main
from pcam_lightning.evaluation.interpret import features
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.training.probe import fit_logistic, probe

BASE = str(CONFIGS / "base.yaml")
RUN = Path("lightning_logs/base/probe_0")
CHECKPOINT = RUN / "checkpoints" / "best.ckpt"


def _probe(drawn: Path, *more: str, cache: str = "cache") -> int:
    return main(["probe", "-c", BASE, "--data.root", str(drawn), f"--data.cache_dir={cache}", *FAST, *more])


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_head_is_the_logistic_regression_of_the_features(tta: str, drawn: Path) -> None:
    assert _probe(drawn, f"--model.tta={tta}", "--trainer.precision=32-true") == 0
    table = pd.read_csv(RUN / "probe.csv")
    chosen = table.iloc[int(table["val/auroc"].argmax())]
    metrics = pd.read_csv(RUN / "metrics.csv")
    assert metrics["val/auroc"].item() == pytest.approx(chosen["val/auroc"], abs=1e-6)
    assert metrics["val/loss"].item() == pytest.approx(chosen["val/loss"], abs=1e-5)
    loaded = LoadedRun.open(CHECKPOINT)
    assert loaded.checkpoint["pcam"]["probe"] == {"C": chosen["C"]}

    config = Config.of_run(loaded)
    data = config.data_module()
    data.setup("fit")
    model = loaded.classifier()
    image = torch.from_numpy(data.train_store.images[data.train_store.rows(data.table["id"])])
    views = [image]
    if tta == "d4":
        views = [turned for k in range(4) for turned in (image.rot90(k, (1, 2)), image.rot90(k, (1, 2)).flip(2))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pcam_lightning.evaluation.interpret.cpu_is_faster_in_bf16", lambda: False)
        found = np.mean([features(model, view) for view in views], axis=0)
    train, label = ~data.val_mask, data.table["label"].to_numpy()
    scaler = StandardScaler().fit(found[train])
    plain = LogisticRegression(C=chosen["C"], max_iter=1000).fit(scaler.transform(found[train]), label[train])
    expected = plain.decision_function(scaler.transform(found))
    assert auroc(label[train], expected[train]) == pytest.approx(chosen["train/auroc"], abs=5e-3)
    assert main(["validate", "--ckpt_path", str(CHECKPOINT), "--trainer.accelerator=cpu"]) == 0
    saved = pd.read_csv(RUN / "val_predictions.csv").set_index("id")["logit"]
    expected_val = pd.Series(expected, index=data.table["id"])[~train]
    np.testing.assert_allclose(expit(saved.loc[expected_val.index]), expit(expected_val), atol=0.01)


def test_a_probe_is_an_ordinary_run(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _probe(drawn, "--trainer.logger=true") == 0
    message = capsys.readouterr().err
    assert re.search(rf"run: {RUN}, C [\d.e-]+, val/auroc 0\.\d+", message)
    assert f"predict --ckpt_path {CHECKPOINT}" in message
    for name in ("config.yaml", "split.csv", "metrics.csv", "probe.csv", "checkpoints/last.ckpt"):
        assert (RUN / name).is_file(), name
    assert list(RUN.glob("events.out.tfevents*"))
    assert main(["predict", "--ckpt_path", str(CHECKPOINT), "--trainer.accelerator=cpu"]) == 0
    assert len(pd.read_csv(RUN / "submission.csv")) == 40
    assert main(["evaluate", str(RUN)]) == 0
    assert (RUN / "report.html").is_file()
    assert main(["explain", str(RUN)]) == 0
    assert main(["curves", str(RUN)]) == 0
    capsys.readouterr()
    # As the start of training: its validation patches trained nothing, and no patch of it is unknown.
    fit = ["fit", "-c", BASE, "--data.root", str(drawn), *FAST, "--trainer.max_epochs=1"]
    assert main([*fit, f"--model.weights={CHECKPOINT}"]) == 0
    message = capsys.readouterr().err
    assert f"network: {NETWORK} from {CHECKPOINT} weights" in message
    assert "trained the weights that this run starts from" not in message
    assert main([*fit, f"--model.weights={CHECKPOINT}", "--data.split_seed=7"]) == 0
    assert "validation patches trained the weights that this run starts from" in capsys.readouterr().err


def test_features_are_extracted_once(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cached() -> set[Path]:
        return set(Path("cache").rglob("features-*.npy"))

    # The weights of a network are part of the key: a run's own ones stay the same.
    assert _probe(drawn) == 0
    weights = f"--model.weights={CHECKPOINT}"
    assert _probe(drawn, weights) == 0
    (file,) = cached()
    capsys.readouterr()
    stamp = file.stat().st_mtime_ns
    assert _probe(drawn, weights, "--data.split_seed=3", "--model.lr=0.5") == 0
    assert f"features: {file.absolute()}." in capsys.readouterr().err
    assert (cached(), file.stat().st_mtime_ns) == ({file}, stamp)
    other = (
        ["--model.crop=64"],
        ["--model.size=64"],
        ["--model.normalize=half"],
        ["--model.tta=d4"],
        ["--seed_everything=1"],
    )
    for number, more in enumerate(other):
        given = more if more == other[-1] else [*more, weights]
        assert _probe(drawn, *given) == 0
        assert len(cached()) == number + 2
    before = np.load(file)
    file.write_bytes(file.read_bytes()[:1000])
    assert _probe(drawn, weights) == 0
    np.testing.assert_array_equal(np.load(file), before)


def test_stages_give_more_features_and_the_checkpoint_predicts(drawn: Path) -> None:
    more = ["--model.backbone=resnet18", "--model.features=stages"]
    assert _probe(drawn, *more) == 0
    (file,) = Path("cache").rglob("features-*.npy")
    assert np.load(file).shape == (120, 512 + 64 + 128 + 256)
    assert main(["predict", "--ckpt_path", str(CHECKPOINT), "--trainer.accelerator=cpu"]) == 0
    assert len(pd.read_csv(RUN / "submission.csv")) == 40


def test_python_probes_and_returns_what_was_tried(drawn: Path) -> None:
    config = Config.load(
        BASE,
        data={"root": str(drawn), "batch_size": 32},
        model={"backbone": NETWORK, "weights": "none", "crop": 48},
        trainer={"precision": "32-true", "accelerator": "cpu", "enable_progress_bar": False, "logger": False},
    )
    result = probe(config)
    assert result.checkpoint == result.run.best
    assert result.score == pytest.approx(result.table["val/auroc"].max(), abs=1e-6)
    assert result.C in set(result.table["C"])
    assert list(result.table) == ["C", "train/auroc", "train/loss", "val/auroc", "val/loss"]
    assert not result.demo


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data.val_fraction=0", "--data.val_fraction 0: no patch is held out"),
        ("--trainer.fast_dev_run=true", "--trainer.fast_dev_run True: probe needs each patch once; use false"),
        (
            "--trainer.limit_predict_batches=1",
            "--trainer.limit_predict_batches 1: probe needs each patch",
        ),
        ("--trainer.limit_val_batches=1", "--trainer.limit_val_batches 1: probe needs each patch once; use null"),
        ("--trainer.devices=2", "--trainer.devices 2: probe runs on one device; use 1"),
        ("--data.split_file=one_class.csv", "patches of the validation part have one label"),
        ("--model.weights=nowhere.pt", "nowhere.pt: no such file"),
    ],
)
def test_what_cannot_be_probed_is_one_line(
    flag: str, message: str, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pd.read_csv(drawn / "train_labels.csv")
    held_out = rows["label"].eq(0) & (rows.index < 30)
    rows.assign(split=np.where(held_out, "val", "train"))[["id", "split"]].to_csv("one_class.csv", index=False)
    assert _probe(drawn, flag) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line
    assert not Path("lightning_logs").exists()


def test_a_probe_has_no_optimizer_to_resume(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _probe(drawn) == 0
    fit = ["fit", "-c", BASE, "--data.root", str(drawn), *FAST, "--trainer.max_epochs=1", "--ckpt_path"]
    assert main([*fit, str(CHECKPOINT)]) == 2
    assert "of a probe, which has no optimizer to resume; --model.weights" in capsys.readouterr().err
    assert main([*fit, "last"]) == 2
    assert "no run with a last.ckpt to resume" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["best", "p4m", "fast"])
def test_callbacks_of_a_recipe_are_left_out(recipe: str, drawn: Path) -> None:
    probed = ["probe", "-c", BASE, "-c", str(CONFIGS / f"{recipe}.yaml"), "--data.root", str(drawn)]
    assert main([*probed, *FAST, "--model.size=null", "--data.cache_dir=cache"]) == 0
    assert (Path("lightning_logs") / recipe / "probe_0" / "checkpoints" / "best.ckpt").is_file()


def test_a_full_disk_costs_the_cache_alone(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(file: object, array: np.ndarray) -> None:
        raise OSError("3000000 requested and 511968 written")  # as numpy does

    monkeypatch.setattr("numpy.save", full)
    assert _probe(drawn) == 0
    message = capsys.readouterr().err
    assert "cannot be written (3000000 requested and 511968 written), so that features are not kept" in message
    assert not list(Path("cache").rglob("*features*"))


def test_weights_of_patches_are_factors_of_the_fit() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(400) % 2
    found = (rng.normal(size=(400, 3)) + label[:, None]).astype(np.float32)
    val = np.arange(400) >= 300
    wrong = (np.arange(400) % 4 < 2) & ~val
    noisy = np.where(wrong, 1 - label, label)
    weighted = fit_logistic(found.copy(), noisy, val, np.where(wrong, 0, 1))[2]["val/auroc"].max()
    plain = fit_logistic(found.copy(), noisy, val)
    assert weighted > 0.8
    assert weighted > plain[2]["val/auroc"].max() + 0.1
    assert np.array_equal(fit_logistic(found.copy(), noisy, val, np.ones(400))[0], plain[0])
