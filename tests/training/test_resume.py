"""A resumed run: the same batches in the same order, the recipe and the steps that it began with, or an error."""

import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import CONFIGS, FAST, NETWORK, TRAINER, read_metrics, stopping
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.synthetic.kaggle_folder import synthesize
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.training.fit import fit
from pcam_lightning.training.options import Config
from pcam_lightning.training.predict import predict, validate
from pcam_lightning.training.probe import probe
from pcam_lightning.training.resume import check_recipe
from pcam_lightning.utils.errors import UserError

BASE = str(CONFIGS / "base.yaml")
RUNS = Path("lightning_logs") / "base"


def _fit(drawn: Path, *more: str) -> list[str]:
    return ["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.max_epochs=3", *FAST, *more]


class Stop(L.Callback):
    """Ctrl-C in an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt

    on_validation_batch_start = on_predict_batch_start = on_train_batch_start  # type: ignore[assignment]


class Rows(L.Callback):
    """Notes the rows of every training batch."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: dict[str, torch.Tensor], index: int
    ) -> None:
        self.rows.append(batch["row"].tolist())


def _state(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.fixture(scope="module")
def whole(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was never stopped, without loader workers."""
    place = tmp_path_factory.mktemp("whole")
    assert main(_fit(drawn, "--trainer.max_epochs=2", f"--trainer.default_root_dir={place}")) == 0
    return place / RUNS / "version_0"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resumed_with_workers_is_the_run_never_stopped(
    workers: int, whole: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TRAINER, stopping(Stop(1), [0]))
        assert main(_fit(drawn, "--trainer.max_epochs=2", f"--data.num_workers={workers}")) == 130
    assert main(["fit", "-c", BASE, "--ckpt_path=last"]) == 0
    resumed = RUNS / "version_0"
    pd.testing.assert_frame_equal(read_metrics(whole), read_metrics(resumed), check_exact=True)
    state, other = _state(whole), _state(resumed)
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_new_run_from_a_checkpoint_draws_the_batches_of_its_epoch_with_workers(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(_fit(drawn, "--trainer.max_epochs=1")) == 0
    start = shutil.copy(RUNS / "version_0" / "checkpoints" / "last.ckpt", "start.ckpt")
    seen = []
    for workers in (0, 2):
        rows = Rows()
        with monkeypatch.context() as patch:
            patch.setattr(TRAINER, stopping(rows, [0]))
            assert main(_fit(drawn, f"--ckpt_path={start}", f"--data.num_workers={workers}")) == 0
        seen.append(rows.rows)
    assert seen[0] == seen[1]
    data = PCamDataModule(drawn, batch_size=32)
    L.seed_everything(42)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert [batch["row"].tolist() for batch in loader] == seen[0][:4]


def test_python_resumes_with_workers_as_the_command_does(drawn: Path, tmp_path: Path) -> None:
    """A plain trainer, its own checkpoint callback, and ckpt_path."""

    def fit(epochs: int, ckpt_path: str | None = None) -> list[list[int]]:
        L.seed_everything(1)
        rows = Rows()
        data = PCamDataModule(str(drawn), batch_size=32, num_workers=2)
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[rows], default_root_dir=tmp_path / "plain",
            enable_progress_bar=False, enable_checkpointing=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(PCamClassifier(NETWORK, "none", crop=32), data, ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return rows.rows

    fit(1)
    whole = fit(2)
    # Saved after fit: the loops count the epoch as done, and the next one is drawn.
    assert fit(2, str(tmp_path / "1.ckpt")) == whole[4:]


def test_workers_of_a_reloaded_loader_draw_its_epoch(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for workers in (0, 2):
        rows = Rows()
        with monkeypatch.context() as patch:
            patch.setattr(TRAINER, stopping(rows, [0]))
            more = (f"--data.num_workers={workers}", "--trainer.reload_dataloaders_every_n_epochs=1")
            assert main(_fit(drawn, *more)) == 0
        seen.append(rows.rows)
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "option",
    [
        "data.batch_size=16",
        "trainer.accumulate_grad_batches=2",
        "trainer.limit_train_batches=2",
        "trainer.limit_val_batches=1",
        "model.augment.degrees=10.0",
        "model.label_smoothing=0.1",
        "model.warmup_epochs=1.0",
        "model.tta=d4",
        "seed_everything=1",
    ],
)
def test_another_recipe_within_a_run_is_refused_by_name(
    option: str, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (run_copy / "config.yaml").read_text()
    assert main(["fit", "-c", BASE, "--ckpt_path=last", "--trainer.max_epochs=4", f"--{option}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    name, value = option.split("=")
    assert error.startswith(f"error: --{name} {value}: "), error
    assert (run_copy / "config.yaml").read_text() == kept


def _stop(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TRAINER, stopping(Stop(1), [0]))
        assert main(args) == 130


def _printed_call(capsys: pytest.CaptureFixture[str]) -> str:
    found = re.search(r"Resume with: (.*)", capsys.readouterr().err)
    assert found
    return found[1]


def test_the_printed_command_resumes_its_own_run(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _stop(_fit(drawn, "--trainer.max_epochs=2"), monkeypatch)
    command = _printed_call(capsys).removeprefix("python -m pcam_lightning ")
    assert main(_fit(drawn, "--trainer.max_epochs=1", "--data.batch_size=16")) == 0  # a newer run of the same config
    newer = (RUNS / "version_1" / "metrics.csv").read_bytes()
    capsys.readouterr()
    assert main(shlex.split(command)) == 0
    assert f"resuming {RUNS / 'version_0'}, on {drawn}\n" in capsys.readouterr().err
    assert list(read_metrics(RUNS / "version_0")["epoch"]) == [1, 2]
    assert (RUNS / "version_1" / "metrics.csv").read_bytes() == newer
    assert len(list(RUNS.iterdir())) == 2


def test_last_says_which_run_it_takes_and_refuses_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    synthesize(own, train=60, test=1, slides=4, layout="classes")
    shutil.copytree(own, other)
    for path in (other / "train").rglob("*.*"):  # other patches under the same names
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert main(_fit(own, "--trainer.max_epochs=1")) == 0
    capsys.readouterr()
    assert main(_fit(other, "--ckpt_path=last", "--trainer.max_epochs=2")) == 2
    message = capsys.readouterr().err
    assert f"resuming {RUNS / 'version_0'}, on {other}\n" in message
    assert f"the patches or their split differ from this run's, which has {own}, and" in message.splitlines()[-1]
    moved = own.rename(tmp_path / "moved")
    assert main(_fit(moved, "--ckpt_path=last", "--trainer.max_epochs=2")) == 0


def test_other_labels_within_a_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthesize(tmp_path / "drawn", train=60, test=1, slides=4, layout="table")
    file = tmp_path / "drawn" / "patches.csv"
    frame = pd.read_csv(file).assign(sample_weight=1.0)
    second = frame["label"].where(frame.index > 0, 1 - frame["label"])
    frame = frame.assign(second=second)
    frame.to_csv(file, index=False)
    assert main(_fit(file, "--trainer.max_epochs=1")) == 0
    resume = _fit(file, "--ckpt_path=last", "--trainer.max_epochs=2")
    for changes, more in (({"label": second}, []), ({"sample_weight": 2.0}, []), ({}, ["--data.columns.label=second"])):
        frame.assign(**changes).to_csv(file, index=False)
        capsys.readouterr()
        assert main([*resume, *more]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"version_0: the labels or weights of {file} differ from those that this run began with" in error
    best = RUNS / "version_0" / "checkpoints" / "best.ckpt"
    assert main(["validate", f"--ckpt_path={best}", "--data.columns.label=second"]) == 0
    assert f"warning: {file}: the labels or weights have changed since" in capsys.readouterr().err
    assert main(resume) == 0


def test_a_stopped_call_of_python_prints_the_call_that_resumes_it(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = Config.load(
        BASE,
        data={"root": str(drawn), "batch_size": 32},
        model={"backbone": NETWORK, "weights": "none", "crop": 48},
        trainer={"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "logger": False},
    )
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(config, callbacks=[Stop(1)])
    assert signal.getsignal(signal.SIGINT) is handler  # Lightning would ignore Ctrl-C from here on
    call = _printed_call(capsys).removesuffix(", callbacks=...)")
    monkeypatch.chdir(tmp_path)
    result = eval(call + ")", {"fit": fit, "Config": Config})
    assert list(result.metrics["epoch"]) == [1, 2]
    assert result.run.folder == tmp_path / "work" / RUNS / "version_0"


def test_the_paths_of_results_are_absolute(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.load(
        BASE,
        data={"root": str(drawn), "batch_size": 32},
        model={"backbone": NETWORK, "weights": "none", "crop": 48},
        trainer={"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "logger": False},
    )
    results = fit(config), probe(config)
    monkeypatch.chdir(tmp_path)
    for result in results:
        assert result.run is not None
        assert result.run.config.is_file()
        assert result.checkpoint is not None
        assert result.checkpoint.is_file()


@pytest.mark.parametrize("stage", [validate, predict])
def test_a_stopped_prediction_reaches_the_program(
    stage: Callable[[Path], object], run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TRAINER, stopping(Stop(0), [0]))
    with pytest.raises(KeyboardInterrupt):
        stage(run_copy / "checkpoints" / "best.ckpt")


def test_epochs_are_counted_from_one_everywhere(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_fit(drawn, "--trainer.max_epochs=2", "--trainer.enable_progress_bar=true")) == 0
    shown = set(re.findall(r"Epoch (\d+)", "".join(capsys.readouterr())))
    assert shown == {"1", "2"}


@pytest.mark.parametrize("option", ["data.batch_size=16", "trainer.accumulate_grad_batches=2"])
def test_a_new_run_from_a_checkpoint_has_its_steps_per_epoch(
    option: str, run_copy: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the schedule would have ended before the run, and epochs would train at a rate of 0."""
    checkpoint = str(run_copy / "checkpoints" / "best.ckpt")
    args = ["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.max_epochs=4", *FAST, f"--ckpt_path={checkpoint}"]
    assert main([*args, f"--{option}"]) == 2
    assert "its run had 4 steps per epoch and this one would have" in capsys.readouterr().err
    assert [path.name for path in run_copy.parent.iterdir()] == ["version_0"]


def test_a_run_records_the_steps_that_its_epochs_have(drawn: Path) -> None:
    """Of four batches, of which no more can be asked for, the last one alone makes a step too."""
    more = ("--trainer.max_epochs=1", "--trainer.accumulate_grad_batches=3", "--trainer.limit_train_batches=100")
    assert main(_fit(drawn, *more)) == 0
    checkpoint = torch.load(RUNS / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["pcam"]["steps_per_epoch"] == checkpoint["global_step"] == 2


def test_config_checkpoint_and_output_agree_on_what_changed(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cpuinfo").write_text("flags : avx512_bf16")  # else some CPUs have float32 alone
    monkeypatch.setattr("pcam_lightning.utils.system.CPU_INFO", tmp_path / "cpuinfo")
    before = yaml.safe_load((run_copy / "config.yaml").read_text())["trainer"]["precision"]
    precision = "bf16-mixed" if before == "32-true" else "32-true"
    more = ["--trainer.max_epochs=3", f"--trainer.precision={precision}", "--trainer.gradient_clip_val=1.5"]
    assert main(["fit", "-c", BASE, "--ckpt_path=last", *more]) == 0
    printed = capsys.readouterr().err
    assert f'trainer.precision: "{precision}" from here on, "{before}" before.' in printed
    assert "trainer.gradient_clip_val: 1.5 from here on, null before." in printed
    assert "follows that of a run of 3 epochs from here on" in printed
    config = yaml.safe_load((run_copy / "config.yaml").read_text())
    recorded = torch.load(run_copy / "checkpoints" / "last.ckpt", weights_only=True)["pcam"]["config"]
    assert config == recorded
    assert config["trainer"]["precision"] == precision
    assert config["trainer"]["max_epochs"] == 3


class Rates(L.Callback):
    """Notes the learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_longer_run_has_the_rates_of_the_longer_schedule(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, longer = Rates(), Rates()
    with monkeypatch.context() as patch:
        patch.setattr(TRAINER, stopping(straight, [0]))
        assert main(_fit(drawn)) == 0
    assert main(_fit(drawn, "--trainer.max_epochs=1")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(TRAINER, stopping(longer, [0]))
        assert main(["fit", "-c", BASE, "--ckpt_path=last", "--trainer.max_epochs=3"]) == 0
    assert longer.rates == pytest.approx(straight.rates[4:])


@pytest.mark.parametrize("interval", ["3", "5", "0.8", "00:00:01:00"])
def test_validation_that_does_not_end_an_epoch_is_refused(
    interval: str, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_fit(drawn, f"--trainer.val_check_interval={interval}")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --trainer.val_check_interval"), error
    assert not Path("lightning_logs").exists()


def test_the_score_of_the_best_checkpoint_is_that_of_its_weights(drawn: Path) -> None:
    assert main(_fit(drawn, "--trainer.val_check_interval=2")) == 0  # of 4 steps: validated within the epoch too
    run = RUNS / "version_0"
    best = pd.read_csv(run / "metrics.csv")["val/auroc"].max()
    data = PCamDataModule(drawn, batch_size=32)
    model = PCamClassifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    trainer = L.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_progress_bar=False)
    scores = trainer.validate(model, datamodule=data, verbose=False)[0]
    assert scores["val/auroc"] == pytest.approx(best, abs=1e-6)


def test_an_option_that_is_newer_than_a_run_had_its_default() -> None:
    options = {"model": {"loss": "focal", "lr": 1e-3}, "trainer": {"max_epochs": 2, "max_steps": -1}}
    recorded = {"model": {"lr": 1e-3}, "trainer": options["trainer"]}
    with pytest.raises(UserError, match=r"`model.loss` focal: this run was trained with bce"):
        check_recipe(recorded, options)
    check_recipe(recorded, {**options, "model": {"loss": "bce", "lr": 1e-3}})


def test_a_resumed_run_keeps_what_it_imported(drawn: Path) -> None:
    for name in ("first_entries", "second_entries"):
        Path(f"{name}.py").touch()
    run = Path("lightning_logs/base/version_0")
    args = ["fit", "-c", BASE, f"--data.root={drawn}", *FAST]
    assert main([*args, "--trainer.max_epochs=1", "--import", "first_entries"]) == 0
    more = ["--trainer.max_epochs=2", "--import", "second_entries", "--ckpt_path=last"]
    assert main([*args, *more]) == 0
    for names in (
        yaml.safe_load((run / "config.yaml").read_text())["import"],
        read_checkpoint(run / "checkpoints" / "last.ckpt")["pcam"]["config"]["import"],
    ):
        assert names == ["first_entries", "second_entries"]
