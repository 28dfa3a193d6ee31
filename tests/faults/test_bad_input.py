"""Whatever is wrong with folders, files and flags: one error line, status 2, and nothing written or changed."""

import gzip
import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import CONFIGS, FAST, MakeFolder, with_callback
from lightning.pytorch.callbacks import Callback
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.data.h5_files import PREFIX

Change = Callable[[Path], None]
LABELS, SAMPLE = "kaggle/train_labels.csv", "kaggle/sample_submission.csv"
BASE = str(CONFIGS / "base.yaml")
FIT = ("fit", "--data.root", "kaggle", *FAST)
PREDICT = ("predict", "--ckpt_path", "run/checkpoints/best.ckpt", "--data.root", "kaggle", "--trainer.accelerator=cpu")
OTHER = ("--ckpt_path", "run/checkpoints/last.ckpt", "--data.root", "kaggle", "--trainer.accelerator=cpu")


class Case(NamedTuple):
    """What is changed in a working folder with `kaggle/` and `run/`, what is asked for then, and what is said."""

    change: Change | None
    args: tuple[str, ...]
    message: str


def _write(name: str, content: bytes | str) -> Change:
    def write(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def _edit(name: str, old: str, new: str) -> Change:
    def edit(place: Path) -> None:
        text = (place / name).read_text()
        assert old in text
        (place / name).write_text(text.replace(old, new, 1))

    return edit


def _remove(pattern: str) -> Change:
    def remove(place: Path) -> None:
        for path in place.glob(pattern):
            path.unlink() if path.is_file() else shutil.rmtree(path)

    return remove


def _all(*changes: Change) -> Change:
    def change(place: Path) -> None:
        for one in changes:
            one(place)

    return change


def _image(image: Image.Image, kind: str = "TIFF", **how: Any) -> Change:
    """Put an image into the place of train000.tif."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return _write("kaggle/train/train000.tif", buffer.getvalue())


def _noise(*shape: int, kind: Any = np.uint8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape).astype(kind))


def _bomb(place: Path) -> None:
    """Write a TIFF of 400 million pixels in a few hundred bytes."""
    _image(Image.new("1", (64, 64)))(place)
    path = place / "kaggle/train/train000.tif"
    content = bytearray(path.read_bytes())
    for tag in (256, 257):
        at = content.index(tag.to_bytes(2, "little") + b"\4\0\1\0\0\0") + 8
        content[at : at + 4] = (20_000).to_bytes(4, "little")
    path.write_bytes(content)


def _two_files_of_one_id(place: Path) -> None:
    _write("kaggle/train/deeper/train000.tif", (place / "kaggle/train/train000.tif").read_bytes())(place)


def _cut(name: str, size: int) -> Change:
    def cut(place: Path) -> None:
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[:size])

    return cut


def _one_class(name: str) -> Change:
    def edit(place: Path) -> None:
        (place / name).write_text(re.sub(",1\n", ",0\n", (place / name).read_text()))

    return edit


def _checkpoint(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change what a checkpoint holds, or put something else there, in last.ckpt alone: best.ckpt shares its bytes."""

    def save(place: Path) -> None:
        path = place / "run/checkpoints/last.ckpt"
        state = torch.load(path, weights_only=True)
        other = change(state)
        state = state if other is None else other
        path.unlink()
        torch.save(state, path)

    return save


def _junk(content: bytes) -> Change:
    return _all(_remove("run/checkpoints/last.ckpt"), _write("run/checkpoints/last.ckpt", content))


class Runs:
    """A pickle that touches a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("open('touched', 'w').close()",)


def _zip_of_nothing(place: Path) -> None:
    path = place / "run/checkpoints/last.ckpt"
    path.unlink()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")


def _official(change: Callable[[h5py.File, h5py.File], None] | None = None, *, packed: bool = False) -> Change:
    """Write PCam's own files, 20 + 20 + 20 patches of noise, and change x and y of train."""

    def write(place: Path) -> None:
        root = place / "pcam"
        root.mkdir()
        rng = np.random.default_rng(0)
        for part in ("train", "valid", "test"):
            with h5py.File(root / f"{PREFIX}{part}_x.h5", "w") as x, h5py.File(root / f"{PREFIX}{part}_y.h5", "w") as y:
                x["x"] = rng.integers(0, 256, (20, 96, 96, 3), dtype=np.uint8)
                y["y"] = (np.arange(20) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
                if part == "train" and change:
                    change(x, y)
            (root / f"{PREFIX}{part}_meta.csv").write_text("wsi\n" + "".join(f"slide{n % 4}\n" for n in range(20)))
        if packed:
            path = root / f"{PREFIX}train_y.h5"
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-9])
            path.unlink()

    return write


def _swap(x: h5py.File, y: h5py.File) -> None:
    images, labels = x["x"][:], y["y"][:]
    del x["x"], y["y"]
    x["x"], y["y"] = labels, images


def _floats(x: h5py.File, y: h5py.File) -> None:
    images = x["x"][:]
    del x["x"]
    x["x"] = images.astype(np.float32)


def _label_two(x: h5py.File, y: h5py.File) -> None:
    y["y"][3] = 2


def _nothing_in_x(x: h5py.File, y: h5py.File) -> None:
    del x["x"]


def _group(x: h5py.File, y: h5py.File) -> None:
    del x["x"]
    x.create_group("x")


def _other_id(place: Path) -> None:
    """Give a file a name of the form of a SHA-1 that is not its pixels'."""
    (place / "kaggle/train/train000.tif").rename(place / f"kaggle/train/{'f' * 40}.tif")
    _edit(LABELS, "train000", "f" * 40)(place)


FOREIGN = _checkpoint(lambda state: {"state_dict": state["state_dict"]})
NEWER = _checkpoint(lambda state: state["pcam"].update(format=99, version="9.9"))
LACKING = _checkpoint(lambda state: state["state_dict"].__delitem__("net.conv_stem.weight"))
SHORT = _checkpoint(lambda state: state["state_dict"].update({"net.conv_stem.weight": torch.zeros(1)}))
RESNET = _checkpoint(lambda state: state["pcam"]["config"]["model"].update(backbone="resnet18"))
CLASSES = _checkpoint(lambda state: state["pcam"]["config"]["model"].update(augment={"class_path": "os.mkdir"}))
NO_NUMBERS = _checkpoint(lambda state: state["state_dict"]["net.classifier.weight"].__setitem__(..., np.nan))
CODE = _checkpoint(lambda state: {**state, "more": Runs()})
PCAM = ("fit", "--data.root", "pcam", *FAST)
SLIDES = (*FIT, "--data.slides", "slides.csv")
SPLIT = (*FIT, "--data.split_file", "split.csv")
CONFIG = (*FIT, "-c", "mine.yaml")
WEIGHTS = ("fit", "--data.root", "kaggle", *FAST[1:], "--model.weights", "mine.pth")
EVALUATE = ("evaluate", "mine.csv")
TRAIN_IDS = [f"train{n:03d}" for n in range(20)]
FOLDERS = {
    "no folder": Case(None, ("fit", "--data.root", "nowhere", *FAST), r"nowhere: no such folder; .*--data.root"),
    "a file": Case(
        _write("file", ""), ("fit", "--data.root", "file", *FAST), r"file: is a file, not a folder or a .csv"
    ),
    "an empty folder": Case(_remove("kaggle/*"), FIT, r"kaggle/train: no such folder; download"),
    "no images": Case(_remove("kaggle/train/*"), FIT, r"train: no .tif or .png file in it or below"),
    "JPEGs alone": Case(
        _all(_remove("kaggle/train/*"), _write("kaggle/train/a.jpg", "")),
        FIT,
        r"train: no .tif or .png file in it or below; 1 .jpg: --data.resize crop or scale reads JPEG",
    ),
    "two files of one id": Case(_two_files_of_one_id, FIT, r"train000.tif and .*train000.tif have the same id; remove"),
    "a link to a folder above": Case(
        lambda place: (place / "kaggle/train/up").symlink_to(".."),
        FIT,
        r"kaggle/train/up: a symbolic link to a folder in which it lies",
    ),
    "a link to itself": Case(
        lambda place: (place / "kaggle/test/loop").symlink_to("loop"),
        PREDICT,
        r"kaggle/test/loop: Too many levels of symbolic links; remove it",
    ),
    "a checkpoint that is a link to itself": Case(
        lambda place: (place / "loop").symlink_to("loop"),
        ("predict", "--ckpt_path", "loop"),
        r"loop: no such checkpoint",
    ),
    "extra patches in a link to itself": Case(
        lambda place: (place / "loop").symlink_to("loop"),
        (*FIT, "--data.extra_train", "loop"),
        r"--data.extra_train .*loop: no such folder or CSV",
    ),
    "no test": Case(_remove("kaggle/test"), PREDICT, r"kaggle/test: no such folder"),
    "cache in a file": Case(_write("file", ""), (*FIT, "--data.cache_dir", "file"), r"file/kaggle-\w+ cannot be writt"),
    "answers": Case(None, ("test", *PREDICT[1:]), r"answers.csv: no such file. Scoring"),
}
TABLES = {
    "no CSV": Case(_remove(LABELS), FIT, r"train_labels.csv: no such file; download"),
    "CSV is a folder": Case(_all(_remove(LABELS), lambda place: (place / LABELS).mkdir()), FIT, r"labels.csv: no such"),
    "empty CSV": Case(_write(LABELS, b""), FIT, r"train_labels.csv: not a CSV file .* id,label"),
    "binary CSV": Case(_write(LABELS, b"\xff\xfe\x00junk"), FIT, r"train_labels.csv: not a CSV file"),
    "quote that never ends": Case(_write(LABELS, 'id,label\n"train000,0\n' * 3), FIT, r"train_labels.csv"),
    "header alone": Case(_write(LABELS, b"id,label\n"), FIT, r"train_labels.csv: no rows below the header"),
    "wrong columns": Case(_edit(LABELS, "id,label", "name,class"), FIT, r"no column id nor label; .*'name,class'"),
    "semicolons": Case(_write(LABELS, "id;label\ntrain000;0\n"), FIT, r"no column id nor label; .*'id;label'"),
    "a column too many": Case(_edit(LABELS, "train000,0", "train000,0,1"), FIT, r"a row has more columns than"),
    "word label": Case(_edit(LABELS, "train010,0", "train010,yes"), FIT, r'row 12: label "yes" is neither 0 nor 1'),
    "no label": Case(_edit(LABELS, "train010,0", "train010,"), FIT, r'row 12: label "" is neither 0 nor 1'),
    "label 2": Case(_edit(LABELS, "train011,1", "train011,2"), FIT, r'row 13: label "2" is neither'),
    "label nan": Case(_edit(LABELS, "train011,1", "train011,nan"), FIT, r'row 13: label "nan" is neither'),
    "id twice": Case(_edit(LABELS, "train005", "train004"), FIT, r"row 7: id train004 is in row 6 already"),
    "empty id": Case(_edit(LABELS, "train005", ""), FIT, r"row 7: id '' is empty or has a path separator"),
    "id up": Case(_edit(LABELS, "train005", "../train005"), FIT, r"row 7: id '../train005' is empty or has a path"),
    "id absolute": Case(_edit(LABELS, "train005", "/etc/passwd"), FIT, r"row 7: id '/etc/passwd' is empty or has a p"),
    "id backslash": Case(_edit(LABELS, "train005", r"a\b"), FIT, r"row 7: id .* has a path separator"),
    "id NUL": Case(_edit(LABELS, "train005", "a\0b"), FIT, r"train_labels.csv"),
    "id very long": Case(_edit(LABELS, "train005", "x" * 70_000), FIT, r"1 of the ids have no image file"),
    "id odd Unicode": Case(_edit(LABELS, "train005", "\u202etrain\u0301"), FIT, r"1 of the ids have no image file"),
    "id no file": Case(_remove("kaggle/train/train00[0-4].tif"), FIT, r"5 of the ids have no .* file in .*: train000"),
    "one class": Case(_one_class(LABELS), FIT, r"every training label is 0; training needs patches of both"),
    "sample without ids": Case(_edit(SAMPLE, "id,", "name,"), PREDICT, r"sample_submission.csv: no column id"),
    "sample's ids twice": Case(_edit(SAMPLE, "test003", "test002"), PREDICT, r"row 3: id test002 is in row 2"),
    "sample's file gone": Case(_remove("kaggle/test/test001.tif"), PREDICT, r"1 of the ids have no .* file in .*test"),
    "answers of one class": Case(
        _write("kaggle/answers.csv", "id,label\n" + "".join(f"test{n:03d},0\n" for n in range(4))),
        ("test", *PREDICT[1:]), r"answers.csv: all labels are the same",
    ),
    "answers for others": Case(
        _write("kaggle/answers.csv", "id,label\na,0\nb,1\n"), ("test", *PREDICT[1:]), r"4 of the ids have no label"
    ),
}  # fmt: skip
IMAGES = {
    "half a file": Case(_cut("kaggle/train/train000.tif", 9_000), FIT, r"train000.tif \(.*truncated"),
    "a directory and no pixels": Case(_cut("kaggle/train/train000.tif", 60), FIT, r"train/train000.tif \("),
    "text": Case(_write("kaggle/train/train000.tif", "text"), FIT, r"train000.tif \(not a TIFF or PNG"),
    "no bytes": Case(_write("kaggle/train/train000.tif", b""), FIT, r"train000.tif \(an empty file"),
    "a JPEG": Case(_image(_noise(96, 96, 3), "JPEG"), FIT, r"train000.tif \(a JPEG image"),
    "small": Case(_image(Image.new("RGB", (64, 96))), FIT, r"train000.tif \(64 x 96 pixels, not 96 x 96"),
    "transparent": Case(_image(_noise(96, 96, 4), "PNG"), FIT, r"train000.tif \(transparent pixels"),
    "CMYK": Case(_image(Image.new("CMYK", (96, 96))), FIT, r"train000.tif \(pixels of mode CMYK"),
    "16 bits": Case(_image(_noise(96, 96, kind=np.uint16)), FIT, r"train000.tif \(.*no lossless way"),
    "floats": Case(_image(_noise(96, 96, kind=np.float32)), FIT, r"train000.tif \(.*no lossless way"),
    "a large PNG": Case(_image(Image.new("1", (9_000, 9_000)), "PNG"), FIT, r"train000.tif \(9000 x 9000 pixels"),
    "a TIFF bomb": Case(_bomb, FIT, r"train000.tif \(.*(20000 x 20000|decompression bomb)"),
}
MAPS = {
    "no slides": Case(None, SLIDES, r"slides.csv: no such file; the slides command makes one"),
    "slides without wsi": Case(_write("slides.csv", "id,slide\na,b\n"), SLIDES, r"slides.csv: no column wsi"),
    "slides of few": Case(
        _write("slides.csv", "id,wsi\ntrain000,a\n"), SLIDES, r"19 of 20 .* have no slide .*unknown_sl"
    ),
    "slides twice": Case(_write("slides.csv", "id,wsi\na,b\na,c\n"), SLIDES, r"slides.csv, row 3: id a is in row 2"),
    "one slide": Case(
        _write("slides.csv", "id,wsi\n" + "".join(f"{one},s\n" for one in TRAIN_IDS)),
        SLIDES,
        r"slides: all patches are of slide s",
    ),
    "no split": Case(None, SPLIT, r"split.csv: no such file. --data.split_file"),
    "empty split": Case(_write("split.csv", ""), SPLIT, r"split.csv: not a CSV file .* not a split.csv"),
    "binary split": Case(_write("split.csv", b"\xff\xfe\0\1"), SPLIT, r"split.csv: not a CSV file .* not a split.csv"),
    "split of others": Case(
        _write("split.csv", "id,split\na,val\nb,train\n"), SPLIT, r"made for other patches: 20 of 20"
    ),
    "odd split": Case(_write("split.csv", "id,split\na,valid\n"), SPLIT, r"split 'valid' is neither train nor val"),
    "split of validation": Case(
        _write("split.csv", "id,split\n" + "".join(f"{one},val\n" for one in TRAIN_IDS)),
        SPLIT,
        r"none is left to train",
    ),
    "split and folds": Case(_write("split.csv", "id,split\n"), (*SPLIT, "--data.folds=3"), r"is a split already"),
}
CONFIG_FILES = {
    "no config": Case(None, CONFIG, r"mine.yaml: no config to read .* configs/"),
    "broken YAML": Case(_write("mine.yaml", "data:\n  batch_size: [1\n"), CONFIG, r"mine.yaml: not a YAML file"),
    "binary YAML": Case(_write("mine.yaml", b"\xff\xfe\0\1"), CONFIG, r"mine.yaml: not a YAML file"),
    "empty YAML": Case(_write("mine.yaml", ""), CONFIG, r"mine.yaml: holds no options"),
    "a list": Case(_write("mine.yaml", "- 1\n"), CONFIG, r"mine.yaml: holds no options"),
    "unknown option": Case(_write("mine.yaml", "data: {rot: x}\n"), CONFIG, r"rot"),
    "unknown part": Case(_write("mine.yaml", "network: {depth: 3}\n"), CONFIG, r"network"),
    "wrong kind": Case(_write("mine.yaml", "data: {batch_size: many}\n"), CONFIG, r"batch_size"),
    "code by tag": Case(_write("mine.yaml", "a: !!python/object/apply:os.mkdir [touched]\n"), CONFIG, r"not a YAML"),
    "no callback": Case(
        _write("mine.yaml", "trainer: {callbacks: [{class_path: os.mkdir, init_args: {path: touched}}]}\n"), CONFIG,
        r"callbacks",
    ),
    "itself": Case(_write("mine.yaml", "a: &a [*a]\n"), CONFIG, r"mine.yaml: more than 100,000 values"),
    "no ablations": Case(None, ("ablate", *FIT[1:]), r"--ablations FILE is required"),
    "ablations of others": Case(
        _write("rows.yaml", "a: {data: {val_fraction: 0.5}}"),
        ("ablate", *FIT[1:], "--ablations=rows.yaml"),
        r"scored on the same patches",
    ),
}  # fmt: skip
FIT_ON = ("fit", *OTHER, "--model.weights=none")
CHECKPOINTS = {
    "none": Case(_remove("run/checkpoints/*"), ("predict", *OTHER), r"last.ckpt: no such checkpoint"),
    "a folder": Case(
        _all(_remove("run/checkpoints/last.ckpt"), lambda place: (place / "run/checkpoints/last.ckpt").mkdir()),
        ("predict", *OTHER), r"last.ckpt: no such checkpoint",
    ),
    "junk": Case(_junk(b"junk"), ("predict", *OTHER), r"last.ckpt: not a checkpoint, or a damaged one"),
    "no bytes": Case(_junk(b""), ("predict", *OTHER), r"last.ckpt: not a checkpoint, or a damaged one"),
    "half": Case(
        _all(_remove("run/checkpoints/best.ckpt"), _cut("run/checkpoints/last.ckpt", 500_000)), ("predict", *OTHER),
        r"last.ckpt: not a checkpoint, or a damaged one",
    ),
    "a zip of nothing": Case(_zip_of_nothing, ("predict", *OTHER), r"last.ckpt: not a checkpoint, or a damaged one"),
    "foreign": Case(FOREIGN, ("predict", *OTHER), r"last.ckpt: not a checkpoint of this project; .*--model.weights"),
    "foreign to go on with": Case(FOREIGN, FIT_ON, r"last.ckpt: not a checkpoint of this project; .*--model.weights"),
    "no record": Case(
        _checkpoint(lambda state: {**state, "pcam": {}}), ("predict", *OTHER), r"last.ckpt: not a checkpoint of this"
    ),
    "a tensor": Case(
        _checkpoint(lambda state: torch.zeros(3)), ("predict", *OTHER), r"last.ckpt: not a checkpoint of this project"
    ),
    "newer": Case(NEWER, ("predict", *OTHER), r"written by pcam_lightning 9.9 in format 99, and this version"),
    "newer to go on with": Case(NEWER, FIT_ON, r"written by pcam_lightning 9.9 in format 99, and this version"),
    "lacking": Case(LACKING, ("predict", *OTHER), r"does not match .* 1 tensor differs .* net.conv_stem.weight"),
    "another shape": Case(SHORT, ("predict", *OTHER), r"does not match .* 1 tensor differs .* net.conv_stem.weight"),
    "another network": Case(RESNET, ("predict", *OTHER), r"does not match --model.backbone resnet18"),
    "an unknown option": Case(
        _checkpoint(lambda state: state["pcam"]["config"]["model"].update(depth=3)), ("predict", *OTHER),
        r"last.ckpt: its run had options that this version.*depth",
    ),
    "a class of its choice": Case(
        CLASSES, ("predict", *OTHER), r"last.ckpt: its run had options that this version.*Augmentation"
    ),
    "no numbers": Case(NO_NUMBERS, ("predict", *OTHER), r"4 of 4 predictions are NaN or infinite"),
    "code": Case(CODE, ("predict", *OTHER), r"last.ckpt: .*not loaded, because .* would run \S*exec"),
    "code to go on with": Case(CODE, FIT_ON, r"last.ckpt: .*not loaded, because .* would run \S*exec"),
    "no run to go on with": Case(None, (*FIT, "--ckpt_path=last"), r"no run with a last.ckpt to resume"),
    "untrained": Case(None, ("predict", *PREDICT[3:]), r"--ckpt_path is required: predict"),
    "another's submission": Case(_write("run/submission.csv", "id,label\n"), PREDICT, r"--overwrite replaces it"),
    "ensemble without a place": Case(
        None, (*PREDICT, "--ensemble", "run/checkpoints/last.ckpt"), r"--output DIR takes them"
    ),
}  # fmt: skip
WEIGHT_FILES = {
    "no weights": Case(None, WEIGHTS, r"mine.pth: no such file; use imagenet, none, pcam, or the path"),
    "junk weights": Case(_write("mine.pth", b"junk"), WEIGHTS, r"mine.pth: not a weights file"),
    "no tensors": Case(
        lambda place: torch.save({"epoch": 3}, place / "mine.pth"), WEIGHTS, r"contains no named tensors"
    ),
    "weights of others": Case(
        lambda place: torch.save({"a.weight": torch.zeros(1)}, place / "mine.pth"),
        WEIGHTS,
        r"does not match the network",
    ),
    "weights with code": Case(
        lambda place: torch.save({"a": Runs()}, place / "mine.pth"),
        WEIGHTS,
        r"not loaded, because .* would run \S*exec",
    ),
    "junk safetensors": Case(
        _write("mine.safetensors", b"\xff" * 64),
        (*WEIGHTS[:-1], "mine.safetensors"),
        r"mine.safetensors: not a weights f",
    ),
}
PCAM_FILES = {
    "cut": Case(_all(_official(), _cut(f"pcam/{PREFIX}train_x.h5", 90_000)), PCAM, r"train_x.h5: not an HDF5 file, or"),
    "swapped": Case(_official(_swap), PCAM, r"train_y.h5: its shape is \(20, 96, 96, 3\)"),
    "floats": Case(_official(_floats), PCAM, r"train_x.h5: float32 of shape"),
    "label 2": Case(_official(_label_two), PCAM, r"train_y.h5: label 2 is neither 0 nor 1"),
    "no array": Case(_official(_nothing_in_x), PCAM, r"train_x.h5: holds nothing, and no array x"),
    "a group": Case(_official(_group), PCAM, r"train_x.h5: holds x, and no array x"),
    "short meta": Case(
        _all(_official(), _write(f"pcam/{PREFIX}train_meta.csv", "wsi\na\n")), PCAM, r"train_meta.csv: 1 rows"
    ),
    "cut gz": Case(_official(packed=True), PCAM, r"train_y.h5.gz: a damaged .gz file"),
    "slides beside": Case(
        _all(_official(), _write("slides.csv", "id,wsi\na,b\n")),
        (*PCAM, "--data.slides=slides.csv"),
        r"name their slides",
    ),
}
TOOLS = {
    "evaluate nothing": Case(None, EVALUATE, r"mine.csv: no such run"),
    "evaluate no CSV": Case(_write("mine.csv", b"\xff\0"), EVALUATE, r"mine.csv"),
    "evaluate one class": Case(_write("mine.csv", "id,label,logit\na,0,1\nb,0,1\n"), EVALUATE, r"labels are the same"),
    "evaluate infinity": Case(_write("mine.csv", "id,label,logit\na,0,1\nb,1,inf\n"), EVALUATE, r"not a finite number"),
    "evaluate words": Case(_write("mine.csv", "id,label,logit\na,no,1\nb,yes,1\n"), EVALUATE, r"neither 0 nor 1"),
    "evaluate twice": Case(_write("mine.csv", "id,label,logit\na,0,1\na,1,1\n"), EVALUATE, r"id a stands twice"),
    "compare nothing": Case(None, ("compare", "run", "other"), r"other: no such run"),
    "curves of nothing": Case(None, ("curves", "kaggle"), r"kaggle/metrics.csv"),
    "curves of junk": Case(_write("run/metrics.csv", b"\xff\0\xfe"), ("curves", "run"), r"run/metrics.csv"),
    "explain nothing": Case(None, ("explain", "kaggle"), r"neither a run nor a finished cross-validation"),
    "explain nobody": Case(None, ("explain", "run", "--ids=nobody"), r"nobody: not in the validation split"),
    "explore nothing": Case(None, ("explore", "--data.root=nowhere"), r"nowhere: no such folder"),
    "crossval of one": Case(None, ("crossval", *FIT[1:], "--folds=1"), r"--folds 1"),
    "slides of nothing": Case(None, ("slides", "nowhere", "--root=kaggle"), r"nowhere"),
    "synthesize none": Case(None, ("synthesize", "out", "--train", "0"), r"train"),
    "synthesize over": Case(None, ("synthesize", "kaggle"), r"kaggle exists and is not empty"),
    "pack nothing": Case(None, ("pack", "--data.root", "nowhere"), r"nowhere"),
}
FLAGS = {
    "nothing": Case(None, (), r"no command: one of fit, .*explore, .*; --help describes them"),
    "unknown command": Case(None, ("fly",), r"fly"),
    "unknown flag": Case(None, ("fit", "--data.rot", "x"), r"--data.rot; --data has .*root,.*split_seed"),
    "unknown flag of none": Case(None, ("fit", "--dunno=x"), r"--dunno=x; fit --help lists the options"),
    "flag without its kind": Case(None, ("fit", "--lr=1"), r"--lr=1; did you mean --model.lr\?"),
    "another without its kind": Case(None, ("fit", "--tta=d4"), r"--tta=d4; did you mean --model.tta\?"),
    "mistyped flag": Case(None, ("fit", "--rot=x"), r"--rot=x; did you mean --data.root\?"),
    "word for a number": Case(None, ("fit", "--data.batch_size", "many"), r"batch_size"),
    "unknown accelerator": Case(None, ("fit", "--trainer.accelerator", "abacus"), r"abacus"),
    "no such machine": Case(None, ("fit", "--trainer.accelerator", "tpu"), r"error: --trainer: "),
    "unknown precision": Case(None, ("fit", "--trainer.precision", "12"), r"precision"),
    "optimizer": Case(None, ("fit", "--model.optimizer", "lion"), r"optimizer"),
    "batch of none": Case(None, ("fit", "--data.batch_size", "0"), r"--data.batch_size 0"),
    "fraction": Case(None, (*FIT, "--data.val_fraction", "1.5"), r"--data.val_fraction 1.5"),
    "backbone": Case(None, ("fit", "--model.backbone", "resnet19"), r"--model.backbone resnet19"),
    "no end": Case(None, (*FIT, "--trainer.max_epochs=-1"), r"max_epochs"),
    "flag before config": Case(None, ("fit", "--data.root", "nowhere", "-c", BASE), r"nowhere: no such folder"),
    "seed": Case(None, ("fit", "--seed_everything", "-1"), r"--seed_everything"),
    "split seed": Case(None, ("fit", "--data.split_seed", "-1"), r"--data.split_seed -1"),
    "momentum": Case(None, ("fit", "--model.momentum", "-1"), r"--model.momentum -1"),
    "accumulate": Case(None, ("fit", "--trainer.accumulate_grad_batches", "0"), r"accumulate_grad_batches: at least 1"),
    "overfit": Case(None, ("fit", "--trainer.overfit_batches", "2"), r"overfit_batches: .*limit_train_batches"),
    "half": Case(None, ("fit", "--trainer.precision", "bf16-true"), r"precision: 32-true"),
    "no epochs": Case(None, ("fit", "--trainer.max_epochs", "0"), r"0 would train nothing"),
    "flag without value": Case(None, ("fit", "-c"), r"expected one argument"),
    "fold beyond": Case(None, (*FIT, "--data.folds=3", "--data.fold=3"), r"--data.fold 3: should be from 0 to 2"),
    "stain jitter": Case(None, (*FIT, "--model.augment.stain=2"), r"--model.augment.stain 2"),
    "ids checked": Case(_other_id, (*FIT, "--data.verify=true"), r"1 of 20 ids of train are not the SHA-1"),
}  # fmt: skip
_LIGHTNING = "lightning.pytorch.callbacks."
_METRICS = r"the metrics are train/accuracy, .*val/loss\.$"


def _stopping(monitor: str, **more: Any) -> str:
    return with_callback(_LIGHTNING + "EarlyStopping", monitor=monitor, **more)


class Monitors(Callback):
    """A callback of the user's own that reads a metric."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor


CALLBACKS = {
    "unknown metric": Case(None, (*FIT, _stopping("val_loss")), rf"EarlyStopping: no metric val_loss .*{_METRICS}"),
    "kept by an unknown metric": Case(
        None, (*FIT, with_callback(_LIGHTNING + "ModelCheckpoint", monitor="auc")), rf"no metric auc .*{_METRICS}"
    ),
    "unknown metric of the user's": Case(
        None, (*FIT, with_callback("test_bad_input.Monitors", monitor="auc")), rf"Monitors: no metric auc .*{_METRICS}"
    ),
    "nothing held out": Case(
        None, (*FIT, _stopping("val/loss"), "--data.val_fraction=0"), r"val/loss .*--data.val_fraction"
    ),
    "no validation batches": Case(
        None, (*FIT, _stopping("val/loss"), "--trainer.limit_val_batches=0"), r"val/loss .*limit_val_batches 0"
    ),
    "validated after the end": Case(
        None,
        (*FIT, _stopping("val/auroc"), "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=3"),
        r"check_val_every_n_epoch 3 is more than --trainer.max_epochs 2",
    ),
    "read too early": Case(
        None, (*FIT, _stopping("train/loss", check_on_train_epoch_end=False)), r"check_on_train_epoch_end to true"
    ),
    "read before validation": Case(
        None,
        (*FIT, _stopping("val/loss", check_on_train_epoch_end=True), "--trainer.check_val_every_n_epoch=2"),
        r"check_on_train_epoch_end to false",
    ),
    "never validates": Case(None, (*FIT, "--trainer.check_val_every_n_epoch=0"), r"every_n_epoch: at least 1"),
    "wrong argument": Case(None, (*FIT, _stopping("val/loss", mode="up")), r"EarlyStopping cannot be built: .*max"),
    "wrong duration": Case(
        None, (*FIT, with_callback(_LIGHTNING + "Timer", duration="soon")), r"Timer cannot be built: .*DD:HH:MM:SS"
    ),
    "unknown callback": Case(None, (*FIT, with_callback(_LIGHTNING + "Stops")), r"callbacks.*Stops"),
    "unknown module": Case(None, (*FIT, with_callback("nowhere.Stops")), r"No module named 'nowhere'"),
    "finetuning": Case(
        None, (*FIT, with_callback(_LIGHTNING + "BackboneFinetuning")), r"BackboneFinetuning out, --model.freeze_epochs"
    ),
    "a search for the rate": Case(
        None, (*FIT, with_callback(_LIGHTNING + "LearningRateFinder")), r"LearningRateFinder out, they train with"
    ),
    "a limit that leaves no batch": Case(
        None, (*FIT, "--trainer.limit_train_batches=0.01"), r"limit_train_batches 0\.01: is less than one of"
    ),
    "pruning": Case(
        None, (*FIT, with_callback(_LIGHTNING + "ModelPruning", pruning_fn="l1_unstructured")), r"ModelPruning out"
    ),
    "no logger": Case(None, (*FIT, with_callback(_LIGHTNING + "DeviceStatsMonitor")), r"logger is false"),
    "no checkpoints": Case(
        None, (*FIT, "--trainer.enable_checkpointing=false"), r"error: --trainer.enable_checkpointing: not false"
    ),
    "barebones": Case(None, (*FIT, "--trainer.barebones=true"), r"error: --trainer.barebones: not true"),
    "checkpoint plugin": Case(
        None, (*FIT, "--trainer.plugins=lightning.pytorch.plugins.io.AsyncCheckpointIO"), r"leave the CheckpointIO out"
    ),
    "unknown profiler": Case(None, (*FIT, "--trainer.profiler=stopwatch"), r"profiler.*simple"),
}  # fmt: skip
PACKAGES = {
    "wandb": "--trainer.logger=lightning.pytorch.loggers.WandbLogger",
    "mlflow": "--trainer.logger=lightning.pytorch.loggers.MLFlowLogger",
    "comet_ml": "--trainer.logger=lightning.pytorch.loggers.CometLogger",
    "rich": with_callback(_LIGHTNING + "RichProgressBar"),
    "torch_xla": "--trainer.profiler=lightning.pytorch.profilers.XLAProfiler",
    "deepspeed": "--trainer.strategy=deepspeed",
}
for _package, _flag in PACKAGES.items():
    if find_spec(_package) is None:  # where it is installed, there is nothing to complain about
        CALLBACKS[_package] = Case(None, (*FIT, _flag), rf"pip install -U .?{_package.replace('_', '[-_]')}")
KINDS = {
    "folder": FOLDERS, "table": TABLES, "image": IMAGES, "map": MAPS, "config": CONFIG_FILES, "checkpoint": CHECKPOINTS,
    "weights": WEIGHT_FILES, "pcam": PCAM_FILES, "tool": TOOLS, "flag": FLAGS,
    "trainer": CALLBACKS,
}  # fmt: skip
CASES = {f"{kind}: {name}": case for kind, cases in KINDS.items() for name, case in cases.items()}


@pytest.fixture
def place(kaggle: MakeFolder, small: Path, tmp_path: Path) -> Path:
    """Return a working folder with a data folder and a run in it."""
    place = tmp_path / "work"
    kaggle(root=place / "kaggle")
    shutil.copytree(small, place / "run")
    return place


def _snapshot(place: Path) -> dict[str, str]:
    """Return what lies in a folder, without packed images, which whatever is asked for next may use."""
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file() and ".pcam_cache" not in path.parts
    }


@pytest.mark.parametrize("name", CASES)
def test_one_line_status_2_and_nothing_written(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, args, expected = CASES[name]
    if change:
        change(place)
    before = _snapshot(place)
    assert main(list(args)) == 2
    message = capsys.readouterr()
    lines = [line for line in message.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert re.search(expected, lines[0]), lines[0]
    assert len(lines[0]) < 1000
    assert "Traceback" not in message.err
    assert "usage:" not in message.err + message.out
    assert _snapshot(place) == before


class Logs(Callback):
    """Logs a metric of its own."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("mine", 1.0)


@pytest.mark.parametrize("known", [("val/auroc",), ("mine", "test_bad_input.Logs"), ("train/patches_per_second",)])
def test_a_metric_that_is_there_is_monitored(known: tuple[str, ...], place: Path) -> None:
    callbacks: list[dict[str, Any]] = [{"class_path": name} for name in known[1:]]
    callbacks.append({"class_path": _LIGHTNING + "EarlyStopping", "init_args": {"monitor": known[0]}})
    args = [*FIT, f"--trainer.callbacks={json.dumps(callbacks)}"]
    assert main([*args, "--trainer.max_epochs=1"]) == 0


def test_a_time_limit_is_a_callback_that_trains(place: Path) -> None:
    timer = with_callback(_LIGHTNING + "Timer", duration="00:01:00:00")
    assert main([*FIT, timer, "--trainer.max_epochs=1"]) == 0
    recorded = yaml.safe_load(Path("lightning_logs/default/version_0/config.yaml").read_text())
    assert recorded["trainer"]["callbacks"][0]["init_args"]["interval"] == "step"


def test_a_run_config_that_names_classes_of_its_own_is_not_followed(place: Path) -> None:
    """A stranger's checkpoint may hold callbacks: predict knows none of them."""
    _checkpoint(
        lambda state: state["pcam"]["config"]["trainer"].update(
            callbacks=[{"class_path": "lightning.pytorch.callbacks.Timer"}], logger=[{"class_path": "os.mkdir"}]
        )
    )(place)
    assert main(["predict", *OTHER]) == 0
    assert yaml.safe_load((place / "run/config.yaml").read_text())["trainer"]["callbacks"] is None
    assert sorted(path.name for path in place.iterdir()) == ["kaggle", "run"]
