"""PCam's own files: read, trained, scored, mapped to Kaggle's ids; and what is said of damaged ones."""

import gzip
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import CONFIGS, FAST
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.data.h5_files import PREFIX
from pcam_lightning.data.image_io import BYTES
from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_test, read_train
from pcam_lightning.utils.errors import UserError

BASE = str(CONFIGS / "base.yaml")


def _write(root: Path, part: str, images: np.ndarray, label: np.ndarray, slide: list[str]) -> None:
    with h5py.File(root / f"{PREFIX}{part}_x.h5", "w") as file:
        file["x"] = images
    with h5py.File(root / f"{PREFIX}{part}_y.h5", "w") as file:
        file["y"] = label.reshape(-1, 1, 1, 1).astype(np.uint8)
    center = label.astype(bool)
    around = center | (np.arange(len(label)) % 3 == 0)  # tumor outside the center does not count
    meta = pd.DataFrame({"tumor_patch": around, "center_tumor_patch": center, "wsi": slide})
    meta.to_csv(root / f"{PREFIX}{part}_meta.csv")


@pytest.fixture
def pcam(tmp_path: Path, drawn: Path) -> Path:
    """Return a folder in PCam's layout: 60 + 30 + 30 of the drawn patches, one of them twice."""
    root = tmp_path / "pcam"
    root.mkdir()
    table = read_train(drawn).sort_values("slide", kind="stable", ignore_index=True)
    images = np.stack([np.asarray(Image.open(drawn / path)) for path in table["path"]])
    order = np.random.default_rng(0).permutation(120)
    images[order[1]], table.loc[order[1], ["label", "slide"]] = (
        images[order[0]], table.loc[order[0], ["label", "slide"]].tolist()
    )  # fmt: skip
    for part, rows in (("train", order[:60]), ("valid", order[60:90]), ("test", order[90:])):
        of_part = table.loc[rows]
        _write(root, part, images[rows], of_part["label"].to_numpy(), list(of_part["slide"]))
    return root


def test_ids_slides_labels_and_pixels(pcam: Path) -> None:
    table = read_train(pcam)
    assert list(table["id"].iloc[[0, 59, 60, 89]]) == ["train-000000", "train-000059", "valid-000000", "valid-000029"]
    assert list(table["val"]) == [False] * 60 + [True] * 30
    meta = pd.concat(pd.read_csv(pcam / f"{PREFIX}{part}_meta.csv") for part in ("train", "valid"))
    assert list(table["slide"]) == list(meta["wsi"])
    assert list(table["label"]) == list(meta["center_tumor_patch"].astype(int))
    store = open_store(table, open_source(pcam), "train")
    with h5py.File(pcam / f"{PREFIX}valid_x.h5") as file:
        assert (store.images[store.rows(table["id"])][60:] == file["x"][:]).all()
    assert store.pixel_sha1[0] == store.pixel_sha1[1]
    assert "label" not in read_test(pcam)


def test_compressed_files_are_the_same_and_leave_nothing_behind(pcam: Path) -> None:
    plain = open_store(read_train(pcam), open_source(pcam), "train").images[:].copy()
    for path in pcam.glob("*.h5"):
        with path.open("rb") as file, gzip.open(f"{path}.gz", "wb") as packed:
            shutil.copyfileobj(file, packed)
        path.unlink()
    store = open_store(read_train(pcam), open_source(pcam), "train")
    assert (store.images[:] == plain).all()
    assert not [path for path in pcam.rglob("*") if ".tmp" in path.name]


def test_official_parts_train_validate_and_test(pcam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", BASE, "--data.root", str(pcam), "--trainer.max_epochs=1", *FAST]) == 0
    message = capsys.readouterr().err
    assert re.search(r"60 patches \(\d+\.\d% tumor, \d slides\) to train on, 30 patches", message)
    run = Path("lightning_logs/base/version_0")
    best = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--trainer.accelerator=cpu"]
    assert main(["test", *best]) == 0
    answers = pd.read_csv(run / "test_predictions.csv")
    assert len(answers) == 30
    assert answers["slide"].notna().all()
    assert main(["predict", *best]) == 0
    assert list(pd.read_csv(run / "submission.csv")["id"]) == [f"test-{n:06d}" for n in range(30)]


def test_folds_of_the_official_files_keep_slides_whole(pcam: Path) -> None:
    args = ["fit", "-c", BASE, "--data.root", str(pcam), "--trainer.max_epochs=1", "--data.folds=2", *FAST]
    assert main(args) == 0
    part = pd.read_csv("lightning_logs/base/version_0/split.csv").set_index("id")["split"]
    slides = read_train(pcam).set_index("id")["slide"]
    assert not set(slides[part == "val"]) & set(slides[part == "train"])


def _truncate(root: Path) -> None:
    path = root / f"{PREFIX}train_x.h5"
    path.write_bytes(path.read_bytes()[:-100_000])


def _swap(root: Path) -> None:
    x, y = root / f"{PREFIX}train_x.h5", root / f"{PREFIX}train_y.h5"
    with h5py.File(x) as first, h5py.File(y) as second:
        images, labels = first["x"][:], second["y"][:]
    with h5py.File(x, "w") as first, h5py.File(y, "w") as second:
        first["x"], second["y"] = labels, images


def _rename(root: Path) -> None:
    x, y = root / f"{PREFIX}train_x.h5", root / f"{PREFIX}train_y.h5"
    x.rename(root / "z")
    y.rename(x)
    (root / "z").rename(y)


def _shorten(root: Path) -> None:
    with h5py.File(root / f"{PREFIX}train_y.h5", "r+") as file:
        labels = file["y"][:-1]
        del file["y"]
        file["y"] = labels


def _shorten_images(root: Path) -> None:
    with h5py.File(root / f"{PREFIX}valid_x.h5", "r+") as file:
        images = file["x"][:-1]
        del file["x"]
        file["x"] = images


def _odd_label(root: Path) -> None:
    with h5py.File(root / f"{PREFIX}valid_y.h5", "r+") as file:
        file["y"][3] = 2


def _turn_labels(root: Path) -> None:
    with h5py.File(root / f"{PREFIX}valid_y.h5", "r+") as file:
        file["y"][:5] = 1 - file["y"][:5]


def _cut_packed_images(root: Path) -> None:
    path = root / f"{PREFIX}train_x.h5"
    (root / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()


def _cut_gzip(root: Path) -> None:
    path = root / f"{PREFIX}train_y.h5"
    (root / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()


def _remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / f"{PREFIX}{name}").unlink()


def _no_wsi(root: Path) -> None:
    (root / f"{PREFIX}train_meta.csv").write_text("a,b\n1,2\n")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_truncate, "train_x.h5: not an HDF5 file, or a damaged one"),
        (_swap, r"train_y.h5: its shape is \(60, 96, 96, 3\).*swapped"),
        (_rename, "train_y.h5: holds x, and no array y"),
        (_shorten, "train_meta.csv: 60 rows, and .*train_y.h5 has 59 labels"),
        (_shorten_images, "valid_x.h5: 29 patches, and there are 30 labels"),
        (_odd_label, "valid_y.h5: label 2 is neither 0 nor 1"),
        (_cut_gzip, "train_y.h5.gz: a damaged .gz file"),
        (_cut_packed_images, "train_x.h5.gz: a damaged .gz file"),
        (_turn_labels, "valid_y.h5: 5 labels differ from center_tumor_patch in .*valid_meta.csv"),
        (_remove("valid_x.h5"), "valid_x.h5: no such file, nor .*valid_x.h5.gz"),
        (_no_wsi, "train_meta.csv: not a CSV file with a column wsi"),
    ],
)
def test_damaged_files(pcam: Path, damage: Callable[[Path], None], expected: str) -> None:
    damage(pcam)
    with pytest.raises(UserError, match=expected):
        open_store(read_train(pcam), open_source(pcam), "train")
    assert not list(pcam.glob(".pcam_cache/train-*"))


def test_slides_of_kaggles_ids(pcam: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kaggle = tmp_path / "kaggle"
    kaggle.mkdir()
    labels = pd.read_csv(drawn / "train_labels.csv")
    labels.to_csv(kaggle / "train_labels.csv", index=False)
    assert main(["slides", str(pcam), "--root", str(kaggle)]) == 0
    message = capsys.readouterr().err
    found = pd.read_csv(kaggle / "patch_id_wsi.csv").set_index("id")["wsi"]
    known = pd.read_csv(drawn / "patch_id_wsi_full.csv").set_index("id")["wsi"]
    assert len(found) == 59
    assert (found == known[found.index]).all()
    assert "59 of 120 ids (49.2%)" in message
    assert "30 of Kaggle's training patches stand in PCam's valid part too" in message
    assert "the other 61 patches count as one slide, though they may be of any" in message
    assert main(["slides", str(pcam), "--root", str(kaggle)]) == 0  # the same map may be written again
    (kaggle / "patch_id_wsi.csv").write_text("id,wsi\n")
    assert main(["slides", str(pcam), "--root", str(kaggle)]) == 2
    assert "--overwrite true replaces it" in capsys.readouterr().err
    (kaggle / "train_labels.csv").write_text("id,label\na,0\nb,1\n")
    assert main(["slides", str(pcam), "--root", str(kaggle)]) == 2
    assert "none of the 2 ids" in capsys.readouterr().err


def test_images_alone_are_predicted(pcam: Path) -> None:
    for kind in ("y.h5", "meta.csv"):
        (pcam / f"{PREFIX}test_{kind}").unlink()
    assert list(read_test(pcam)["id"]) == [f"test-{n:06d}" for n in range(30)]
    with pytest.raises(UserError, match=r"test_y.h5: no such file"):
        read_test(pcam, answers=True)


def test_slides_of_packed_files_and_of_parts_that_are_not_there(
    pcam: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle = tmp_path / "kaggle"
    kaggle.mkdir()
    shutil.copy(drawn / "train_labels.csv", kaggle)
    path = pcam / f"{PREFIX}train_x.h5"
    (pcam / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    for gone in (path, pcam / f"{PREFIX}valid_x.h5"):
        gone.unlink()
    (pcam / f"{PREFIX}test_y.h5").rename(tmp_path / "y.h5")
    assert main(["slides", str(pcam), "--root", str(kaggle)]) == 2  # before anything is hashed
    assert "test_y.h5: no such file" in capsys.readouterr().err
    (tmp_path / "y.h5").rename(pcam / f"{PREFIX}test_y.h5")
    assert main(["slides", str(pcam), "--root", str(kaggle)]) == 0
    assert "valid: not in " in capsys.readouterr().err
    assert len(pd.read_csv(kaggle / "patch_id_wsi.csv")) == 59
    assert {path.name for path in kaggle.iterdir()} == {"train_labels.csv", "patch_id_wsi.csv"}


SAMPLE = Path(__file__).parents[3] / "shared" / "pcam" / "kaggle-sample.zip"


@pytest.mark.skipif(not SAMPLE.is_file(), reason="no real patches at hand")
def test_real_patches_in_pcams_layout(tmp_path: Path) -> None:
    """Lossless ones: their ids are the SHA-1 of their pixels, so that slides finds each."""
    root, kaggle = tmp_path / "pcam", tmp_path / "kaggle"
    root.mkdir()
    with zipfile.ZipFile(SAMPLE) as archive:
        archive.extractall(kaggle)
    kaggle = next(kaggle.rglob("train_labels.csv")).parent
    table = read_train(kaggle)
    images = np.stack([np.asarray(Image.open(kaggle / path)) for path in table["path"]])
    slide = [f"camelyon16_train_tumor_{n % 12:03d}" for n in range(len(table))]
    other = [name.replace("train_tumor", "test") for name in slide]
    for part, rows, names in (
        ("train", slice(0, 400), slide),
        ("valid", slice(400, 500), other),
        ("test", slice(500, 600), other),
    ):
        _write(root, part, images[rows], table["label"].to_numpy()[rows], names[rows])
    assert (
        main(
            [
                "fit",
                "-c",
                BASE,
                "--data.root",
                str(root),
                "--trainer.max_epochs=1",
                "--trainer.limit_train_batches=2",
                *FAST,
            ]
        )
        == 0
    )
    best = ["--ckpt_path", "lightning_logs/base/version_0/checkpoints/best.ckpt", "--trainer.accelerator=cpu"]
    assert main(["test", *best]) == 0
    assert len(pd.read_csv("lightning_logs/base/version_0/test_predictions.csv")) == 100
    assert main(["slides", str(root), "--root", str(kaggle)]) == 0
    found = pd.read_csv(kaggle / "patch_id_wsi.csv").set_index("id")["wsi"]
    assert list(found[table["id"][:400]]) == slide[:400]


def test_exact_copies_across_the_official_parts_are_counted(pcam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(pcam / f"{PREFIX}train_x.h5") as train, h5py.File(pcam / f"{PREFIX}valid_x.h5", "r+") as valid:
        valid["x"][3:6] = train["x"][10:13]
    assert main(["fit", "-c", BASE, "--data.root", str(pcam), "--trainer.max_epochs=1", *FAST]) == 0
    printed = capsys.readouterr().err
    assert "3 of 30 validation patches have an exact copy in the training part" in printed


@pytest.mark.parametrize("missing", [("train", "valid", "test"), ("valid",)])
def test_without_meta_files_slides_are_not_known(
    missing: tuple[str, ...], pcam: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in missing:
        (pcam / f"{PREFIX}{part}_meta.csv").unlink()
    table = read_train(pcam)
    assert "slide" not in table
    assert len(table) == 90
    assert f"{PREFIX}valid_meta.csv: no such file; the slides of valid are not known" in capsys.readouterr().err
    assert main(["fit", "-c", BASE, "--data.root", str(pcam), "--trainer.max_epochs=1", *FAST]) == 0
    assert "optimistic: patches of one slide" not in capsys.readouterr().err  # the parts are of different slides
    run = Path("lightning_logs/base/version_0")
    best = str(run / "checkpoints" / "best.ckpt")
    assert main(["test", "--ckpt_path", best, "--trainer.accelerator=cpu"]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert main(["slides", str(pcam), "--root", str(pcam)]) == 2


def test_folds_without_meta_files_are_at_random(pcam: Path) -> None:
    for part in ("train", "valid"):
        (pcam / f"{PREFIX}{part}_meta.csv").unlink()
    args = ["fit", "-c", BASE, "--data.root", str(pcam), "--data.folds=2", "--trainer.max_epochs=1", *FAST]
    assert main(args) == 0


def test_room_for_what_is_unpacked_is_counted(pcam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed x is unpacked beside the array that is written: twice the size of its patches."""
    for path in pcam.glob(f"{PREFIX}*_x.h5"):
        with gzip.open(f"{path}.gz", "wb") as file:
            file.write(path.read_bytes())
        path.unlink()
    usage = shutil.disk_usage(pcam)
    patches = len(read_train(pcam))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(1.5 * patches * BYTES)))
    with pytest.raises(UserError, match="packing needs"):
        open_store(read_train(pcam), open_source(pcam), "train")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * patches * BYTES))
    assert len(open_store(read_train(pcam), open_source(pcam), "train").ids) == patches
