import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pcam_lightning.synthetic import kaggle_folder as synthetic
from pcam_lightning.synthetic.kaggle_folder import synthesize
from pcam_lightning.synthetic.tissue import synthesize_patch
from pcam_lightning.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("synthetic") / "data"
    synthesize(dest, train=40, test=12, slides=8)
    return dest


def ids(dest: Path, name: str = "train_labels.csv") -> list[str]:
    return pd.read_csv(dest / name)["id"].tolist()


def test_label_is_tumor_in_the_center() -> None:
    slides = synthetic._slides(8, 0, 1.0)
    beside = 0
    for number in range(60):
        side, label = int(number % 3 > 0), int(number % 3 > 1)
        patch, mask = synthesize_patch(np.random.default_rng(number), slides["train", side][0], label)
        assert patch.shape == (96, 96, 3)
        assert patch.dtype == np.uint8
        assert mask.shape == (96, 96)
        assert mask[32:64, 32:64].any() == bool(label)
        assert side or not mask.any(), "a normal slide shows a tumor"
        beside += int(side and not label and mask.any())
    assert beside >= 5, "hardly a negative has its tumor outside the center"


def test_ids_are_sha1_of_the_pixels(folder: Path) -> None:
    paths = sorted(folder.glob("*/*.tif"))
    assert len(paths) == 52
    for path in paths:
        with Image.open(path) as image:
            assert (image.mode, image.size, image.info["compression"]) == ("RGB", (96, 96), "raw")
            assert hashlib.sha1(image.tobytes()).hexdigest() == path.stem


def test_tables_agree_with_the_files(folder: Path) -> None:
    labels, answers = pd.read_csv(folder / "train_labels.csv"), pd.read_csv(folder / "answers.csv")
    submission, wsi = pd.read_csv(folder / "sample_submission.csv"), pd.read_csv(folder / "patch_id_wsi_full.csv")
    assert sorted(labels["id"]) == sorted(path.stem for path in (folder / "train").iterdir())
    assert sorted(answers["id"]) == sorted(path.stem for path in (folder / "test").iterdir())
    assert submission["id"].tolist() == answers["id"].tolist()
    assert labels["label"].mean() == pytest.approx(0.4)
    assert set(answers["label"]) == {0, 1}
    assert set(submission["label"]) == {0}
    classes: dict[str, set[int]] = {}
    both = labels.merge(wsi, on="id", validate="one_to_one")
    for name, label in zip(both["wsi"].tolist(), both["label"].tolist(), strict=True):
        classes.setdefault(name, set()).add(label)
    for name, of_slide in classes.items():
        assert of_slide == ({0, 1} if name.startswith("camelyon16_train_tumor_") else {0}), name


def test_no_slide_in_train_and_test(folder: Path) -> None:
    slides = synthetic._slides(8, 0, 1.0)
    names = {split: {slide.name for side in (0, 1) for slide in slides[split, side]} for split in ("train", "test")}
    assert not names["train"] & names["test"]
    assert len(names["train"] | names["test"]) == 8
    assert set(pd.read_csv(folder / "patch_id_wsi_full.csv")["wsi"]) == names["train"]


@pytest.mark.parametrize("count", [4, 5, 24, 216])
def test_each_split_has_both_sides(count: int) -> None:
    slides = synthetic._slides(count, 0, 1.0)
    assert len(slides) == 4
    assert all(slides.values())


def test_same_seed_same_patches(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "PER_PROCESS", 1)  # worker processes draw what one process draws
    synthesize(tmp_path / "same", train=40, test=12, slides=8)
    synthesize(tmp_path / "fewer", train=3, test=0, slides=8)
    synthesize(tmp_path / "other", train=3, test=2, slides=8, seed=1)
    for name in ("train_labels.csv", "answers.csv", "sample_submission.csv", "patch_id_wsi_full.csv"):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
    assert set(ids(tmp_path / "fewer")) < set(ids(folder))
    assert not set(ids(tmp_path / "other")) & set(ids(folder))
    assert not set(ids(tmp_path / "other", "answers.csv")) & set(ids(folder, "answers.csv"))


def test_smallest_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    synthesize(tmp_path / "one", train=1, test=0, slides=4)
    synthesize(tmp_path / "empty", train=2, test=2, slides=4)
    assert len(ids(tmp_path / "one")) == 1
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "train",
        "train_labels.csv",
        "patch_id_wsi_full.csv",
        "SYNTHETIC.txt",
    }
    for name in ("train_labels.csv", "answers.csv"):
        assert sorted(pd.read_csv(tmp_path / "empty" / name)["label"]) == [0, 1]


def test_a_repeated_patch_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blank(rng: np.random.Generator, slide: object, label: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((96, 96, 3), rng.integers(250, 256), np.uint8), np.zeros((96, 96), np.bool_)

    monkeypatch.setattr(synthetic, "synthesize_patch", blank)
    synthesize(tmp_path / "data", train=4, test=2)
    assert len({*ids(tmp_path / "data"), *ids(tmp_path / "data", "answers.csv")}) == 6


def test_leaves_a_folder_with_content_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="data exists and is not empty"):
        synthesize(tmp_path / "data", train=1, test=0)
    assert [path.name for path in tmp_path.glob("*data*")] == ["data"]
    assert [path.read_text() for path in (tmp_path / "data").iterdir()] == ["mine"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_leaves_nothing_when_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | OSError
) -> None:
    def stop(path: Path, content: str) -> None:
        raise error

    monkeypatch.setattr(synthetic, "atomic_write", stop)
    with pytest.raises((KeyboardInterrupt, UserError)):
        synthesize(tmp_path / "data", train=2, test=0)
    assert not list(tmp_path.glob("*data*"))


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"test": -1}, {"slides": 3}, {"seed": -1}, {"slide_effect": -0.1}, {"slide_effect": 99.0}]
)
def test_refuses_numbers_out_of_range(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        synthesize(tmp_path / "data", **wrong)
    assert not list(tmp_path.glob("*data*"))


def test_slide_effect_parts_the_slides() -> None:
    """The same tissue on several slides: only stain and scanner differ."""
    spread = {}
    for effect in (0.0, 1.0):
        slides = synthetic._slides(12, 0, effect)["train", 0]
        patches = [[synthesize_patch(np.random.default_rng(i), slide, 0)[0] for i in range(4)] for slide in slides]
        spread[effect] = np.array(patches).mean((1, 2, 3)).std(0).mean()
    assert spread[0.0] < 1e-9
    assert spread[1.0] > 4
