"""What a run tells of its speed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pcam_lightning.logs import MetricsFile


def test_validating_within_an_epoch_is_no_waiting_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, logged = [0.0], dict[str, float]()
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    trainer: Any = SimpleNamespace(
        world_size=1, sanity_checking=False, current_epoch=0, global_step=4, is_global_zero=True, loggers=[]
    )
    trainer.optimizers = [SimpleNamespace(param_groups=[{"lr": 0.1}])]
    trainer.callback_metrics = {"val/auroc": torch.tensor(0.5)}
    module: Any = SimpleNamespace(log=logged.__setitem__)
    metrics = MetricsFile()

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
