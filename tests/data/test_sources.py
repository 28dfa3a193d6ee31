"""Data folders: which one was meant, and none taken for another kind without a word."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import FAST, MakeFolder
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.data.csv_tables import read_labels
from pcam_lightning.data.h5_files import PREFIX
from pcam_lightning.data.image_io import read_patch
from pcam_lightning.data.slide_map import read_slides
from pcam_lightning.data.sources import parts, read_test, read_train
from pcam_lightning.data.splits import read_split
from pcam_lightning.slides.slide_scale import read_mpp_table
from pcam_lightning.training.predictions import read_predictions_csv
from pcam_lightning.utils.errors import UserError


@pytest.mark.parametrize("depth", ["histopathologic-cancer-detection", "a/b", "pcam"])
def test_a_folder_above_a_data_folder_names_it(
    depth: str, kaggle: MakeFolder, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = tmp_path / "w" / depth
    if depth == "pcam":  # as torchvision.datasets.PCAM lays it out
        inner.mkdir(parents=True)
        (inner / f"{PREFIX}train_x.h5").write_bytes(b"")
    else:
        kaggle(root=inner)
    above = str(tmp_path / "w")
    checkpoint = str(run_copy / "checkpoints" / "best.ckpt")
    for args in (
        ["predict", "--ckpt_path", checkpoint, "--data.root", above],
        ["pack", "--data.root", above],
        ["fit", "--data.root", above, *FAST],
    ):
        assert main(args) == 2
        expected = f"error: {above}: is not a data folder, and {inner} looks like one; use --data.root {inner}."
        assert capsys.readouterr().err.splitlines()[-1] == expected
    assert not (tmp_path / "w" / ".pcam_cache").exists()


@pytest.mark.parametrize("name", ["Train", "train_images", "training", "mine"])
def test_a_training_part_under_another_name_is_named(
    name: str, kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle()
    (root / "train").rename(root / name)
    if name == "mine":  # no name that tells what it is
        assert parts(root) == ["test"]
        assert f"warning: {root}: has a train_labels.csv and no train/" in capsys.readouterr().err
        return
    for read in (parts, read_train):
        with pytest.raises(UserError, match=rf"has a folder {name}/ and none called train/; rename it to train/"):
            read(root)
    assert len(read_test(root)) == 4  # what is predicted has nothing to do with it


def test_a_data_folder_is_found_at_any_depth_and_beside_many_others(kaggle: MakeFolder, tmp_path: Path) -> None:
    deep, wide, unlabeled = (tmp_path / name for name in ("deep", "wide", "unlabeled"))
    kaggle(root=deep / "a" / "b" / "c")
    for number in range(120):
        (wide / f"slide_{number:03d}").mkdir(parents=True)
    kaggle(root=wide / "z" / "kaggle")
    inner = kaggle(root=unlabeled / "kaggle")
    (inner / "train").rename(inner / "Train")
    (inner / "test").rename(inner / "Test")
    (inner / "train_labels.csv").unlink()
    for root, found in ((deep, "a/b/c"), (wide, "z/kaggle"), (unlabeled, "kaggle")):
        with pytest.raises(UserError, match=rf"is not a data folder, and {re.escape(str(root / found))} looks like"):
            read_test(root)


def test_the_training_part_is_known_as_the_current_folder(kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = kaggle()
    monkeypatch.chdir(root / "train")
    with pytest.raises(UserError, match=rf"is the training part of {re.escape(str(root))}"):
        read_test(Path())


READERS: dict[str, tuple[str, list[str], Callable[[Path], object], object]] = {
    "labels": ("id,label", ["NA,0", "007,1"], lambda path: list(read_labels(path)["id"]), ["NA", "007"]),
    "slides": ("id,wsi", ["NA,null", "007,nan"], lambda path: dict(read_slides(path)), {"NA": "null", "007": "nan"}),
    "split": (
        "id,split", ["NA,val", "007,train"], lambda path: list(read_split(path, _rows("NA", "007"))), [True, False]
    ),
    "predictions": (
        "id,label,logit,slide",
        ["NA,0,1.5,null", "007,1,2,01"],
        lambda path: read_predictions_csv(path)[["id", "slide"]].to_numpy().tolist(),
        [["NA", "null"], ["007", "01"]],
    ),
    "scales": ("slide,mpp", ["NA,0.5", "007,0.25"], read_mpp_table, {"NA": 0.5, "007": 0.25}),
}  # fmt: skip


def _rows(*ids: str) -> pd.DataFrame:
    return pd.DataFrame({"id": ids, "label": 0, "pixel_sha1": ids})


@pytest.mark.parametrize("end", ["", ","])
@pytest.mark.parametrize("name", READERS)
def test_ids_are_the_text_that_they_are_and_a_comma_at_the_end_of_each_row_is_no_cell(
    name: str, end: str, tmp_path: Path
) -> None:
    header, rows, read, expected = READERS[name]
    (tmp_path / "any.csv").write_text("\n".join([header, *(row + end for row in rows)]))
    assert read(tmp_path / "any.csv") == expected


def test_errors_quote_no_more_of_a_file_than_a_line_holds(tmp_path: Path) -> None:
    path = tmp_path / "any.csv"
    path.write_text(",".join(f"column{number}" for number in range(5_000)) + "\n1\n")
    with pytest.raises(UserError, match="no column id nor label") as error:
        read_labels(path)
    assert len(str(error.value)) < 500
    path.write_text(f"id,split\na,{'x' * 70_000}\n")
    with pytest.raises(UserError, match="is neither train nor val") as error:
        read_split(path, pd.DataFrame({"id": ["a"], "label": [0], "pixel_sha1": ["1"]}))
    assert len(str(error.value)) < 500


def test_a_test_part_under_another_name_is_named(kaggle: MakeFolder) -> None:
    root = kaggle()
    (root / "test").rename(root / "Test_Images")
    with pytest.raises(UserError, match="has a folder Test_Images/ and none called test/"):
        read_test(root)


def test_the_training_part_is_not_taken_for_patches_to_predict(kaggle: MakeFolder) -> None:
    root = kaggle()
    with pytest.raises(UserError, match=rf"is the training part of {re.escape(str(root))}"):
        read_test(root / "train")
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "test")
    Image.new("RGB", (96, 96)).save(root / "patch.tif")
    with pytest.raises(UserError, match="test: no such folder"):  # train_labels.csv makes it Kaggle's
        read_test(root)


def test_patches_alone_are_predicted_whatever_their_folders_are_called(kaggle: MakeFolder, tmp_path: Path) -> None:
    root, source = tmp_path / "bare", kaggle() / "test"
    for number, path in enumerate(sorted(source.iterdir())):
        folder = root / f"slide_{number % 2}" / "tumor"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    assert len(read_test(root)) == 4
    assert parts(root) == ["test"]


def test_pcams_valid_part_alone_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"{PREFIX}valid_x.h5").write_bytes(b"")
    assert main(["pack", "--data.root", str(tmp_path)]) == 2
    assert "has neither PCam's train nor its test files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"), [("a.png", "not a folder or a .csv; name"), ("k.zip", "unzip it and name")]
)
def test_a_file_is_no_data_folder(name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert main(["fit", "--data.root", str(tmp_path / name), *FAST]) == 2
    assert reason in capsys.readouterr().err


def _add_suffix(path: Path) -> None:
    frame = pd.read_csv(path)
    frame.assign(id=frame["id"] + ".tif").to_csv(path, index=False)


def test_ids_may_have_the_suffix_of_their_file(drawn: Path, run_copy: Path, tmp_path: Path) -> None:
    root = tmp_path / "suffix"
    shutil.copytree(drawn, root, ignore=shutil.ignore_patterns(".pcam_cache"))
    plain, slides = read_train(root), root / "patch_id_wsi_full.csv"
    for name in ("train_labels.csv", "answers.csv", "sample_submission.csv", slides.name):
        _add_suffix(root / name)
    pd.testing.assert_frame_equal(read_train(root, slides), plain)
    checkpoint = str(run_copy / "checkpoints" / "best.ckpt")
    cpu = "--trainer.accelerator=cpu"
    for stage in ("predict", "test"):
        assert main([stage, "--ckpt_path", checkpoint, "--data.root", str(root), cpu]) == 0
    submission = pd.read_csv(run_copy / "submission.csv")
    assert list(submission["id"]) == list(pd.read_csv(root / "sample_submission.csv")["id"])  # as Kaggle spells them
    assert main(["evaluate", str(run_copy / "submission.csv"), "--labels", str(drawn / "answers.csv")]) == 0


def test_an_id_twice_with_and_without_suffix(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("id,label\na,0\na.tif,1\n")
    with pytest.raises(UserError, match="row 3: id a is in row 2 already"):
        read_labels(tmp_path / "labels.csv")


def test_other_kinds_of_files_are_called_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new("RGB", (96, 96)).save(path, "JPEG")
    with pytest.raises(ValueError, match="a JPEG image"):
        read_patch(path)
    Image.fromarray(np.zeros((96, 96), dtype=np.float32)).save(path, "TIFF")
    with pytest.raises(ValueError, match="pixels of mode F"):
        read_patch(path)
    path.write_bytes(_float_rgb_tiff())
    with pytest.raises(ValueError, match="a TIFF of 32-bit float pixels, 3 a pixel: no lossless way to 8-bit RGB"):
        read_patch(path)
    for content, reason in ((b"", "an empty file"), (b"id,label\n", "not a TIFF or PNG image"), (b"II*\0", "damaged")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            read_patch(path)


def _float_rgb_tiff() -> bytes:
    """Write a float32 RGB TIFF of 96 x 96 pixels, which Pillow does not read."""
    entries = [
        (256, 3, 1, 96), (257, 3, 1, 96), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 300),
        (277, 3, 1, 3), (278, 3, 1, 96), (279, 4, 1, 96 * 96 * 12), (339, 3, 3, 210),
    ]  # fmt: skip
    directory = len(entries).to_bytes(2, "little")
    for tag, kind, count, value in entries:
        directory += tag.to_bytes(2, "little") + kind.to_bytes(2, "little")
        directory += count.to_bytes(4, "little") + value.to_bytes(4, "little")
    content = b"II*\0" + (8).to_bytes(4, "little") + directory + bytes(4)
    content = content.ljust(200, b"\0") + 3 * (32).to_bytes(2, "little")
    content = content.ljust(210, b"\0") + 3 * (3).to_bytes(2, "little")
    return content.ljust(300, b"\0") + bytes(96 * 96 * 12)
