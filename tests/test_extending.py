"""What docs/architecture.md says about adding things: one entry is enough."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import NETWORK

from pcam_lightning.data import sources
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.image_files import BadFiles
from pcam_lightning.evaluation.evaluate import evaluate
from pcam_lightning.evaluation.report_metrics import REPORT_METRICS, ReportMetric
from pcam_lightning.metrics.calibration import brier_score
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.optim import OPTIMIZERS, SCHEDULES, Schedule
from pcam_lightning.transforms.augment import Augmentation
from pcam_lightning.transforms.augmentations import AUGMENTATIONS
from pcam_lightning.transforms.step import Step


class ArrayChunk:
    """All patches of an array."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        return len(np.load(self.path))

    def read(self) -> tuple[bytearray, BadFiles]:
        return bytearray(np.load(self.path).tobytes()), {}


class ArrayFolder:
    """A layout: patches.npy and labels.npy."""

    own_split: str | None = None

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def detect(cls, root: Path) -> bool:
        return (root / "patches.npy").is_file()

    def parts(self) -> list[str]:
        return ["train"]

    def knows_slides(self) -> bool:
        return False

    def read_train(self, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
        label = np.load(self.root / "labels.npy")
        ids = [f"{number:04d}" for number in range(len(label))]
        return pd.DataFrame({"id": ids, "label": label.astype("int8"), "path": "patches.npy"})

    def read_test(self, *, answers: bool = False) -> pd.DataFrame:
        raise AssertionError("a layout without a test part is not asked for it")

    def scratch_patches(self, table: pd.DataFrame) -> int:
        return 0

    @contextmanager
    def open(self, table: pd.DataFrame, scratch: Path) -> Iterator[list[ArrayChunk]]:
        yield [ArrayChunk(self.root / "patches.npy")]


def test_a_layout_is_a_class_and_its_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOURCES", (ArrayFolder, *sources.SOURCES))
    root = Path("arrays")
    root.mkdir()
    patches = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), dtype=np.uint8)
    np.save(root / "patches.npy", patches)
    np.save(root / "labels.npy", np.arange(40) % 2)
    data = PCamDataModule(root, batch_size=8)
    data.setup("fit")
    assert np.array_equal(data.train_store.images, patches)
    assert data.table["label"].sum() == 20
    assert int(data.val_mask.sum()) == 8


def test_a_metric_of_the_report_has_an_interval_and_a_place_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REPORT_METRICS, "brier", ReportMetric("Brier score", brier_score))
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2
    rows = pd.DataFrame({"id": [f"p{n}" for n in range(200)], "label": label, "logit": label + rng.normal(size=200)})
    rows.assign(slide=[f"s{n // 8}" for n in range(200)]).to_csv("mine.csv", index=False)
    found = evaluate("mine.csv", bootstrap_samples=100)
    brier = found.report["brier"]
    assert brier["value"] == pytest.approx(brier_score(label, rows["logit"].to_numpy()))
    assert brier["low"] < brier["value"] < brier["high"]
    assert json.loads(Path("mine_report.json").read_text())["brier"] == brier
    assert "Brier score<b>" in found.page.read_text()


def test_a_schedule_and_an_optimizer_are_entries_in_tables(monkeypatch: pytest.MonkeyPatch, drawn: Path) -> None:
    monkeypatch.setitem(SCHEDULES, "constant", Schedule(lambda steps, warmup: lambda step: 1.0))
    monkeypatch.setitem(
        OPTIMIZERS, "adam", lambda groups, options, *, fused: torch.optim.Adam(groups, options["lr"], fused=fused)
    )
    model = PCamClassifier(NETWORK, "none", crop=32, schedule="constant", optimizer="adam", lr=0.01)
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, PCamDataModule(drawn, batch_size=32))
    assert isinstance(trainer.optimizers[0], torch.optim.Adam)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.01


def test_each_augmentation_is_in_the_list_and_among_the_options() -> None:
    steps = {one for one in Augmentation.__mro__ if issubclass(one, Step) and one not in (Step, Augmentation)}
    assert steps == set(AUGMENTATIONS)
    assert {name for step in AUGMENTATIONS for name in step.highest} == {field.name for field in fields(Augmentation)}
