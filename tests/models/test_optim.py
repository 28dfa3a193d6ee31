"""Schedules: ours resume as if never stopped, and those of a subclass are left alone."""

from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST, NETWORK, read_metrics, with_callback
from lightning.pytorch.tuner.tuning import Tuner

from pcam_lightning.cli.main import main
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.optim import build_optimizer, build_schedule
from pcam_lightning.training.best_and_last import BestAndLastCheckpoint
from pcam_lightning.utils.errors import UserError

PLATEAU = (
    "--model.backbone=timm/test_vit",
    "--model.schedule=plateau",
    "--model.patience=0",
    "--model.lr=1e-6",
    "--model.optimizer=sgd",
    "--trainer.gradient_clip_val=1e-9",
    "--model.freeze_epochs=0",
)


def _fit(root: Path, *flags: str, epochs: int) -> int:
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(root), *FAST, *flags]
    return main([*args, f"--trainer.max_epochs={epochs}"])


def test_a_plateau_takes_a_tenth_of_the_rate_and_resumes_as_if_never_stopped(drawn: Path) -> None:
    assert _fit(drawn, *PLATEAU, epochs=4) == 0
    assert _fit(drawn, *PLATEAU, epochs=2) == 0
    assert _fit(drawn, *PLATEAU, "--ckpt_path=last", epochs=4) == 0
    whole, resumed = (read_metrics(Path("lightning_logs/base") / f"version_{number}") for number in range(2))
    pd.testing.assert_frame_equal(whole, resumed)
    # With such gradients nothing is learned, and no score is higher than that of the first epoch.
    assert whole["train/lr"].tolist() == pytest.approx([1e-6, 1e-6, 1e-7, 1e-8])


def test_a_plateau_waits_for_its_patience() -> None:
    hparams = {**PCamClassifier(NETWORK, "none").hparams, "schedule": "plateau", "patience": 1}
    optimizer = build_optimizer(torch.nn.Linear(1, 1), hparams, fused=False)
    schedule: Any = build_schedule(optimizer, hparams, 10, 5)
    rates = []
    for score in (0.5, 0.6, 0.6, 0.6, 0.7):
        schedule.step(score)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 1e-4])


def test_a_plateau_without_validation_is_refused(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _fit(drawn, *PLATEAU, "--data.val_fraction=0", epochs=1) == 2
    assert "--model.schedule plateau: goes by val/auroc, and no patch is held out" in capsys.readouterr().err
    assert not Path("lightning_logs").exists()
    with pytest.raises(UserError, match=r"`model.schedule` plateau: requires `model.warmup_epochs` 0"):
        PCamClassifier(NETWORK, "none", schedule="plateau", warmup_epochs=1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("StochasticWeightAveraging", {"swa_lrs": 0.1, "swa_epoch_start": 1}),
        ("GradientAccumulationScheduler", {"scheduling": {1: 2}}),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    name: str, options: dict[str, Any], drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fit(drawn, with_callback(name, **options), epochs=3) == 2
    assert f"leave {name} out" in capsys.readouterr().err
    assert not Path("lightning_logs").exists()


class _Adam(PCamClassifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


class _OneCycle(PCamClassifier):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Plateau(PCamClassifier):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "train/loss"}}


def _trainer(**options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(**{**quiet, "accelerator": "cpu", "enable_checkpointing": False, **options})


@pytest.mark.parametrize("kind", [_Adam, _OneCycle, _Plateau])
def test_a_subclass_has_optimizers_and_schedules_of_its_own(kind: type[PCamClassifier], drawn: Path) -> None:
    weights, rates = [], []
    for folder, stops in (("whole", [2]), ("resumed", [1, 2])):
        for epochs in stops:
            L.seed_everything(1)
            model, data = kind(NETWORK, "none", crop=32), PCamDataModule(drawn, batch_size=32)
            trainer = _trainer(max_epochs=epochs, callbacks=[BestAndLastCheckpoint(folder)], enable_checkpointing=True)
            last = Path(folder) / "checkpoints" / "last.ckpt"
            trainer.fit(model, data, ckpt_path=last if last.is_file() else None, weights_only=True)
        weights.append(torch.cat([value.flatten() for value in model.parameters()]))
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    assert torch.equal(*weights)
    assert rates[0] == rates[1]


def test_a_plain_trainer_that_resumes_keeps_the_best_score(drawn: Path) -> None:
    last = Path("mine/checkpoints/last.ckpt")
    for epochs in (1, 2):
        keep = BestAndLastCheckpoint("mine")
        trainer = _trainer(max_epochs=epochs, callbacks=[keep], enable_checkpointing=True)
        model, data = PCamClassifier(NETWORK, "none", crop=32), PCamDataModule(drawn, batch_size=32)
        trainer.fit(model, data, ckpt_path=last if last.is_file() else None, weights_only=True)
        if epochs == 1:
            checkpoint = torch.load(last, weights_only=True)
            checkpoint["callbacks"]["BestAndLastCheckpoint"] = {"best_score": 2.0, "best_epoch": 0}
            torch.save(checkpoint, last)
            best = Path("mine/checkpoints/best.ckpt").read_bytes()
    assert keep.best_score == 2.0
    assert Path("mine/checkpoints/best.ckpt").read_bytes() == best


def test_lightning_finds_a_learning_rate(drawn: Path) -> None:
    model, data = PCamClassifier(NETWORK, "none", crop=32, lr=1e-4), PCamDataModule(drawn, batch_size=32)
    trainer = _trainer(max_epochs=2)
    found = Tuner(trainer).lr_find(model, datamodule=data, num_training=4, min_lr=1e-6)
    assert found is not None
    assert len(found.results["lr"]) == 4
    trainer.fit(model, data)
    assert trainer.global_step > 1
