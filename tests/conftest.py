"""A small drawn data folder, a run trained on it, and a clean place for every test."""

import gc
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image

import pcam_lightning.evaluation.evaluate  # noqa: F401  (which `gc.freeze` is to find imported)
from pcam_lightning.cli.main import main
from pcam_lightning.synthetic.kaggle_folder import synthesize
from pcam_lightning.synthetic.whole_slide import write_whole_slide

if "PYTEST_XDIST_WORKER" in os.environ:  # processes share the cores; they would wait for each other's threads
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start too: sums depend on the threads
settings.register_profile("unhurried", deadline=None)  # the first call may import half a library
settings.load_profile("unhurried")

gc.freeze()  # as python -m does: each command looks for garbage once, in a second of libraries otherwise
CONFIGS = Path(__file__).parents[1] / "configs"
QUICK = (
    "--model.weights=none",
    "--data.batch_size=32",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.logger=false",
)
NETWORK = "timm/test_efficientnet"  # timm has it for tests: a step takes milliseconds, a checkpoint 1 MB
FAST = (*QUICK, f"--model.backbone={NETWORK}", "--model.crop=48", "--model.lr=0.003")
LOGGED = (*FAST, "--trainer.logger=true")  # a TensorBoard page too, which takes half a second a validation
TRAINER = "pcam_lightning.training.trainer.Trainer"  # to replace by what `stopping` returns
MakeFolder = Callable[..., Path]


# Few tests that take long each: last, they would run on one core while the others are idle.
SLOW = ("test_processes.py", "test_notebooks.py", "test_fit.py", "test_stops.py", "test_resume.py")


# Rooms whose tests are marked unit, unless they start processes: `pytest -m unit` takes a minute or two.
UNITS = ("data", "metrics", "models", "synthetic", "transforms", "utils")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the unit tests, and run the slowest files first."""
    for item in items:
        if item.path.parent.name in UNITS and item.get_closest_marker("process") is None:
            item.add_marker("unit")
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


@pytest.fixture(autouse=True)
def _clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, with caches of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a drawn Kaggle folder of 120 + 40 patches; tests only read it."""
    root = tmp_path_factory.mktemp("drawn") / "kaggle"
    synthesize(root, train=120, test=40, slides=8, seed=1)
    return root


@pytest.fixture(scope="session")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two epochs; tests copy it before they write."""
    place = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(place)
    try:
        args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), "--trainer.max_epochs=2", *LOGGED]
        assert main(args) == 0
    finally:
        os.chdir(before)
    return place / "lightning_logs" / "base" / "version_0"


@pytest.fixture(scope="session")
def small(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of one epoch whose checkpoints are small; tests copy it before they write."""
    place = tmp_path_factory.mktemp("small")
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), "--trainer.max_epochs=1", *FAST]
    args += ["--model.crop=96", f"--trainer.default_root_dir={place}"]
    assert main(args) == 0
    return place / "lightning_logs" / "base" / "version_0"


def read_metrics(run: Path) -> pd.DataFrame:
    """Return a run's metrics without those that no two runs share: they depend on the clock."""
    return pd.read_csv(run / "metrics.csv").drop(columns=["train/patches_per_second", "train/waiting_for_data"])


def with_callback(class_path: str, **init: object) -> str:
    """Return the flag that adds a callback to a run."""
    return f"--trainer.callbacks={json.dumps([{'class_path': class_path, 'init_args': init}])}"


def stopping(callback: Callback, left: list[int]) -> Callable[..., Trainer]:
    """Return what builds so many trainers as usual, which it counts down, and the next with a callback."""

    def build(*args: Any, callbacks: Sequence[Callback] = (), **kwargs: Any) -> Trainer:
        callbacks = [*callbacks, *([callback] if left[0] == 0 else [])]
        left[0] -= 1
        return Trainer(*args, callbacks=callbacks, **kwargs)

    return build


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """Return a run's folder to write into, in the current folder's lightning_logs."""
    copy = tmp_path / "work" / "lightning_logs" / "base" / "version_0"
    shutil.copytree(trained, copy)
    return copy


@pytest.fixture
def kaggle(tmp_path: Path) -> MakeFolder:
    """Return a function that makes a tiny folder in Kaggle's layout out of noise."""

    def make(train: int = 20, test: int = 4, root: Path = tmp_path / "tiny") -> Path:
        rng = np.random.default_rng(0)
        for part, count in (("train", train), ("test", test)):
            (root / part).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / f"{part}{number:03d}.tif")
        ids = [f"train{number:03d}" for number in range(train)]
        pd.DataFrame({"id": ids, "label": [n % 2 for n in range(train)]}).to_csv(root / "train_labels.csv", index=False)
        ids = [f"test{number:03d}" for number in reversed(range(test))]
        pd.DataFrame({"id": ids, "label": 0}).to_csv(root / "sample_submission.csv", index=False)
        return root

    return make


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """Pixels of a slide: a purple square with spots on white glass, uint8 (320, 320, 3), at 0.972 um per pixel."""
    rng = np.random.default_rng(0)
    image = np.full((320, 320, 3), 245, dtype=np.uint8)
    spots = np.kron(rng.integers(0, 60, (20, 20, 1)), np.ones((8, 8, 1)))
    image[64:224, 96:256] = np.array([150, 90, 160]) + spots
    return image


@pytest.fixture(scope="session")
def slide(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pyramidal TIFF of 0.243 um per pixel with the outline of a metastasis."""
    path = tmp_path_factory.mktemp("slide") / "tumor_001.tif"
    metastases = np.zeros(pixels.shape[:2], dtype=bool)
    metastases[96:160, 128:192] = True
    write_whole_slide(path, pixels, metastases, quality=95)
    return path


@pytest.fixture
def plain(pixels: np.ndarray, tmp_path: Path) -> Path:
    """A PNG, which states no scale."""
    path = tmp_path / "plain.png"
    Image.fromarray(pixels).save(path)
    return path
