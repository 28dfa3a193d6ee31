"""Images on a run's TensorBoard page."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIGS, LOGGED
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pcam_lightning.cli.main import main
from pcam_lightning.metrics.classification import top_errors
from pcam_lightning.plotting.plots import evaluation_panel

BASE = str(CONFIGS / "base.yaml")


def _images(run: Path) -> dict[str, list[int]]:
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    for name in events.Tags()["images"]:
        for event in events.Images(name):
            assert np.asarray(Image.open(io.BytesIO(event.encoded_image_string))).std() > 0
    return {name: [event.step for event in events.Images(name)] for name in events.Tags()["images"]}


def test_scores_and_mistakes_after_each_validation_and_the_first_batch_once(trained: Path) -> None:
    steps = list(pd.read_csv(trained / "metrics.csv")["step"])
    found = _images(trained)
    assert found["val/scores"] == steps
    assert found["train/first batch"] == [0]
    mistakes = {"val/called tumor, is normal", "val/called normal, is tumor"}
    assert set(found) == {"val/scores", "train/first batch", *mistakes}
    assert all(found[kind] == steps for kind in mistakes)  # of an epoch without any, that there is none


def test_images_change_no_number_and_a_resumed_run_draws_no_second_first_batch(drawn: Path) -> None:
    args = ["fit", "-c", BASE, "--data.root", str(drawn), *LOGGED]
    assert main([*args, "--trainer.max_epochs=1"]) == 0
    assert main([*args, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    assert main([*args, "--trainer.max_epochs=1", "--trainer.logger=false"]) == 0
    first, bare = Path("lightning_logs/base/version_0"), Path("lightning_logs/base/version_1")
    scores = ["train/loss", "val/loss", "val/auroc"]
    pd.testing.assert_frame_equal(
        pd.read_csv(first / "metrics.csv")[scores].iloc[:1], pd.read_csv(bare / "metrics.csv")[scores]
    )
    found = _images(first)
    assert len(found["val/scores"]) == 2
    assert found["train/first batch"] == [0]
    assert not list(bare.glob("events*"))


def test_sanity_steps_are_not_drawn(drawn: Path) -> None:
    args = ["fit", "-c", BASE, "--data.root", str(drawn), "--trainer.max_epochs=1", *LOGGED]
    assert main([*args, "--trainer.num_sanity_val_steps=-1"]) == 0
    run = Path("lightning_logs/base/version_0")
    assert _images(run)["val/scores"] == list(pd.read_csv(run / "metrics.csv")["step"])


def test_most_wrong_first() -> None:
    label, logit = np.array([0, 0, 0, 1, 1, 1]), np.array([1.0, 3.0, -9.0, -0.5, -4.0, 9.0])
    found = top_errors(label, logit)
    assert {kind: list(places) for kind, places in found.items()} == {
        "called tumor, is normal": [1, 0],
        "called normal, is tumor": [4, 3],
    }


@pytest.mark.parametrize("count", [4, 5000])
def test_images_of_few_and_many_patches(count: int) -> None:
    rng = np.random.default_rng(0)
    label = np.arange(count) % 2
    figure = evaluation_panel(label, rng.normal(label, 1))
    assert [axes.get_title(loc="left").rsplit("n = ")[-1] for axes in figure.axes] == [f"{count:,}"] * 4
