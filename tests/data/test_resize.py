"""Images of another size, scale or format: what becomes of them, what is said, and what checkpoints keep."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIGS, FAST
from PIL import Image

from pcam_lightning import PCamDataModule
from pcam_lightning.cli.main import main
from pcam_lightning.data.resize import Resize, make_resize
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.utils.errors import UserError


def draw(side: int, seed: int = 0) -> Image.Image:
    """Draw smooth noise, which JPEG and resampling hardly change."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def folders(root: Path, side: int = 192, suffix: str = ".jpg", *parts: str) -> Path:
    """Write ten images of each class."""
    for label in (0, 1):
        for part in parts or ("train",):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for index in range(10):
                draw(side, 10 * label + index).save(folder / f"{index}{suffix}")
    return root


def packed(root: Path, **options: object) -> tuple[np.ndarray, PCamDataModule]:
    data = PCamDataModule(root, **options)  # type: ignore[arg-type]
    data.setup("fit")
    return data.train_store.images, data


def test_crop_keeps_the_pixels_at_the_center(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path / "data", 101, ".png")
    images, data = packed(root, resize="crop", mpp=1.0)
    rows = data.train_store.rows(data.table["id"])
    for path, row in zip(data.table["path"], rows, strict=True):
        assert np.array_equal(images[row], np.asarray(Image.open(root / path))[2:98, 2:98])
    assert (
        "images of 101 x 101 pixels, 1 um each: crop takes the 96 x 96 at the center for a patch of 96 x 96; 10% of "
        "the area is not used." in capsys.readouterr().err
    )


@pytest.mark.parametrize(("width", "height"), [(300, 220), (220, 300)])
def test_images_that_are_no_squares_are_cut_at_their_center(width: int, height: int) -> None:
    image = draw(300).crop((0, 0, width, height))
    center = image.crop((width // 2 - 48, height // 2 - 48, width // 2 + 48, height // 2 + 48))
    assert np.array_equal(np.asarray(Resize("crop", 1.0)(image)), np.asarray(center))
    center = image.crop((width // 2 - 96, height // 2 - 96, width // 2 + 96, height // 2 + 96))
    found = np.asarray(Resize("scale", 0.486)(image), dtype=float)
    assert np.abs(found - center.resize((96, 96), Image.Resampling.BOX)).mean() < 1


def test_scale_resamples_to_the_scale_of_pcam(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path / "data", 256)
    images, data = packed(root, resize="scale", mpp=0.486)
    for path, row in zip(data.table["path"], data.train_store.rows(data.table["id"]), strict=True):
        image = np.asarray(Image.open(root / path).convert("RGB"), dtype=float)[32:224, 32:224]
        mean = image.reshape(96, 2, 96, 2, 3).mean((1, 3))
        assert np.abs(images[row] - mean).mean() < 1.5
    said = capsys.readouterr().err
    assert "scale takes the 192 x 192 at the center" in said
    assert "44% of the area is not used; detail finer than 0.972 um is lost; JPEG has lost detail already." in said


def test_sizes_are_packed_beside_each_other(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", 192)
    scaled, data = packed(root, resize="scale", mpp=0.486)
    cropped, other = packed(root, resize="crop", mpp=0.9)
    again, same = packed(root, resize="scale", mpp=0.486)
    assert np.array_equal(scaled, again)
    assert data.train_store.path == same.train_store.path
    assert data.train_store.path.is_file()
    assert data.train_store.fingerprint != other.train_store.fingerprint
    assert not np.array_equal(scaled, cropped)


def test_images_of_several_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path / "data", 200)
    draw(300).save(root / "train/0/0.jpg")
    packed(root, resize="scale", mpp=0.486)
    assert "images of 200 x 200 to 300 x 300 pixels" in capsys.readouterr().err


def test_coarser_images_are_enlarged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed(folders(tmp_path / "data", 64), resize="scale", mpp=1.944)
    assert "48 x 48 at the center for a patch of 96 x 96; 44% of the area is not used; images are enlarged, which" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "scale"}, r"`data.resize` scale: needs `data.mpp`, the um per pixel"),
        ({"mpp": 0.5}, r"`data.mpp` 0.5: goes with `data.resize` crop or scale"),
        ({"resize": "crop", "mpp": 0.5}, r"`data.resize` crop: keeps pixels of 0.5 um, .*; use scale"),
        ({"resize": "squeeze", "mpp": 0.5}, r"`data.resize` squeeze: should be crop or scale"),
        ({"resize": "scale", "mpp": 0.0}, r"`data.mpp` 0: um per pixel should be from 0.05 to 4"),
        ({"resize": "scale", "mpp": float("nan")}, r"`data.mpp` nan: should be a number"),
        ({"resize": "scale", "mpp": 0.25}, r"train/0/0.jpg \(192 x 192 pixels, and a patch needs 373 x 373: the image "
                                           r"shows 48 um, and a patch 93\)"),
        ({}, r"train/0: no .tif or .png file in it or below; 10 .jpg: `data.resize` crop or scale reads JPEG"),
    ],
)  # fmt: skip
def test_what_cannot_be_resized(options: dict[str, object], message: str, tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        packed(root, **options)


def test_a_little_may_be_missing() -> None:
    resize = make_resize("scale", 0.5)
    assert isinstance(resize, Resize)
    assert resize(draw(184)).size == (96, 96)  # 92 of 93.3 um
    with pytest.raises(ValueError, match="94 x 94 pixels, and a patch needs 96 x 96"):
        Resize("crop", 1.0)(draw(94))  # its border would be black
    with pytest.raises(ValueError, match="shows 90 um"):
        resize(draw(180))


def test_h5_files_are_not_resized(tmp_path: Path) -> None:
    root = tmp_path / "h5"
    root.mkdir()
    (root / "camelyonpatch_level_2_split_train_x.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"h5: its patches are not image files; leave `data.resize`"):
        packed(root, resize="scale", mpp=0.5)


def test_a_run_keeps_how_its_images_were_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path / "data", 192, ".jpg", "train", "test")
    options = ["--data.resize", "scale", "--data.mpp", "0.486", "--data.root", str(root)]
    assert main(["fit", "-c", str(CONFIGS / "debug.yaml"), *FAST, *options]) == 0
    run = Path("lightning_logs/debug/version_0")
    recorded = read_checkpoint(run / "checkpoints/best.ckpt")["pcam"]["config"]["data"]
    assert (recorded["resize"], recorded["mpp"]) == ("scale", 0.486)
    resume = ["fit", "-c", str(CONFIGS / "debug.yaml"), "--ckpt_path=last", "--trainer.max_epochs=9"]
    assert main([*resume, "--data.mpp=0.5"]) == 2
    assert "--data.mpp 0.5: this run was trained with 0.486" in capsys.readouterr().err
    assert main(["predict", "--ckpt_path", str(run / "checkpoints/best.ckpt")]) == 0
    assert "scale takes the 192 x 192 at the center" in capsys.readouterr().err
    assert len(pd.read_csv(run / "submission.csv")) == 20
    assert main(["evaluate", str(run), "--bootstrap_samples", "100"]) == 0
    assert main(["predict", "--ckpt_path", "pcam", *options, "--output", str(tmp_path)]) == 0
