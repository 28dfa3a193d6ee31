"""What a user is told about a data folder that is not as it should be, and what is read from one that is."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import FAST, MakeFolder
from PIL import Image

from pcam_lightning.cli import main
from pcam_lightning.messages import UserError
from pcam_lightning.table import read_test, read_train


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


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return edit


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (root / name).write_bytes(content)

    return write


def _remove(pattern: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        for path in root.glob(pattern):
            path.unlink()

    return remove


def _two_files_of_one_id(root: Path) -> None:
    (root / "train" / "deeper").mkdir()
    (root / "train" / "deeper" / "train000.tif").write_bytes((root / "train" / "train000.tif").read_bytes())


def _one_class(root: Path) -> None:
    text = (root / "train_labels.csv").read_text()
    (root / "train_labels.csv").write_text(re.sub(",1\n", ",0\n", text))


COMPLAINTS = {
    "no CSV": (_remove("train_labels.csv"), r"train_labels.csv: no such file; download"),
    "empty CSV": (_write("train_labels.csv", b""), r"train_labels.csv: not a CSV file .* id,label"),
    "binary CSV": (_write("train_labels.csv", b"\xff\xfe\x00junk"), r"train_labels.csv: not a CSV file"),
    "header alone": (_write("train_labels.csv", b"id,label\n"), r"train_labels.csv: no rows below the header"),
    "wrong columns": (_edit("train_labels.csv", "id,label", "name,class"), r"no column id nor label; .*'name,class'"),
    "word label": (_edit("train_labels.csv", "train010,0", "train010,yes"), r'row 12: label "yes" is neither 0 nor 1'),
    "no label": (_edit("train_labels.csv", "train010,0", "train010,"), r'row 12: label "" is neither 0 nor 1'),
    "label 2": (_edit("train_labels.csv", "train011,1", "train011,2"), r'row 13: label "2" is neither'),
    "id twice": (_edit("train_labels.csv", "train005", "train004"), r"row 7: id train004 stands in row 6 already"),
    "empty id": (_edit("train_labels.csv", "train005", ""), r"row 7: id '' is empty or has a path separator"),
    "id up": (_edit("train_labels.csv", "train005", "../train005"), r"row 7: id '../train005' is empty or has a path"),
    "id backslash": (_edit("train_labels.csv", "train005", r"a\b"), r"row 7: id .* has a path separator"),
    "id no file": (_remove("train/train00[0-4].tif"), r"5 of the ids have no .* file in .*train: train000, train001, "),
    "no images": (_remove("train/*"), r"train: no .tif or .png file in it or below"),
    "two files": (_two_files_of_one_id, r"train000.tif and .*train000.tif have the same id; remove"),
    "one class": (_one_class, r"train_labels.csv: every label is 0; training needs patches of both classes"),
}


@pytest.mark.parametrize("name", COMPLAINTS)
def test_complaint_names_file_and_way_on_and_nothing_is_written(
    name: str, kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks, expected = COMPLAINTS[name]
    root = kaggle()
    breaks(root)
    before = sorted(root.rglob("*"))
    assert main(["fit", "--data.root", str(root), *FAST]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert re.search(expected, errors[0]), errors[0]
    assert str(root) in errors[0]
    assert sorted(root.rglob("*")) == before
    assert not Path("lightning_logs").exists()


def test_missing_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data.root", "nowhere", *FAST]) == 2
    assert re.search(r"error: \S*nowhere: no such folder; .*--data.root", capsys.readouterr().err)


def test_files_without_label_are_counted_not_used(kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]) -> None:
    root = kaggle()
    _edit("train_labels.csv", "train005,1\n", "")(root)
    assert len(read_train(root)) == 19
    assert re.search(r"warning: .*train: 1 image files have no label", capsys.readouterr().err)


def test_answers_must_know_every_id(kaggle: MakeFolder) -> None:
    root = kaggle()
    with pytest.raises(UserError, match=r"answers.csv: no such file"):
        read_test(root, answers=True)
    (root / "answers.csv").write_text("id,label\ntest000,1\ntest001,0\n")
    with pytest.raises(UserError, match=r"answers.csv: 2 of the ids have no label there: test003, test002"):
        read_test(root, answers=True)
