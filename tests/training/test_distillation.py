"""Distillation: targets are the labels' and the teachers', and what trained a teacher counts as training."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import CONFIGS, FAST, with_callback

from pcam_lightning import Augmentation, PCamClassifier, PCamDataModule
from pcam_lightning.cli.main import main
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.training.distillation import Distillation
from pcam_lightning.training.loaded_run import load_pretrained

BASE = str(CONFIGS / "base.yaml")
CALLBACK = "pcam_lightning.training.distillation.Distillation"


def _fit(drawn: Path, *more: str) -> int:
    return main(["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.max_epochs=1", *FAST, *more])


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_targets_are_the_mean_of_labels_and_teachers(share: float, small: Path, drawn: Path) -> None:
    teacher = load_pretrained(small / "checkpoints" / "best.ckpt")
    seen: list[torch.Tensor] = []

    class Look(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, model: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            assert isinstance(model, PCamClassifier)
            model.on_train_batch_start(batch, batch_idx)  # seeds the draws
            image, target = model.training_batch(batch)
            assert image.shape[2:] == (64, 64)  # as the student sees them
            student, model.preprocess = model.preprocess, teacher.preprocess
            teach, model.teach = model.teach, None
            model.on_train_batch_start(batch, batch_idx)
            patches, label = model.augmented(batch)
            model.preprocess, model.teach = student, teach
            seen.extend([target, label, teacher(patches).sigmoid()])

    model = PCamClassifier("p4m_resnet16", weights="none", crop=64, normalize="imagenet", augment=Augmentation(d4=True))
    callbacks = [Distillation([str(small / "checkpoints" / "best.ckpt")], share), Look()]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=1, callbacks=callbacks, **quiet)  # type: ignore[arg-type]
    trainer.fit(model, PCamDataModule(drawn, batch_size=16))
    target, label, prob = seen
    assert target.tolist() == pytest.approx((label + share * (prob - label)).tolist(), abs=1e-5)
    assert model.teach is None


def test_patches_of_a_teacher_have_trained_the_network(
    small: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = str(small / "checkpoints" / "best.ckpt")
    assert _fit(drawn, "--data.split_seed=7", with_callback(CALLBACK, teachers=[teacher])) == 0
    printed = capsys.readouterr().err
    assert "distillation: 0.5 of the targets from" in printed
    assert "validation patches trained" in printed
    made = read_checkpoint(Path("lightning_logs/base/version_0/checkpoints/best.ckpt"))
    before = set(read_checkpoint(Path(teacher))["trained"]["ids"].tolist())
    assert before < set(made["trained"]["ids"].tolist())
    assert "teachers" not in str(made["hyper_parameters"])
    best = "lightning_logs/base/version_0/checkpoints/best.ckpt"
    assert main(["predict", "--ckpt_path", best, "--trainer.accelerator=cpu"]) == 0


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"teachers": []}, "names no checkpoint"),
        ({"teachers": ["missing.ckpt"]}, "missing.ckpt: no such checkpoint"),
        ({"teachers": ["pcam-small"], "share": 0}, "should be more than 0"),
    ],
)
def test_bad_teachers_are_told(
    init: dict[str, object], message: str, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fit(drawn, with_callback(CALLBACK, **init)) == 2
    assert message in capsys.readouterr().err
    assert not Path("lightning_logs").exists()


def test_a_stopped_run_leaves_no_teacher(small: Path, drawn: Path) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, *args: object) -> None:
            raise ValueError("stop")

    model = PCamClassifier("p4m_resnet16", weights="none")
    callbacks = [Distillation([small / "checkpoints" / "best.ckpt"]), Stop()]  # type: ignore[list-item]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with pytest.raises(ValueError, match="stop"):
        L.Trainer(accelerator="cpu", callbacks=callbacks, **quiet).fit(model, PCamDataModule(drawn))  # type: ignore[arg-type]
    assert model.teach is None


def test_a_teacher_with_other_stains_is_refused(small: Path, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = with_callback(CALLBACK, teachers=[str(small / "checkpoints" / "best.ckpt")])
    assert _fit(drawn, "--model.stain=reinhard", callback) == 2
    assert "has --model.stain none, not reinhard" in capsys.readouterr().err
