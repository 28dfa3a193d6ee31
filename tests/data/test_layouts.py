"""Class folders and Camelyon17-WILDS: tables, splits, and messages about what is broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST, NETWORK
from PIL import Image
from torchmetrics import MetricCollection

from pcam_lightning import PCamDataModule
from pcam_lightning.cli.main import main
from pcam_lightning.data.class_folders import ClassFolders
from pcam_lightning.data.h5_files import PREFIX
from pcam_lightning.data.leakage import find_slide_leakage
from pcam_lightning.data.sources import layout_of, open_source
from pcam_lightning.data.wilds import Wilds
from pcam_lightning.evaluation.labeled_predictions import read_labeled_predictions
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.synthetic.kaggle_folder import synthesize
from pcam_lightning.transforms.augment import Augmentation
from pcam_lightning.utils.errors import UserError


def write_patch(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(path)


def class_folders(root: Path, names: tuple[str, str] = ("0", "1"), *parts: str) -> Path:
    """Write ten patches of each class and part, numbered anew in each folder."""
    for number, part in enumerate(parts or ("train",)):
        for label, name in enumerate(names):
            for index in range(10):
                write_patch(root / part / name / f"{index:02d}.png", 100 * number + 10 * label + index)
    return root


@pytest.mark.parametrize("names", [("0", "1"), ("normal", "tumor"), ("Normal", "Tumor"), ("healthy", "cancer")])
def test_labels_are_the_names_of_folders(names: tuple[str, str], tmp_path: Path) -> None:
    data = PCamDataModule(class_folders(tmp_path / "data", names, "train", "test"), batch_size=4)
    data.setup("fit")
    assert layout_of(tmp_path / "data") is ClassFolders
    table = data.table.set_index("id")
    assert table["label"].sum() == 10
    assert table.loc[f"train_{names[1]}_03", "label"] == 1
    rows = data.train_store.rows(data.table["id"])
    for path, row in zip(data.table["path"], rows, strict=True):
        assert np.array_equal(data.train_store.images[row], np.asarray(Image.open(tmp_path / "data" / path)))
    assert int(data.val_mask.sum()) == 4  # a fifth of each class
    data.setup("test")
    assert data.test_table["label"].sum() == 10
    assert data.test_table["id"].tolist() == sorted(data.test_table["id"])


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", "VALIDATION"])
def test_a_folder_of_validation_patches_is_the_split(val: str, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", ("0", "1"), "train", val)
    data = PCamDataModule(root)
    data.setup("fit")
    assert data.table["path"][data.val_mask].str.startswith(f"{val}/").all()
    assert int(data.val_mask.sum()) == 20
    data = PCamDataModule(root, folds=5)
    data.setup("fit")
    assert int(data.val_mask.sum()) == 8


def test_parts_and_classes_count_in_any_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "data", ("NORMAL", "Tumor"), "Training", "Valid", "TEST", "Eval")
    data = PCamDataModule(root)
    data.setup("fit")
    assert set(data.table["path"].str.split("/").str[0]) == {"Training", "Valid"}
    assert set(data.table["path"][data.val_mask].str.split("/").str[0]) == {"Valid"}
    assert "data: not used: Eval/; parts are called train, val and test" in capsys.readouterr().err
    data.setup("test")
    assert data.test_table["id"].tolist()[:2] == ["NORMAL_00", "NORMAL_01"]
    assert len(data.test_table) == 20
    write_patch(root / "test" / "0" / "00.png", 1)
    with pytest.raises(UserError, match=r"data: has TEST/ and test/; keep the one that is its test part"):
        PCamDataModule(root).setup("predict")


def test_images_beside_class_folders_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "data", ("0", "1"), "train", "val")
    write_patch(root / "test" / "1" / "a.png", 900)
    for number in range(5):
        for part in ("train", "val", "test"):
            write_patch(root / part / f"{number}.png", 1000 + number)
    data = PCamDataModule(root)
    data.setup("fit")
    message = capsys.readouterr().err
    assert len(data.table) == 40
    for part in ("train", "val"):
        assert f"{part}: 5 images beside its class folders have no label and are not used, 0.png first" in message
    data.setup("predict")
    assert data.test_table["id"].tolist() == ["0", "1", "1_a", "2", "3", "4"]
    assert "test: 5 images beside its class folders are predicted too; they have no label" in capsys.readouterr().err
    data.setup("test")
    assert data.test_table["id"].tolist() == ["1_a"]
    assert "test: 5 images beside its class folders have no label and are not used" in capsys.readouterr().err


def test_jpegs_beside_other_images_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "data")
    (root / "train/1/03.png").rename(root / "train/1/03.jpg")
    PCamDataModule(root).setup("fit")
    assert "train/1: 1 .jpg files in it are not used; `data.resize` crop or scale" in capsys.readouterr().err


def test_an_id_is_a_path(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for label in (0, 1):
        for index in range(2):
            write_patch(root / "train" / str(label) / "slide" / f"{index}.tif", 10 * label + index)
    write_patch(root / "test" / "0.png", 1)
    source = open_source(root, "train")
    assert source.read_train()["id"].tolist() == [
        f"train_{label}_slide_{index}" for label in (0, 1) for index in (0, 1)
    ]
    assert source.read_test()["id"].tolist() == ["0"]  # none of those that train, though a file has the same name
    with pytest.raises(UserError, match=r"test: scoring it needs its labels, as folders"):
        source.read_test(answers=True)


def wilds(root: Path) -> Path:
    """Write four patches of each of five hospitals, one of them of in-distribution validation where it trains."""
    rows = []
    for center in range(5):
        for index in range(4):
            row = {
                "patient": f"{20 * center + index // 2:03d}", "node": 1, "x_coord": 100 * index, "y_coord": 7,
                "tumor": index % 2, "slide": 10 * center + index // 2, "center": center,
                "split": int(index == 3 and center in (0, 3, 4)),
            }  # fmt: skip
            rows.append(row)
            folder = f"patient_{row['patient']}_node_1"
            write_patch(root / "patches" / folder / f"patch_{folder}_x_{row['x_coord']}_y_7.png", len(rows))
    pd.DataFrame(rows).to_csv(root / "metadata.csv")
    return root


def test_hospitals_are_split_as_wilds_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = PCamDataModule(wilds(tmp_path / "data"))
    data.setup("fit")
    assert layout_of(tmp_path / "data") is Wilds
    assert "3 patches of in-distribution validation are left out" in capsys.readouterr().err
    table = data.table
    assert set(table["center"][data.val_mask]) == {"1"}
    assert table["center"][~data.val_mask].value_counts().to_dict() == {"0": 3, "3": 3, "4": 3}
    assert table["patient"].str.len().eq(3).all()
    data.setup("test")
    assert set(data.test_table["center"]) == {"2"}
    assert data.test_table["label"].tolist() == [0, 1, 0, 1]


def edit(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        frame = pd.read_csv(root / name, dtype=str, keep_default_na=False)
        change(frame).to_csv(root / name, index=False)

    return apply


def cell(column: str, row: int, value: str) -> Callable[[Path], None]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, column] = value
        return frame

    return edit("metadata.csv", change)


def remove(path: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        found = sorted(root.glob(path))[0]
        shutil.rmtree(found) if found.is_dir() else found.unlink()

    return apply


def empty(path: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        for file in (root / path).iterdir():
            file.unlink()

    return apply


def write(path: str, content: bytes) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    return apply


BROKEN_WILDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no column": (edit("metadata.csv", lambda frame: frame.drop(columns="center")), "no column center, which that of"),
    "no labels": (edit("metadata.csv", lambda frame: frame.drop(columns="tumor")), "no column tumor"),
    "a label of 2": (cell("tumor", 3, "2"), r"row 5: tumor '2' is not valid"),
    "an empty label": (cell("tumor", 0, ""), r"row 2: tumor '' is not valid"),
    "a center in words": (cell("center", 1, "Utrecht"), r"row 3: center 'Utrecht'"),
    "a negative place": (cell("x_coord", 1, "-5"), r"row 3: x_coord '-5'"),
    "a fraction": (cell("y_coord", 1, "7.0"), r"row 3: y_coord '7.0'"),
    "no patient": (cell("patient", 2, ""), r"row 4: patient ''"),
    "a path as patient": (cell("patient", 2, "../1"), r"row 4: patient '../1'"),
    "no slide": (cell("slide", 2, ""), r"row 4: slide ''"),
    "a split in words": (cell("split", 2, "train"), r"row 4: split 'train'"),
    "a row twice": (
        edit("metadata.csv", lambda f: pd.concat([f, f.iloc[:1]])),
        r"row 22: a patch that is listed twice",
    ),
    "another place": (cell("x_coord", 0, "9"), r"metadata.csv, row 2: .*no such file; .*1 of 13 files"),
    "a file missing": (remove("patches/patient_000*/*"), r"metadata.csv, row 2: .*no such file; .*1 of 13 files"),
    "a folder missing": (remove("patches/patient_000*"), r"metadata.csv, row 2: .*no such file; .*2 of 13 files"),
    "no CSV at all": (write("metadata.csv", b"\x89PNG\r\n\x1a\n\x00\xff"), "not a CSV file"),
    "an empty CSV": (write("metadata.csv", b""), "not a CSV file"),
    "a header alone": (edit("metadata.csv", lambda frame: frame.iloc[:0]), "no rows below the header"),
    "one class": (edit("metadata.csv", lambda frame: frame.assign(tumor="0")), "every training label is 0"),
    "a damaged patch": (
        write("patches/patient_000_node_1/patch_patient_000_node_1_x_0_y_7.png", b"no image"),
        "1 of 13 image files cannot be used",
    ),
    "a slides file": (lambda root: None, "metadata.csv: a column slide names the slides"),
}


@pytest.mark.parametrize("name", BROKEN_WILDS)
def test_what_is_broken_in_wilds_is_named(name: str, tmp_path: Path) -> None:
    root = wilds(tmp_path / "data")
    apply, message = BROKEN_WILDS[name]
    apply(root)
    with pytest.raises(UserError, match=message):
        PCamDataModule(root, slides="slides.csv" if name == "a slides file" else None).setup("fit")


def write_val(root: Path) -> None:
    write_patch(root / "val" / "0" / "00.png", 1000)


def write_file_for_class(root: Path) -> None:
    shutil.rmtree(root / "train/1")
    (root / "train/1").touch()


def write_text_class(root: Path) -> None:
    shutil.rmtree(root / "train/1")
    (root / "train/1").mkdir()
    (root / "train/1/notes.txt").touch()


def link(path: str, target: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / path).symlink_to(target)

    return apply


def link_class_to_itself(root: Path) -> None:
    shutil.rmtree(root / "train/1")
    (root / "train/1").symlink_to("1")


BROKEN_CLASSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to a folder above": (link("train/1/up", ".."), r"train/1/up: a symbolic link to a folder in which it lies"),
    "a link to its own folder": (link("train/1/here", "."), r"train/1/here: a symbolic link to a folder in which it"),
    "a link to itself": (link("train/1/loop", "loop"), r"train/1/loop: Too many levels of symbolic links; remove it"),
    "an image that is a link to itself": (link("train/1/x.png", "x.png"), r"train/1/x.png: cannot be read \(Too many"),
    "a class that is a link to itself": (
        link_class_to_itself,
        "train: has a folder 0/ and none for the other class",
    ),
    "val with images alone": (lambda root: write_patch(root / "Val/a.png", 1), r"data/Val: no class folders in it"),
    "a third class": (write("train/2/a.png", b""), r"train/2: not a class folder"),
    "one class without images": (empty("train/1"), "no .tif or .png"),
    "val without a class": (write("val/other/a.png", b""), r"val/other: not a class folder"),
    "val without images": (write("val/0/notes.txt", b""), "no .tif or .png"),
    "a damaged patch": (write("train/1/03.png", b"no image"), "1 of 20 image files cannot be used"),
    "an empty file": (write("train/1/03.png", b""), "1 of 20 image files cannot be used"),
    "two files of one name": (write("train/1/03.PNG", b""), "have the same id"),
    "two training parts": (
        lambda root: class_folders(root, ("0", "1"), "Training"),
        r"data: has Training/ and train/; keep the one that is its train part",
    ),
    "two validation parts": (
        lambda root: class_folders(root, ("0", "1"), "val", "valid"),
        r"data: has val/ and valid/; keep the one",
    ),
    "a validation part of one class": (
        write_val,
        r"the validation part \(the patches in val/\) has patches of label 0 alone; add some of the other",
    ),
    "another size": (lambda root: Image.new("RGB", (64, 64)).save(root / "train/1/03.png"), "64 x 64"),
    "a wide image": (lambda root: Image.new("RGB", (192, 96)).save(root / "train/1/03.png"), "192 x 96"),
    "transparent": (lambda root: Image.new("RGBA", (96, 96)).save(root / "train/1/03.png"), "RGB"),
    "a truncated patch": (
        lambda root: (root / "train/1/03.png").write_bytes((root / "train/1/04.png").read_bytes()[:9000]),
        "1 of 20 image files cannot be used",
    ),
    "a page in the place of a patch": (write("train/1/03.png", b"<html>"), "1 of 20 image files cannot be used"),
    "JPEGs of one class": (
        lambda root: [path.rename(path.with_suffix(".jpg")) for path in root.glob("train/1/*")],
        r"train/1: no .tif or .png file in it or below; 10 .jpg: `data.resize`",
    ),
    "a class that is a file": (write_file_for_class, "train: has a folder 0/ and none for the other class"),
    "a class of other files": (write_text_class, r"train/1: no .tif or .png file in it or below; it needs some"),
    "names that collide": (write("train/1_0/x.png", b""), r"train/1_0: not a class folder"),
    "a slides file": (lambda root: None, "does not go with class folders"),
}


@pytest.mark.parametrize("name", BROKEN_CLASSES)
def test_what_is_broken_in_class_folders_is_named(name: str, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data")
    apply, message = BROKEN_CLASSES[name]
    apply(root)
    with pytest.raises(UserError, match=message):
        PCamDataModule(root, slides="slides.csv" if name == "a slides file" else None).setup("fit")


def table(root: Path, **columns: list[str]) -> Path:
    """Write twenty patches of five hospitals, and a CSV of them."""
    rows = []
    for index in range(20):
        path = f"images/{index % 5}/{index:02d}.png"
        write_patch(root / path, index)
        rows.append({"path": path, "label": index // 5 % 2, "slide": index // 2, "center": f"h{index % 5}"})
    pd.DataFrame(rows).assign(**columns).to_csv(root / "patches.csv", index=False)
    return root / "patches.csv"


def test_a_csv_names_patches_and_their_groups(tmp_path: Path) -> None:
    data = PCamDataModule(str(table(tmp_path / "data")), batch_size=4)
    data.setup("fit")
    assert data.table["label"].sum() == 10
    assert set(data.table["center"]) == {f"h{index}" for index in range(5)}
    row = data.train_store.rows(data.table["id"])[7]
    path = tmp_path / "data" / data.table["path"].iloc[7]
    assert np.array_equal(data.train_store.images[row], np.asarray(Image.open(path)))
    with pytest.raises(UserError, match=r"patches.csv: no row of split test, since it has no column split;"):
        data.setup("predict")


def test_a_csv_without_labels_is_to_be_predicted(tmp_path: Path) -> None:
    file = table(tmp_path / "data")
    pd.read_csv(file, dtype=str).drop(columns="label").to_csv(file, index=False)
    data = PCamDataModule(file)
    data.setup("predict")
    assert data.test_table["id"].tolist() == [f"{index:02d}" for index in range(20)]
    with pytest.raises(UserError, match=r"patches.csv: no column label \(or target, .* it has path,slide,center"):
        PCamDataModule(file).setup("fit")
    with pytest.raises(UserError, match=r"patches.csv: no column label"):
        PCamDataModule(file).setup("test")


def test_a_copy_with_the_other_label_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "data")
    for name in ("08", "09"):
        shutil.copy(root / "train/0" / f"{name}.png", root / "train/1" / f"{name}.png")
    PCamDataModule(root).setup("fit")
    assert "data: 4 of 20 patches have an exact copy with the other label; explore lists" in capsys.readouterr().err


TWO_LAYOUTS: dict[str, Callable[[Path], object]] = {
    "class folders in train/ and train_labels.csv": lambda root: (root / "train_labels.csv").write_text("id,label\n"),
    "metadata.csv and patches/ and class folders in train/": lambda root: wilds(root),
    "PCam's .h5 files and class folders in train/": lambda root: (
        root / "camelyonpatch_level_2_split_train_x.h5"
    ).write_bytes(b""),
}


@pytest.mark.parametrize("both", TWO_LAYOUTS)
def test_two_layouts_in_one_folder_are_an_error_that_names_both(both: str, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data")
    TWO_LAYOUTS[both](root)
    with pytest.raises(UserError, match=rf"data: has two layouts, {both}; move one of them"):
        PCamDataModule(root).setup("fit")


NEARLY: dict[str, tuple[Callable[[Path], object], str]] = {
    "class folders alone": (
        lambda root: shutil.move(class_folders(root.parent / "other") / "train", root),
        r"data: class folders, here 0/, should be in .*data/train; move them there",
    ),
    "one class folder": (
        lambda root: shutil.rmtree(class_folders(root, ("normal", "tumor")) / "train/normal"),
        r"data/train: has a folder tumor/ and none for the other class; the names are 0 or normal",
    ),
    "WILDS without patches": (
        lambda root: shutil.rmtree(wilds(root) / "patches"),
        r"data: has metadata.csv, as Camelyon17-WILDS does, and no patches/; unpack the whole archive",
    ),
    "other classes": (
        lambda root: class_folders(root.parent / "other", ("stroma", "epithelium")).joinpath("train").rename(root),
        r"data: has images in (stroma|epithelium)/ and no labels\. .* CSV with columns path, label .*`data.root`",
    ),
    "other classes in train": (
        lambda root: class_folders(root, ("stroma", "epithelium")),
        r"data: has images in train/(stroma|epithelium)/ and no labels\. Class folders are called train/0",
    ),
    "classes within patients": (
        lambda root: class_folders(root, ("0", "1"), "8863", "8864"),
        r"data: has images in 886[34]/[01]/ and no labels",
    ),
    "the folder of a CSV": (
        lambda root: table(root),
        r"data: is not a data folder, and patches.csv is a CSV of patches; use `data.root` .*data/patches.csv",
    ),
}


@pytest.mark.parametrize("name", NEARLY)
def test_a_folder_that_is_nearly_a_layout_is_told_what_it_lacks(name: str, tmp_path: Path) -> None:
    apply, message = NEARLY[name]
    apply(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        PCamDataModule(tmp_path / "data").setup("fit")


def test_options_name_the_columns(tmp_path: Path) -> None:
    file = table(tmp_path / "data", slide=[f"s{index // 4}" for index in range(20)], label=["0", "1"] * 10)
    frame = pd.read_csv(file, dtype=str).rename(columns={"path": "tile", "label": "malignant", "slide": "block"})
    frame.assign(label="of something else").to_csv(file, index=False)
    columns = {"path": "tile", "label": "malignant", "slide": "block"}
    data = PCamDataModule(file, columns=columns, holdout="slide")
    data.setup("fit")
    assert data.table["label"].sum() == 10
    assert data.table["slide"].nunique() == 5
    options = [f"--data.columns.{what}={name}" for what, name in columns.items()]
    assert main(["pack", "--data.root", str(file), *options]) == 0
    with pytest.raises(UserError, match=r"no column malign, as `data.columns` says; it has tile,"):
        PCamDataModule(file, columns={**columns, "label": "malign"}).setup("fit")
    with pytest.raises(UserError, match=r"`data.columns`: gives column block for two things"):
        PCamDataModule(file, columns={**columns, "patient": "block"}).setup("fit")
    swapped = frame.assign(label=frame["malignant"], center=frame["block"], site=[f"h{n % 2}" for n in range(20)])
    swapped.to_csv(file, index=False)
    data = PCamDataModule(file, columns={"path": "tile", "slide": "center", "center": "site"})
    data.setup("fit")
    assert data.table["slide"].nunique() == 5
    assert data.table["center"].nunique() == 2
    with pytest.raises(UserError, match=r"`data.columns` colour: should be one of path, label"):
        PCamDataModule(file, columns={"colour": "tile"}).setup("fit")
    with pytest.raises(UserError, match=r"`data.columns`: goes with a CSV of patches, and `data.root` .* is none"):
        PCamDataModule(file.parent, columns=columns).setup("fit")


def test_a_column_of_splits_is_the_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = ["Train"] * 10 + ["valid"] * 6 + ["test"] * 4
    label = [str(index % 2) for index in range(20)]
    data = PCamDataModule(table(tmp_path / "data", split=split, label=label))
    data.setup("fit")
    assert data.table["id"][data.val_mask].tolist() == [f"{index}" for index in range(10, 16)]
    data.setup("test")
    assert data.test_table["id"].tolist() == ["16", "17", "18", "19"]
    assert data.test_table["label"].tolist() == [0, 1, 0, 1]
    capsys.readouterr()
    PCamDataModule(tmp_path / "data" / "patches.csv", holdout="slide").setup("fit")
    assert "The split of the data (the column split) is not used" in capsys.readouterr().err


def test_whole_hospitals_are_held_out_one_a_fold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "data")
    for fold in range(5):
        data = PCamDataModule(file, holdout="center", folds=5, fold=fold)
        data.setup("fit")
        assert set(data.table["center"][data.val_mask]) == {f"h{fold}"}
        assert f"center h{fold} validates." in capsys.readouterr().err
    data = PCamDataModule(file, holdout="center", val_fraction=0.4)
    data.setup("fit")
    held_out = sorted(set(data.table["center"][data.val_mask]))
    assert f"center {', '.join(held_out)} validate" in capsys.readouterr().err
    assert not set(data.table["center"][data.val_mask]) & set(data.table["center"][~data.val_mask])
    with pytest.raises(
        UserError,
        match=r"patient: no such groups; those that are known are slide, center. .*`data.columns.patient` names",
    ):
        PCamDataModule(file, holdout="patient").setup("fit")
    with pytest.raises(UserError, match=r"`data.folds` 6: there are 5 groups of center to train and validate on; with"):
        PCamDataModule(file, holdout="center", folds=6).setup("fit")
    alone = table(tmp_path / "alone", center=["h1"] * 20)
    with pytest.raises(UserError, match=r"`data.holdout` center: all patches are of center h1; none would be left"):
        PCamDataModule(alone, holdout="center").setup("fit")
    by_class = table(tmp_path / "other", center=[f"h{index // 5 % 2}" for index in range(20)])
    with pytest.raises(UserError, match=r"with center h0 held out, the validation part has one class only"):
        PCamDataModule(by_class, holdout="center", folds=2).setup("fit")


def test_paths_may_be_absolute(tmp_path: Path) -> None:
    file = table(tmp_path / "data")
    relative = PCamDataModule(file)
    relative.setup("fit")
    frame = pd.read_csv(file)
    frame.assign(path=[str(file.parent / path) for path in frame["path"]]).to_csv(file, index=False)
    below = PCamDataModule(file)
    below.setup("fit")
    pd.testing.assert_frame_equal(below.table, relative.table)
    outside = tmp_path / "lists" / "patches.csv"
    outside.parent.mkdir()
    shutil.copy(file, outside)
    data = PCamDataModule(outside)
    data.setup("fit")
    assert data.train_store.fingerprint == relative.train_store.fingerprint
    frame.assign(path="../data/" + frame["path"]).to_csv(outside, index=False)
    data = PCamDataModule(outside)
    data.setup("fit")
    assert data.train_store.fingerprint == relative.train_store.fingerprint


def test_weights_of_a_csv_are_factors_of_the_training_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path / "data")
    plain = PCamDataModule(file, batch_size=4)
    plain.setup("fit")
    assert "weight" not in next(iter(plain.train_dataloader()))
    frame = pd.read_csv(file)
    frame.assign(weight="70 kg").to_csv(file, index=False)
    PCamDataModule(file).setup("fit")
    assert "patches.csv: column weight is not used; `data.columns.sample_weight` weight" in capsys.readouterr().err
    frame.assign(sample_weight=[index % 3 for index in range(20)]).to_csv(file, index=False)
    extra = table(tmp_path / "extra", label=[str(index % 2) for index in range(20)])
    shutil.rmtree(extra.parent / "images")
    for index, path in enumerate(pd.read_csv(extra)["path"]):
        write_patch(extra.parent / path, 1000 + index)
    data = PCamDataModule(file, batch_size=4, extra_train=extra)
    data.setup("fit")
    assert "patches.csv: sample_weight, 0 to 2, is a factor of the training loss" in capsys.readouterr().err
    weight = dict(zip(data.table["id"], data.table["sample_weight"], strict=True))
    own = set(data.train_store.ids[data.train_store.rows(data.table["id"])])
    for batch in data.train_dataloader():
        for row, value in zip(batch["row"].tolist(), batch["weight"].tolist(), strict=True):
            assert value == (weight[data.ids[row]] if row < len(own) else 1)
    assert all("weight" not in batch for batch in data.val_dataloader())
    model = PCamClassifier(NETWORK, "none", crop=32, augment=Augmentation(degrees=0))
    model.train_metrics = MetricCollection({})  # a batch may be of one class
    for name in ("log", "log_dict"):  # there is no trainer
        monkeypatch.setattr(model, name, lambda *args, **kwargs: None)
    batch = next(iter(data.train_dataloader()))
    loss = {}
    for factor in (0.0, 1.0, 3.0):
        torch.manual_seed(0)
        batch["weight"] = torch.full((4,), factor)
        loss[factor] = model.eval().training_step(batch, 0).item()
    assert loss[0.0] == 0
    assert loss[3.0] == pytest.approx(3 * loss[1.0])


def test_cells_stay_the_text_that_they_are(tmp_path: Path) -> None:
    names = ["NA", "null", "007", "1e5", *(f"p{index}" for index in range(16))]
    file = table(tmp_path / "data", id=names, slide=[["nan", "None", "01"][index % 3] for index in range(20)])
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *(f"{row}," for row in rows)]))  # a comma at the end of each row
    data = PCamDataModule(file)
    data.setup("fit")
    assert set(data.table["id"]) == set(names)
    assert set(data.table["slide"]) == {"nan", "None", "01"}


def text_cell(column: str, row: int, value: str) -> Callable[[Path], None]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, column] = value
        return frame

    return edit("patches.csv", change)


def rename(before: str, after: str) -> Callable[[Path], None]:
    return edit("patches.csv", lambda frame: frame.rename(columns={before: after}))


BROKEN_TABLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no paths": (rename("path", "where"), "no column path"),
    "no labels": (rename("label", "what"), "no column label"),
    "two columns of paths": (
        edit("patches.csv", lambda f: f.rename(columns={"path": "file"}).assign(image="x")),
        "columns file and image may both be the path",
    ),
    "a label of 2": (text_cell("label", 3, "2"), r"row 5: label '2' should be 0 for normal or 1 for tumor"),
    "an empty label": (text_cell("label", 3, ""), r"row 5: label ''"),
    "an empty path": (text_cell("path", 0, ""), r"row 2: path ''"),
    "an absolute path that is missing": (text_cell("path", 0, "/tmp/no/1.png"), r"row 2: /tmp/no/1.png: no such file"),
    "a path upward that is missing": (text_cell("path", 0, "images/../../a.png"), r"row 2: .*/../../a.png: no such"),
    "a weight below 0": (
        edit("patches.csv", lambda f: f.assign(sample_weight="-1")),
        "sample_weight '-1' should be a number",
    ),
    "no weight": (
        edit("patches.csv", lambda f: f.assign(sample_weight="")),
        "sample_weight '' should be a number",
    ),
    "weights of 0": (edit("patches.csv", lambda f: f.assign(sample_weight="0")), "every sample_weight is 0"),
    "a path that is missing": (text_cell("path", 0, "images/0/99.png"), r"row 2: .*99.png: no such file"),
    "a folder that is missing": (text_cell("path", 0, "elsewhere/1.png"), r"row 2: .*elsewhere/1.png: no such file"),
    "a file twice": (text_cell("path", 1, "images/0/00.png"), "row 3: path 'images/0/00.png' is listed twice; remove"),
    "another separator": (
        lambda root: (root / "patches.csv").write_text("path;label\na.png;0\n"),
        "no column path .*; it has path;label; separate columns by commas, not ';'",
    ),
    "an id twice": (edit("patches.csv", lambda f: f.assign(id="a")), "row 3: id 'a' is listed twice"),
    "an id with a folder": (edit("patches.csv", lambda f: f.assign(id=f["path"])), "should be a name without folders"),
    "no slide": (text_cell("slide", 2, ""), "row 4: slide '' is empty"),
    "no center": (text_cell("center", 2, " "), "row 4: center '' is empty"),
    "an unknown part": (
        edit("patches.csv", lambda f: f.assign(split="later")),
        "split 'later' should be train, val or test",
    ),
    "one class": (edit("patches.csv", lambda f: f.assign(label="1")), "every training label is 1"),
    "a cell more than columns": (
        lambda root: (root / "patches.csv").write_text("path,label\na.png,0,1\n"),
        r"patches.csv: not a CSV file: a row has more columns than its first line",
    ),
    "a comma at the end of some rows": (
        lambda root: (root / "patches.csv").write_text("path,label\na.png,0\nb.png,1,\n"),
        r"patches.csv: not a CSV file \(.*Expected 2 fields in line 3, saw 3",
    ),
    "a header alone": (edit("patches.csv", lambda f: f.iloc[:0]), "no rows below the header"),
    "no CSV": (write("patches.csv", b"\x89PNG\r\n\x1a\n\x00\xff"), "not a CSV file"),
    "an empty file": (write("patches.csv", b""), "not a CSV file"),
    "a damaged patch": (write("images/0/00.png", b"no image"), "1 of 20 image files cannot be used"),
    "a slides file": (lambda root: None, "a column slide names the slides"),
}


@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_what_is_broken_in_a_csv_is_named(name: str, tmp_path: Path) -> None:
    file = table(tmp_path / "data")
    apply, message = BROKEN_TABLES[name]
    apply(file.parent)
    with pytest.raises(UserError, match=message):
        PCamDataModule(file, slides="slides.csv" if name == "a slides file" else None).setup("fit")


def _kaggle(root: Path) -> Path:
    synthesize(root, train=20, test=4, slides=4)
    return root


def _pcam(root: Path) -> Path:
    root.mkdir()
    rng = np.random.default_rng(0)
    for part in ("train", "valid"):
        with h5py.File(root / f"{PREFIX}{part}_x.h5", "w") as x, h5py.File(root / f"{PREFIX}{part}_y.h5", "w") as y:
            x["x"] = rng.integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
            y["y"] = (np.arange(8) % 2).reshape(8, 1, 1, 1).astype(np.uint8)
    return root


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "kaggle": (_kaggle, ""),
    "pcam": (_pcam, "PCam's own parts"),
    "wilds": (wilds, "WILDS's split: center 1 validates"),
    "classes": (lambda root: class_folders(root, ("0", "1"), "train", "val"), "the patches in val/"),
    "table": (
        lambda root: table(root, split=["train", "train", "val", "val"] * 5, label=["0", "1"] * 10),
        "the column split",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_patches_validate_where_the_fraction_is_1(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, own_split = LAYOUTS[layout]
    data = PCamDataModule(root := write(tmp_path / "data"), val_fraction=1)
    data.setup("validate")
    assert data.val_mask.all()
    message = f"All {len(data.table)} patches validate (`data.val_fraction` 1); the split of the data ({own_split})"
    assert (message in capsys.readouterr().err) == bool(own_split)
    scored = read_labeled_predictions(Path("pcam-small"), root=root).rows["id"]
    kept = data.table["id"].str.startswith("valid") if layout == "pcam" else slice(None)  # the rest trained it
    assert sorted(scored) == sorted(data.table["id"][kept])


def test_one_slide_alone_is_validated_on(tmp_path: Path) -> None:
    data = PCamDataModule(table(tmp_path / "data", slide=["a"] * 20), holdout="slide", val_fraction=1)
    data.setup("validate")
    assert data.val_mask.all()


@pytest.mark.parametrize("layout", ["classes", "table", "wilds"])
def test_drawn_folders_of_each_layout_train(layout: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthesize(tmp_path / "drawn", train=60, test=20, slides=8, layout=layout)
    root = tmp_path / "drawn" / ("patches.csv" if layout == "table" else "")
    fit = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(root), "--trainer.max_epochs=1", *FAST]
    assert main(fit) == 0
    assert "SYNTHETIC TISSUE" in capsys.readouterr().err
    run = Path("lightning_logs/base/version_0")
    for command in ("test", "predict"):
        assert main([command, "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--trainer.accelerator=cpu"]) == 0
    assert len(pd.read_csv(run / "submission.csv")) == (16 if layout == "wilds" else 20)
    assert main(["evaluate", str(run), "--bootstrap_samples=100"]) == 0
    report = json.loads((run / "report.json").read_text())
    assert report["synthetic"]
    assert {"center", "patient", "slide"} & {key.removesuffix("s") for key in report} == {
        "classes": set(), "table": {"slide"}, "wilds": {"center", "patient", "slide"},
    }[layout]  # fmt: skip


def test_more_folds_than_hospitals_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`data.folds` 6: there are 5 groups of center"):
        PCamDataModule(table(tmp_path / "data"), holdout="center", folds=6).setup("fit")


def test_every_hospital_is_checked_before_the_first_trains(tmp_path: Path) -> None:
    center = [f"h{index % 4}" if index < 16 else "z" for index in range(20)]
    label = [str(index // 4 % 2) if index < 16 else "1" for index in range(20)]
    with pytest.raises(UserError, match=r"with center z held out, the validation part has one class only"):
        PCamDataModule(table(tmp_path / "data", center=center, label=label), holdout="center", folds=5).setup("fit")


def test_copies_in_several_hospitals_never_validate(tmp_path: Path) -> None:
    file = table(tmp_path / "data")
    shutil.copy(file.parent / "images/0/00.png", file.parent / "images/1/01.png")
    for fold in (0, 1):
        data = PCamDataModule(file, holdout="center", folds=5, fold=fold)
        data.setup("fit")
        assert not set(data.table["id"][data.val_mask]) & {"00", "01"}
        assert data.always_train.sum() == 2


def test_folds_of_a_csv_are_of_whole_slides(tmp_path: Path) -> None:
    data = PCamDataModule(table(tmp_path / "data"), folds=2)
    data.setup("fit")
    assert data.holdout == "slide"
    assert not set(data.table["slide"][data.val_mask]) & set(data.table["slide"][~data.val_mask])


def test_leakage_is_told_by_what_is_known(tmp_path: Path) -> None:
    data = PCamDataModule(class_folders(tmp_path / "classes", ("0", "1"), "train", "val"))
    data.setup("fit")
    leakage = find_slide_leakage(data.table, data.val_mask, by_file=False)
    assert leakage[:2] == ("patches of one slide may be on both sides", False)
    file = table(tmp_path / "data")
    frame = pd.read_csv(file)
    frame.drop(columns="slide").to_csv(file, index=False)
    data = PCamDataModule(file, holdout="center", folds=5)
    data.setup("fit")
    assert not find_slide_leakage(data.table, data.val_mask, by_file=False).message
    frame.assign(patient="p").to_csv(file, index=False)
    data = PCamDataModule(file, holdout="slide", val_fraction=0.4)
    data.setup("fit")
    leakage = find_slide_leakage(data.table, data.val_mask, by_file=False)
    assert "10 of 10 validation patches are of patients that train it too" in leakage.message


def test_csvs_of_one_folder_have_packed_images_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "data")
    part = file.with_name("part.csv")
    pd.read_csv(file).iloc[:15].to_csv(part, index=False)
    for one in (file, part, file, part):
        PCamDataModule(one).setup("fit")
    assert "packing again" not in capsys.readouterr().err


def test_extra_patches_of_a_hospital_that_validates_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path / "data")
    extra = tmp_path / "extra"
    rows = [{"path": f"{index}.png", "label": index % 2, "center": f"h{index % 5}"} for index in range(10)]
    for index in range(10):
        write_patch(extra / f"{index}.png", 1000 + index)
    pd.DataFrame(rows).to_csv(extra / "extra.csv", index=False)
    data = PCamDataModule(file, holdout="center", folds=5, fold=2, extra_train=extra / "extra.csv")
    data.setup("fit")
    assert "8 patches" in (message := capsys.readouterr().err)
    assert "2 left out, since they or their groups validate" in message
    assert not (data.train_table["center"] == "h2").any()
    with pytest.raises(UserError, match=r"is a split already; leave `data.holdout` out"):
        PCamDataModule(file, holdout="center", split_file="split.csv")
