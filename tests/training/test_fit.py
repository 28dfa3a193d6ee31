"""fit: what a run leaves behind, and that a run stopped and resumed is the run never stopped."""

import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
import yaml
from conftest import CONFIGS, FAST, LOGGED, TRAINER, MakeFolder, read_metrics, stopping
from forked import Forked, run_code
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pcam_lightning import __version__
from pcam_lightning.cli.main import main
from pcam_lightning.models.backbones import BACKBONES
from pcam_lightning.training.best_and_last import BestAndLastCheckpoint
from pcam_lightning.utils.run_dir import Run, create_run

BASE = str(CONFIGS / "base.yaml")
RUNS = Path("lightning_logs") / "base"


def test_a_run_is_a_folder_that_has_it_all(trained: Path, drawn: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if "events.out" not in path.name}
    assert names == {
        "config.yaml", "split.csv", "metrics.csv", "checkpoints", "checkpoints/best.ckpt", "checkpoints/last.ckpt"
    }  # fmt: skip
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["data"]["root"] == str(drawn)
    assert config["data"]["batch_size"] == 32
    assert config["trainer"]["max_epochs"] == 2
    split = pd.read_csv(trained / "split.csv")
    assert split["split"].value_counts().to_dict() == {"train": 97, "val": 23}
    metrics = pd.read_csv(trained / "metrics.csv")
    assert list(metrics["epoch"]) == [1, 2]
    for name in ("loss", "auroc", "accuracy"):
        assert metrics[[f"train/{name}", f"val/{name}"]].notna().all().all()


def _hparams(run: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = EventAccumulator(str(run)).Reload().PluginTagToContent("hparams")
    return found


def test_tensorboard_has_curves_rate_speed_and_options(trained: Path) -> None:
    events = EventAccumulator(str(trained)).Reload()
    names = set(events.Tags()["scalars"])
    curves = {f"{stage}/{name}" for stage in ("train", "val") for name in ("loss", "auroc", "accuracy")}
    assert curves | {"train/lr", "train/patches_per_second", "train/waiting_for_data", "val/best_auroc"} == names
    assert all(0 < event.value < 1 for event in events.Scalars("train/waiting_for_data"))
    best = pd.read_csv(trained / "metrics.csv")["val/auroc"].max()
    assert events.Scalars("val/best_auroc")[-1].value == pytest.approx(best)
    assert b"batch_size" in _hparams(trained)["_hparams_/session_start_info"]


def test_a_checkpoint_says_where_it_comes_from(trained: Path, drawn: Path) -> None:
    best = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["init_weights"] == "none"
    recorded = best["pcam"]["data"]
    assert recorded == {"root": str(drawn), "patches": 120, "pixels": recorded["pixels"], "labels": recorded["labels"]}
    assert all(re.fullmatch("[0-9a-f]{64}", recorded[name]) for name in ("pixels", "labels"))
    assert best["pcam"]["split"]["val"] == 23
    assert "weights" not in best["hyper_parameters"]
    assert not any("_orig_mod" in key for key in best["state_dict"])


def test_end_of_fit_prints_the_next_command(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.max_epochs=1", *FAST]) == 0
    message = capsys.readouterr().err
    assert re.search(r"data: .*: 97 patches \(.*\d slides\) to train on, 23 patches \(.*\) to validate", message)
    assert "timm/test_efficientnet from random weights" in message
    assert "freeze_epochs is skipped" in message
    assert "of 23 validation patches are of slides that train it too" in message
    assert re.search(r"best: epoch 1, val/auroc 0\.\d{4}", message)
    assert "tensorboard --logdir lightning_logs" in message
    command = re.search(r"python -m pcam_lightning (predict --ckpt_path \S+)", message)
    assert command
    assert main([*command.group(1).split(), "--trainer.accelerator=cpu"]) == 0
    run = RUNS / "version_0"
    assert (run / "submission.csv").is_file()
    assert (run / "checkpoints" / "last.ckpt").samefile(run / "checkpoints" / "best.ckpt")  # one epoch is both


def test_same_seed_same_metrics(drawn: Path, trained: Path) -> None:
    assert main(["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.max_epochs=2", *LOGGED]) == 0
    pd.testing.assert_frame_equal(read_metrics(RUNS / "version_0"), read_metrics(trained), check_exact=True)


def test_metrics_do_not_depend_on_how_often_steps_are_logged(drawn: Path, trained: Path) -> None:
    args = ["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.max_epochs=2", *LOGGED]
    assert main([*args, "--trainer.log_every_n_steps=6"]) == 0  # steps, of which the second epoch alone has the sixth
    pd.testing.assert_frame_equal(read_metrics(RUNS / "version_0"), read_metrics(trained), check_exact=True)


def test_a_compiler_that_is_not_there_is_found_out_before_a_folder_is_claimed(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: fail)
    args = ["fit", "-c", BASE, "--data.root", str(drawn), "--model.compile=true", *FAST]
    assert main(args) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: --model.compile true: .* \(no C\+\+ compiler\); leave the option out.*", error)
    assert not Path("lightning_logs").exists()


def test_resumed_without_clipping_the_optimizer_is_fused_again(drawn: Path) -> None:
    args = ["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.limit_train_batches=1", *FAST]
    assert main([*args, "--trainer.max_epochs=1", "--trainer.gradient_clip_val=1"]) == 0
    resuming = ["--ckpt_path=last", "--trainer.max_epochs=2", "--trainer.gradient_clip_val=null"]
    assert main([*args, *resuming]) == 0
    last = torch.load(RUNS / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["fused"]
    assert last["global_step"] == 2


def test_train_on_everything(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", "-c", BASE, "--data.root", str(drawn), "--data.val_fraction=0", "--trainer.max_epochs=1", *FAST]
    assert main(args) == 0
    assert "last.ckpt counts" in capsys.readouterr().err
    checkpoints = RUNS / "version_0" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
    assert main(["predict", "--ckpt_path", str(checkpoints / "last.ckpt"), "--trainer.accelerator=cpu"]) == 0
    assert main(["validate", "--ckpt_path", str(checkpoints / "last.ckpt"), "--trainer.accelerator=cpu"]) == 2
    assert "held nothing out" in capsys.readouterr().err


def test_an_older_split_is_taken_over(drawn: Path, trained: Path) -> None:
    split = str(trained / "split.csv")
    args = ["fit", "-c", BASE, "--data.root", str(drawn), "--data.split_file", split, "--data.split_seed=7", *FAST]
    assert main([*args, "--trainer.max_epochs=1"]) == 0
    assert (RUNS / "version_0" / "split.csv").read_text() == (trained / "split.csv").read_text()


def test_last_without_a_run_is_an_error(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", BASE, "--ckpt_path", "last", "--data.root", str(drawn), *FAST]) == 2
    assert re.search(r"error: lightning_logs/base: no run with a last.ckpt", capsys.readouterr().err)
    assert not Path("lightning_logs").exists()


def test_resuming_with_more_epochs_stays_in_the_run(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((run_copy / "config.yaml").read_text())
    before = read_metrics(run_copy)
    # Nothing of the first command is given again: root, weights and batch size come from the run.
    assert main(["fit", "-c", BASE, "--ckpt_path", "last", "--trainer.max_epochs=3"]) == 0
    after = read_metrics(run_copy)
    assert list(after["epoch"]) == [1, 2, 3]
    pd.testing.assert_frame_equal(after.iloc[:2], before, check_exact=True)
    assert [path.name for path in run_copy.parent.iterdir()] == ["version_0"]
    config["trainer"]["max_epochs"] = 3
    assert yaml.safe_load((run_copy / "config.yaml").read_text()) == config
    assert "version_0, 3 epochs" in capsys.readouterr().err


@pytest.mark.parametrize("config", [["--config=" + BASE], ["-c" + BASE, "--config", BASE]])
def test_resuming_finds_its_run_however_the_config_is_named(config: list[str], run_copy: Path) -> None:
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs=3", *config]) == 0
    assert list(read_metrics(run_copy)["epoch"]) == [1, 2, 3]


def test_resuming_refuses_another_split_and_a_finished_run(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = (run_copy / "checkpoints" / "last.ckpt").read_bytes()
    resume = ["fit", "-c", BASE, "--ckpt_path", "last"]
    assert main(resume) == 2
    assert re.search(r"error: --ckpt_path: has had 2 epochs already; a higher --trainer", capsys.readouterr().err)
    assert main([*resume, "--trainer.max_epochs=3", "--data.split_seed=7"]) == 2
    assert re.search(r"error: .*version_0: the patches or their split differ from this run", capsys.readouterr().err)
    assert (run_copy / "checkpoints" / "last.ckpt").read_bytes() == last


def test_a_new_run_from_an_older_checkpoint_has_a_best_of_its_own(run_copy: Path, drawn: Path) -> None:
    state = torch.load(run_copy / "checkpoints" / "last.ckpt", weights_only=True)
    state["callbacks"]["BestAndLastCheckpoint"]["best_score"] = 1.0
    torch.save(state, "older.ckpt")
    args = ["fit", "-c", BASE, "--ckpt_path", "older.ckpt", "--data.root", str(drawn), "--trainer.max_epochs=3", *FAST]
    assert main(args) == 0
    assert (run_copy.parent / "version_1" / "checkpoints" / "best.ckpt").is_file()
    assert list(read_metrics(run_copy.parent / "version_1")["epoch"]) == [3]


# A process of its own that sends itself a signal in the middle of an epoch.
_STOPPED = """
import ctypes, os, sys
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.cli.main import main

def stop(model, *args):
    if model.current_epoch == int(sys.argv[2]) and model.global_step % 4 == 2:
        # Within a callback from C, where an exception would be printed and lost.
        ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), int(sys.argv[1])))()

PCamClassifier.on_train_batch_end = stop
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "status", "epoch"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1), (signal.SIGTERM, 143, 0)]
)
def test_stopped_and_resumed_is_never_stopped(
    number: signal.Signals, status: int, epoch: int, drawn: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.max_epochs=2", *LOGGED]
    done = run_code(_STOPPED, int(number), epoch, *args)
    assert done.returncode == status, done.stderr
    assert not re.search("Traceback|Exception ignored|Received|Detected", done.stderr)
    run = RUNS / "version_0"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == max(epoch - 1, 0)
    tags = EventAccumulator(str(run)).Reload().Tags()
    assert ("val/best_auroc" in tags["scalars"]) == (epoch > 0)
    if epoch:  # on the page of options and scores, stopped or not
        assert b"batch_size" in _hparams(run)["_hparams_/session_start_info"]
    assert f"last.ckpt is of the {'last whole epoch' if epoch else 'start'}. " in done.stderr
    hint = re.search(r"Resume with: python -m pcam_lightning (fit .*)", done.stderr)
    assert hint
    assert main(shlex.split(hint.group(1))) == 0
    assert f"run: {run} resumes at epoch {epoch + 1} of 2\n" in capsys.readouterr().err
    pd.testing.assert_frame_equal(read_metrics(run), read_metrics(trained), check_exact=True)
    for name in ("best", "last"):
        resumed, straight = (
            torch.load(place / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
            for place in (run, trained)
        )
        assert all(torch.equal(resumed[key], straight[key]) for key in straight)


@pytest.mark.process
def test_extended_run_resumes_again_without_max_epochs(run_copy: Path) -> None:
    args = ["fit", "-c", BASE, "--ckpt_path", "last", "--trainer.max_epochs=4"]
    assert run_code(_STOPPED, int(signal.SIGTERM), 3, *args).returncode == 143
    assert main(["fit", "-c", BASE, "--ckpt_path", "last"]) == 0
    assert list(read_metrics(run_copy)["epoch"]) == [1, 2, 3, 4]


def _no_network(*args: object, **kwargs: object) -> None:
    raise OSError("no network")


def test_demo_run_without_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.hub.urlopen", _no_network)
    monkeypatch.setattr("pcam_lightning.training.demo_run.TRAIN", 80)
    monkeypatch.setattr("pcam_lightning.training.demo_run.TEST", 20)
    assert main(["fit", "-c", BASE, "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.crop=48"]) == 0
    message = capsys.readouterr().err
    assert message.count("NO DATA") == 1
    assert "batch size 64 instead of 512" in message
    assert "This was a demo run on synthetic tissue" in message
    assert re.search(r"warning: ImageNet weights .* cannot be downloaded; tried .* In this demo run alone", message)
    run = RUNS / "version_0"
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["batch_size"] == 64
    assert b"imagenet" not in _hparams(run)["_hparams_/session_start_info"]  # it began with random weights
    predict = ["predict", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--trainer.accelerator=cpu"]
    assert main(predict) == 0
    assert len(pd.read_csv(run / "submission.csv")) == 20
    message = capsys.readouterr().err
    assert message.count("SYNTHETIC TISSUE: ") == 1
    assert "Synthetic tissue: nothing to submit." in message
    assert main(["evaluate", str(run)]) == 0
    assert "Synthetic tissue. Its scores say nothing about real patches." in capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert "Synthetic tissue" in page
    # Where the cache was emptied meanwhile, tissue is drawn again.
    shutil.rmtree(tmp_path / "cache" / "pcam_lightning" / f"demo-{__version__}")
    assert main([*predict, "--overwrite"]) == 0
    assert len(pd.read_csv(run / "submission.csv")) == 20


def test_weights_that_cannot_be_fetched_stop_a_run_on_real_data(
    kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.hub.urlopen", _no_network)
    assert main(["fit", "-c", BASE, "--data.root", str(kaggle()), "--trainer.accelerator=cpu"]) == 2
    assert re.search(r"error: ImageNet weights .*--model.weights PATH .*--model.weights none", capsys.readouterr().err)
    assert not Path("lightning_logs").exists()


def test_imagenet_weights_freeze_the_first_epoch(
    drawn: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(trained / "checkpoints" / "best.ckpt")  # any weights that are not random
    args = [
        "fit",
        "-c",
        BASE,
        "--data.root",
        str(drawn),
        "--trainer.max_epochs=2",
        *FAST[1:],
        "--model.weights",
        weights,
    ]
    assert main(args) == 0
    assert "freeze_epochs is skipped" not in capsys.readouterr().err
    last = torch.load(RUNS / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["init_weights"] == weights


class StopInTheSecondEpoch(L.Callback):
    """Ctrl-C."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_a_number_of_steps_is_the_same_run_resumed(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["fit", "-c", BASE, "--data.root", str(drawn), *FAST, "--trainer.max_epochs=-1", "--trainer.max_steps=10"]
    assert main(args) == 0
    with monkeypatch.context() as patch:
        patch.setattr(TRAINER, stopping(StopInTheSecondEpoch(), [0]))
        assert main(args) == 130
    assert main(["fit", "-c", BASE, "--ckpt_path=last"]) == 0
    whole, resumed = (read_metrics(RUNS / f"version_{number}") for number in (0, 1))
    assert list(whole["step"]) == [4, 8, 10]
    pd.testing.assert_frame_equal(whole, resumed, check_exact=True)
    assert main(["fit", "-c", BASE, "--ckpt_path=last"]) == 2


def test_fast_dev_run_makes_no_run(drawn: Path) -> None:
    assert main(["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.fast_dev_run=true", *FAST]) == 0
    assert not Path("lightning_logs").exists()


@pytest.mark.process
def test_runs_at_once_get_folders_of_their_own() -> None:
    code = (
        "from pathlib import Path; from pcam_lightning.utils.run_dir import create_run; "
        "print(create_run(Path('r')).folder)"
    )
    claimed = {process.wait().stdout.strip() for process in [Forked(code) for _ in range(4)]}
    assert claimed == {str(Path("r") / f"version_{n}") for n in range(4)}


def test_a_folder_that_another_run_has_just_made_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Path("r").absolute()
    (runs / "version_0").mkdir(parents=True)
    listed = Path.iterdir

    def before_it_was_made(path: Path) -> Iterator[Path]:
        return iter([]) if path == runs else listed(path)

    monkeypatch.setattr(Path, "iterdir", before_it_was_made)
    assert create_run(runs).folder == runs / "version_1"


def _keep(keeper: BestAndLastCheckpoint, scores: list[float], first: int = 0) -> None:
    """Have checkpoints kept of epochs with these scores; a file holds the number of its epoch."""
    for epoch, score in enumerate(scores, first):
        trainer: Any = SimpleNamespace(
            callback_metrics={"val/auroc": torch.tensor(score)},
            current_epoch=epoch,
            global_step=4 * epoch + 4,
            is_global_zero=True,
            sanity_checking=False,
            save_checkpoint=lambda path, epoch=epoch, **_: (
                path.with_suffix(".tmp").write_text(str(epoch)) and path.with_suffix(".tmp").replace(path)
            ),
        )
        keeper.on_validation_end(trainer, None)  # type: ignore[arg-type]
        keeper.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]


def test_best_checkpoint_is_of_the_earlier_of_two_equal_scores_resumed_or_not() -> None:
    keeper, run = BestAndLastCheckpoint(), Run(Path("run"))
    run.best.parent.mkdir(parents=True)
    keeper.run = run
    _keep(keeper, [0.7, 0.9, 0.9])
    assert (run.best.read_text(), run.last.read_text()) == ("1", "2")
    resumed = BestAndLastCheckpoint()
    resumed.run, resumed.resuming = run, True
    resumed.load_state_dict(keeper.state_dict())
    _keep(resumed, [0.8, 0.9], 3)
    assert (run.best.read_text(), run.last.read_text(), resumed.best_epoch) == ("1", "4", 1)
    _keep(resumed, [0.95], 5)
    assert (run.best.read_text(), run.last.read_text()) == ("5", "5")


@pytest.mark.parametrize("name", [*BACKBONES, "timm/vit_small_patch16_224"])
def test_each_network_trains_saves_and_predicts(name: str, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), "--model.backbone", name, *FAST]
    one = ["--data.batch_size=4", "--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
    assert main([*fit, *one]) == 0
    (checkpoint,) = Path("lightning_logs").glob("base/version_0/checkpoints/last.ckpt")
    limit = yaml.safe_load((checkpoint.parents[1] / "config.yaml").read_text())["trainer"]["limit_val_batches"]
    assert isinstance(limit, int)
    assert main(["predict", "--ckpt_path", str(checkpoint), "--trainer.accelerator=cpu"]) == 0
    assert len(pd.read_csv(checkpoint.parents[1] / "submission.csv")) == 40


@pytest.mark.parametrize("option", ["lr=0.5", "weight_decay=0.5", "optimizer=sgd"])
@pytest.mark.parametrize("checkpoint", ["last", "older.ckpt"])
def test_optimizer_state_is_restored(
    option: str, checkpoint: str, run_copy: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run_copy / "checkpoints" / "last.ckpt", "older.ckpt")
    args = ["fit", "-c", BASE, "--ckpt_path", checkpoint, "--data.root", str(drawn), "--trainer.max_epochs=3", *FAST]
    assert main([*args, f"--model.{option}"]) == 2
    assert "a resumed optimizer keeps its options; use --model." in capsys.readouterr().err
    assert [path.name for path in run_copy.parent.iterdir()] == ["version_0"]


def test_options_of_averaging_that_keep_random_weights_are_refused(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = ["--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging"]
    late += ["--trainer.callbacks.update_starting_at_step=100"]
    assert main(["fit", "-c", BASE, "--data.root", str(drawn), *FAST, *late]) == 2
    assert (
        "pcam_lightning.training.weight_averaging.ExponentialMovingAverage has no need of them"
        in capsys.readouterr().err
    )


def _slide_map(drawn: Path, table: pd.DataFrame) -> list[str]:
    table.to_csv("map.csv", index=False)
    root = Path("kaggle")
    if not root.exists():
        shutil.copytree(drawn, root, ignore=shutil.ignore_patterns("patch_id_wsi*"))
    return ["fit", "-c", BASE, "--data.root", str(root), "--trainer.max_epochs=1", *FAST]


def test_slides_their_unknown_ones_and_a_split_file_beside_them(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random split is reported; whole slides are not; unknown slides are reported as possible leakage."""
    known = pd.read_csv(drawn / "patch_id_wsi_full.csv")
    args = _slide_map(drawn, known)
    assert main(args) == 0
    message = capsys.readouterr().err
    assert "val/auroc will be optimistic, by 0.027 to 0.037 on the data in README" in message
    assert "the slides command makes one from PCam's own files" in message
    fold = ["--data.folds=2", "--data.slides=map.csv"]
    assert main([*args, *fold]) == 0
    message = capsys.readouterr().err
    assert re.search(r"data: .* patches \(.* tumor, \d slides\) to train on, .* \d slides\) to validate\.", message)
    assert "optimistic" not in message
    split = RUNS / "version_1" / "split.csv"
    assert main([*args, f"--data.split_file={split}"]) == 0
    assert "val/auroc may be optimistic: patches of one slide may be on both sides" in capsys.readouterr().err
    assert main([*args, f"--data.split_file={split}", "--data.slides=map.csv"]) == 0
    assert "optimistic" not in capsys.readouterr().err
    assert split.read_text() == (RUNS / "version_3" / "split.csv").read_text()
    at_random = RUNS / "version_0" / "split.csv"
    assert main([*args, f"--data.split_file={at_random}", "--data.slides=map.csv"]) == 0
    assert (
        f"Leave --data.split_file out: {at_random.absolute()} separates patches of one slide."
        in capsys.readouterr().err
    )
    _slide_map(drawn, known.iloc[10:])
    assert main([*args, *fold]) == 2
    assert "10 of 120 training ids have no slide there" in capsys.readouterr().err
    assert main([*args, *fold, "--data.unknown_slides=as_one_slide"]) == 0
    assert "10 patches are of unknown slides, which may be on both sides. " in capsys.readouterr().err
