"""What docs/architecture.md says about adding things: one entry is enough."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import NETWORK, QUICK, with_callback
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

from pcam_lightning.cli.main import main
from pcam_lightning.cli.run_commands import RUN_COMMANDS
from pcam_lightning.data import sources
from pcam_lightning.data.chunks import BadFiles
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.evaluation.evaluate import evaluate
from pcam_lightning.evaluation.report_metrics import REPORT_METRICS, ReportMetric
from pcam_lightning.metrics.calibration import brier_score
from pcam_lightning.metrics.torch_metrics import EPOCH_METRICS
from pcam_lightning.models.backbones import BACKBONES
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.losses import LOSSES
from pcam_lightning.models.optim import OPTIMIZERS, SCHEDULES, Schedule
from pcam_lightning.training.fit import fit
from pcam_lightning.training.loaded_run import load_pretrained
from pcam_lightning.training.options import Config
from pcam_lightning.transforms.augment import Augmentation, augment, set_bases
from pcam_lightning.transforms.augmentations import AUGMENTATIONS
from pcam_lightning.transforms.step import Step
from pcam_lightning.utils.errors import UserError


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
    monkeypatch.setattr(sources, "SOURCES", [ArrayFolder, *sources.SOURCES])
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


class SlideArrays(ArrayFolder):
    """A layout that names the slides: patches of one are alike in number."""

    @classmethod
    def detect(cls, root: Path) -> bool:
        return (root / "slides.npy").is_file()

    def knows_slides(self) -> bool:
        return True

    def read_train(self, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
        return super().read_train().assign(slide=np.load(self.root / "slides.npy"))


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_hold_out_whole_slides_of_any_layout_that_names_them(folds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOURCES", [SlideArrays, *sources.SOURCES])
    root = Path("arrays")
    root.mkdir()
    patches = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), dtype=np.uint8)
    for name, array in (("patches", patches), ("labels", np.arange(40) % 2), ("slides", np.arange(40) // 4)):
        np.save(root / f"{name}.npy", array)
    data = PCamDataModule(root, folds=folds)
    data.setup("fit")
    assert not set(data.table["slide"][data.val_mask]) & set(data.table["slide"][~data.val_mask])
    assert data.val_mask.sum() == 40 / folds


def test_fit_looks_for_the_layout_once_and_records_that_slides_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOURCES", [SlideArrays, *sources.SOURCES])
    seen: list[str] = []
    for layout in sources.SOURCES:

        def detect(root: Path, layout: Any = layout, detect: Any = layout.detect) -> bool:
            seen.append(layout.__name__)
            return bool(detect(root))

        monkeypatch.setattr(layout, "detect", detect)
    root = Path("arrays")
    root.mkdir()
    patches = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), dtype=np.uint8)
    for name, array in (("patches", patches), ("labels", np.arange(40) % 2), ("slides", np.arange(40) // 4)):
        np.save(root / f"{name}.npy", array)
    model = {"backbone": NETWORK, "weights": "none", "crop": 32}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    run = fit(Config.load(data={"root": str(root), "folds": 2}, model=model, trainer=trainer)).run
    assert run is not None
    looked = [name for name in seen if name != "TableFile"]  # a path is first asked whether it is a CSV
    assert sorted(looked) == sorted(layout.__name__ for layout in sources.SOURCES if layout.__name__ != "TableFile")
    assert yaml.safe_load(run.config.read_text())["data"]["holdout"] == "slide"
    split = pd.read_csv(run.split)
    assert split.assign(slide=np.arange(40) // 4).groupby("slide")["split"].nunique().max() == 1


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


ROOT = Path(__file__).parents[1]
TABLES: tuple[dict[str, Any], ...] = (
    LOSSES, SCHEDULES, OPTIMIZERS, BACKBONES, EPOCH_METRICS, REPORT_METRICS, RUN_COMMANDS
)  # fmt: skip
OWN = (
    "--model.loss=brier", "--model.backbone=tiny", "--model.optimizer=adam", "--model.schedule=halving",
    "--model.augment.gray=0.5",
)  # fmt: skip


@pytest.fixture
def forget() -> Iterator[Callable[[], None]]:
    """Return what takes own_entries.py back, as in a process of its own."""
    tables, augmentations = [dict(table) for table in TABLES], list(AUGMENTATIONS)
    bases, path = Augmentation.__bases__, list(sys.path)

    def restore() -> None:
        for table, before in zip(TABLES, tables, strict=True):
            table.clear()
            table.update(before)
        AUGMENTATIONS[:] = augmentations
        set_bases(bases)
        sys.path[:] = path
        sys.modules.pop("own_entries", None)

    yield restore
    restore()


def _fit(root: Path, *flags: str) -> int:
    base = ["fit", "-c", str(ROOT / "configs" / "base.yaml"), "--data.root", str(root)]
    return main([*base, *QUICK, "--model.crop=32", "--trainer.max_epochs=2", *flags])


def test_a_module_of_ones_own_adds_to_every_table_and_comes_with_its_run(
    drawn: Path, forget: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "examples" / "own_entries.py", "own_entries.py")
    stopping = with_callback("EarlyStopping", monitor="val/average_precision", mode="max")
    assert _fit(drawn, "--import", "own_entries", *OWN, stopping) == 0
    run = Path("lightning_logs/base/version_0")
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["val/average_precision"].between(0, 1).all()
    assert metrics["train/lr"].tolist() == [1e-3, 5e-4]
    assert yaml.safe_load((run / "config.yaml").read_text())["import"] == ["own_entries"]

    forget()
    assert _fit(drawn, *OWN[:1]) == 2  # elsewhere it is unknown
    assert "--model.loss 'brier': unknown; use one of bce, focal; --import MODULE adds" in capsys.readouterr().err
    assert main(["predict", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]) == 0
    assert "its run imported own_entries, which is imported now" in capsys.readouterr().err
    assert len(pd.read_csv(run / "submission.csv")) == 40
    forget()
    report = evaluate(run, bootstrap_samples=100).report
    assert 0 < report["brier"]["value"] < 1
    forget()
    Path("own_entries.py").unlink()
    with pytest.raises(UserError, match=r"`import` own_entries: cannot be imported .ModuleNotFoundError"):
        load_pretrained(run / "checkpoints" / "best.ckpt")


def test_a_config_names_modules_too(forget: Callable[[], None]) -> None:
    shutil.copy(ROOT / "examples" / "own_entries.py", "own_entries.py")
    options = {
        "import": ["own_entries"],
        "model": {"augment": {"gray": 0.5, "degrees": 0}, "weights": "none", "crop": 32},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(options))
    config = Config.load("mine.yaml", model={"backbone": "tiny"})
    assert config.plain()["import"] == ["own_entries"]
    with pytest.raises(
        UserError, match=r"`trainer.strategy` ddp_spawn: its processes lack what `import` own_entries adds"
    ):
        config.replace(trainer={"strategy": "ddp_spawn"}).build()
    augmentation = config.build()[1].augmentation
    assert augmentation == Augmentation(gray=0.5)  # type: ignore[call-arg]
    gray = augment(torch.randint(256, (32, 96, 96, 3), dtype=torch.uint8), torch.zeros(32), augmentation)[0]
    assert 8 < (gray == gray[:, :1]).all(dim=(1, 2, 3)).sum() < 24


def test_a_command_is_an_entry(forget: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    Path("own_entries.py").write_text(
        "from dataclasses import replace\n"
        "from pcam_lightning.cli.run_commands import RUN_COMMANDS\n"
        "run = lambda cli: print(cli.options.data.batch_size, cli.options.times)\n"
        "options = {'times': {'type': int, 'default': 3}}\n"
        "RUN_COMMANDS['mine'] = replace(RUN_COMMANDS['fit'], function=run, ckpt_path='none', options=options)\n"
    )
    assert main(["mine", "--import=own_entries", "--data.batch_size=7", "--times=5"]) == 0
    assert capsys.readouterr().out == "7 5\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"`import` broken: cannot be imported \(ModuleNotFoundError: No module named 'broken'\); modules are",
        ),
        ("1 / 0", r"`import` broken: cannot be imported \(ZeroDivisionError: .*broken.py, line 1\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_an_error(
    content: str | None, message: str, forget: Callable[[], None]
) -> None:
    if content:
        Path("broken.py").write_text(content)
        invalidate_caches()
    with pytest.raises(UserError, match=message):
        Config.load(**{"import": ["broken"]})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`import` 3: should be a list"):
        Config.load(**{"import": 3})


def test_a_schedule_and_an_optimizer_have_the_models_options(monkeypatch: pytest.MonkeyPatch, drawn: Path) -> None:
    seen: dict[str, Any] = {}

    def constant(optimizer: torch.optim.Optimizer, options: Any, steps: int, steps_per_epoch: int) -> LRScheduler:
        seen.update(options, steps=steps, steps_per_epoch=steps_per_epoch)
        return ConstantLR(optimizer, factor=1)

    monkeypatch.setitem(SCHEDULES, "constant", Schedule(constant))
    monkeypatch.setitem(
        OPTIMIZERS, "adam", lambda groups, options, *, fused: torch.optim.Adam(groups, options["lr"], fused=fused)
    )
    model = PCamClassifier(NETWORK, "none", crop=32, schedule="constant", optimizer="adam", lr=0.01, momentum=0.5)
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, PCamDataModule(drawn, batch_size=32))
    assert isinstance(trainer.optimizers[0], torch.optim.Adam)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.01
    assert (seen["momentum"], seen["steps"], seen["steps_per_epoch"]) == (0.5, 3, 4)


def test_each_augmentation_is_in_the_list_and_among_the_options() -> None:
    steps = {one for one in Augmentation.__mro__ if issubclass(one, Step) and one not in (Step, Augmentation)}
    assert steps == set(AUGMENTATIONS)
    assert {name for step in AUGMENTATIONS for name in step.highest} == {field.name for field in fields(Augmentation)}
