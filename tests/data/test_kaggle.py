"""What is read from a data folder that is as it should be; of others see faults/test_bad_input.py."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import MakeFolder
from PIL import Image

from pcam_lightning.data.resize import make_resize
from pcam_lightning.data.sources import open_source, read_test, read_train
from pcam_lightning.utils.errors import UserError


def test_reads_kaggles_layout_at_any_depth_and_png_too(kaggle: MakeFolder) -> None:
    root = kaggle()
    (root / "train" / "a" / "b").mkdir(parents=True)
    (root / "train" / "train003.tif").rename(root / "train" / "a" / "b" / "train003.tif")
    Image.open(root / "train" / "train004.tif").save(root / "train" / "train004.png")
    (root / "train" / "train004.tif").unlink()
    table = read_train(root)
    assert list(table["id"]) == [f"train{n:03d}" for n in range(20)]
    assert table["path"][3] == "train/a/b/train003.tif"
    assert table["path"][4] == "train/train004.png"
    assert table["label"].sum() == 10
    assert "slide" not in table


def test_tif_comes_before_png(kaggle: MakeFolder) -> None:
    root = kaggle()
    Image.open(root / "train" / "train000.tif").save(root / "train" / "train000.png")
    assert read_train(root)["path"][0] == "train/train000.tif"


def test_slides_are_merged_by_id(drawn: Path) -> None:
    table = read_train(drawn)
    slides = pd.read_csv(drawn / "patch_id_wsi_full.csv").set_index("id")["wsi"]
    assert (table["slide"] == table["id"].map(slides)).all()


def test_test_part_keeps_the_order_of_the_submission(kaggle: MakeFolder) -> None:
    assert list(read_test(kaggle())["id"]) == ["test003", "test002", "test001", "test000"]


def test_without_sample_submission_ids_are_sorted(kaggle: MakeFolder) -> None:
    root = kaggle()
    (root / "sample_submission.csv").unlink()
    assert list(read_test(root)["id"]) == ["test000", "test001", "test002", "test003"]
    bare = read_test(root / "test")  # the patches themselves, in no layout at all
    assert list(bare["path"]) == ["test000.tif", "test001.tif", "test002.tif", "test003.tif"]


def test_blank_lines_and_a_byte_order_mark_are_no_rows(kaggle: MakeFolder) -> None:
    root = kaggle()
    text = (root / "train_labels.csv").read_text()
    (root / "train_labels.csv").write_text("\ufeff" + text.replace("train010", "\ntrain010") + "\n\n")
    assert len(read_train(root)) == 20


def test_columns_that_are_not_used_are_named(kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]) -> None:
    root = kaggle()
    labels = pd.read_csv(root / "train_labels.csv")
    labels.assign(sample_weight=1, wsi="a").to_csv(root / "train_labels.csv", index=False)
    read_train(root)
    assert "train_labels.csv: not used: sample_weight, wsi. A CSV of patches" in capsys.readouterr().err


def test_files_without_label_are_counted_not_used(kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]) -> None:
    root = kaggle()
    path = root / "train_labels.csv"
    path.write_text(path.read_text().replace("train005,1\n", ""))
    assert len(read_train(root)) == 19
    assert re.search(r"warning: .*train: 1 image files have no label", capsys.readouterr().err)


def test_answers_must_know_every_id(kaggle: MakeFolder) -> None:
    root = kaggle()
    with pytest.raises(UserError, match=r"answers.csv: no such file"):
        read_test(root, answers=True)
    (root / "answers.csv").write_text("id,label\ntest000,1\ntest001,0\n")
    with pytest.raises(UserError, match=r"answers.csv: 2 of the ids have no label there: test003, test002"):
        read_test(root, answers=True)


def test_ids_may_carry_the_suffix_of_jpeg_files(kaggle: MakeFolder) -> None:
    root = kaggle()
    for path in (*root.glob("train/*.tif"), *root.glob("test/*.tif")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    for name in ("train_labels.csv", "sample_submission.csv"):
        rows = pd.read_csv(root / name)
        rows.assign(id=rows["id"] + ".jpg").to_csv(root / name, index=False)
    rows.assign(id=rows["id"] + ".JPG", label=[0, 1, 0, 1]).to_csv(root / "answers.csv", index=False)
    resize = make_resize("crop", 0.972)
    train = open_source(root, "train", resize=resize).read_train()
    assert train["id"].tolist() == [f"train{n:03d}" for n in range(20)]
    assert train["path"].tolist() == [f"train/train{n:03d}.jpg" for n in range(20)]
    test = open_source(root, "test", resize=resize).read_test(answers=True)
    assert test["id"].tolist() == [f"test00{n}.jpg" for n in (3, 2, 1, 0)]  # as the submission has them
    assert test["label"].tolist() == [0, 1, 0, 1]


def test_what_macos_leaves_in_a_zip_file_is_skipped(kaggle: MakeFolder, tmp_path: Path) -> None:
    root = kaggle()
    shutil.copytree(root, root / "__MACOSX")  # whatever lies in it
    for part in ("train", "test"):
        shutil.copytree(root / part, root / part / "__MACOSX" / part)
        (root / part / f"._{part}000.tif").write_bytes(b"\0\5\x16\7")
    assert len(read_train(root)) == 20
    assert len(read_test(root)) == 4
    outer = kaggle(root=tmp_path / "outer" / "inner").parent
    shutil.copytree(outer / "inner", outer / "__MACOSX")
    with pytest.raises(UserError, match="inner looks like one; use"):  # it comes after __MACOSX by name
        read_test(outer)
    classes = tmp_path / "classes"
    for name in ("normal", "tumor", "__MACOSX/train"):
        shutil.copytree(root / "test", classes / "train" / name)
    assert len(read_train(classes)) == 8
    (root / "train_labels.csv").unlink()
    with pytest.raises(UserError, match=r"train_labels.csv: no such file"):  # and no images in a folder __MACOSX
        read_train(root)
