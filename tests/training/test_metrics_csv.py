"""What a run tells of its speed, and what loggers get of its options."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import yaml
from conftest import CONFIGS, FAST
from lightning.pytorch.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pcam_lightning.cli.main import main
from pcam_lightning.training.metrics_csv import MetricsCSV


class Recorder(Logger):
    """A logger whose log_hyperparams takes no metrics."""

    name = "recorder"
    version = "0"
    logged: ClassVar[list[dict[str, Any]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any) -> None:
        self.logged.append(dict(params))


def test_every_logger_gets_the_options_once(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "logged", [])
    loggers = [
        {"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}},
        {"class_path": "test_metrics_csv.Recorder"},
    ]
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), *FAST[:-1], "--trainer.max_epochs=1"]
    args += [f"--trainer.logger={json.dumps(loggers)}"]
    assert main(args) == 0
    (options,) = Recorder.logged
    assert (options["batch_size"], options["weights"], options["max_epochs"]) == (32, "none", 1)
    assert yaml.safe_load(Path("csv/lightning_logs/version_0/hparams.yaml").read_text()) == options
    hparams = EventAccumulator("lightning_logs/base/version_0").Reload().PluginTagToContent("hparams")
    assert all(name.encode() in hparams["_hparams_/session_start_info"] for name in options if name != "augment")
    # Resumed, the same record has them already, and a new one of CSVLogger gets them.
    assert main(["fit", "-c", str(CONFIGS / "base.yaml"), "--ckpt_path=last", "--trainer.max_epochs=2"]) == 0
    assert len(Recorder.logged) == 1
    assert yaml.safe_load(Path("csv/lightning_logs/version_1/hparams.yaml").read_text())["max_epochs"] == 2


def test_validating_within_an_epoch_is_no_waiting_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, logged = [0.0], dict[str, float]()
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    trainer: Any = SimpleNamespace(
        world_size=1, sanity_checking=False, current_epoch=0, global_step=4, is_global_zero=True, loggers=[]
    )
    trainer.optimizers = [SimpleNamespace(param_groups=[{"lr": 0.1}])]
    trainer.callback_metrics = {"val/auroc": torch.tensor(0.5)}
    module: Any = SimpleNamespace(log=logged.__setitem__)
    metrics = MetricsCSV()

    def seconds(passed: float) -> None:
        clock[0] += passed

    metrics.on_train_epoch_start(trainer, module)
    for step in range(4):
        seconds(1)  # for data
        metrics.on_train_batch_start(trainer, module, None, step)
        seconds(3)
        metrics.on_train_batch_end(trainer, module, None, {"label": torch.zeros(8)}, step)
        if step in (1, 3):
            metrics.on_validation_start(trainer, module)
            seconds(50)
            metrics.on_validation_end(trainer, module)
    metrics.on_train_epoch_end(trainer, module)
    assert logged["train/waiting_for_data"] == 0.25
    assert logged["train/patches_per_second"] == 2.0
