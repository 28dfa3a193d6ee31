"""Scales: what files state, in tiles or not, and what a user says against it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written import write_tiff

from pcam_lightning.cli.main import main
from pcam_lightning.slides.predict_slide import predict_slide
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.slides.slide_scale import given_mpp, read_mpp_table
from pcam_lightning.utils.errors import UserError

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
OME = f'<?xml version="1.0"?><OME xmlns="{NAMESPACE}"><Image><Pixels {{}}/></Image></OME>'
CPU: dict[str, Any] = {"accelerator": "cpu", "precision": "32-true", "num_workers": 0, "stride": 96}
TILED = pytest.mark.parametrize("tile", [False, True], ids=["strips", "tiles"])


@TILED
def test_pixels_that_are_not_square_are_refused(pixels: np.ndarray, tmp_path: Path, tile: bool) -> None:
    write_tiff(tmp_path / "a.tif", pixels, tile=tile, mpp=(0.25, 0.5))
    with pytest.raises(UserError, match=r"a.tif: pixels are not square: 0.25 um across and 0.5 um down"):
        SlideReader(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a.tif: states 0.25 x 0.5 um per pixel, but `mpp` is 0.25"):
        predict_slide(tmp_path / "a.tif", "pcam-small", mpp=0.25, **CPU)


@TILED
def test_the_resolution_of_a_screen_is_no_scale(pixels: np.ndarray, tmp_path: Path, tile: bool) -> None:
    write_tiff(tmp_path / "a.tif", pixels, tile=tile, mpp=(25400 / 72, 25400 / 72))
    with pytest.raises(UserError, match=r"does not state its scale. Set `mpp`"):
        SlideReader(tmp_path / "a.tif")


@TILED
@pytest.mark.parametrize(
    ("size", "mpp"),
    [
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.5"', 0.5),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.00025" PhysicalSizeYUnit="mm"', 0.25),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="pixel" PhysicalSizeY="0.5" PhysicalSizeYUnit="pixel"', 1.0),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" PhysicalSizeY="0.5" PhysicalSizeYUnit="µm"', 0.5),
        ('SizeX="320"', 1.0),
    ],
)
def test_ome_states_a_scale_with_its_unit(
    pixels: np.ndarray, tmp_path: Path, tile: bool, size: str, mpp: float
) -> None:
    write_tiff(tmp_path / "a.ome.tif", pixels, tile=tile, mpp=(1.0, 1.0), description=OME.format(size))
    assert SlideReader(tmp_path / "a.ome.tif").mpp == pytest.approx(mpp)


def test_a_magnification_alone_is_in_the_message(pixels: np.ndarray, tmp_path: Path) -> None:
    text = "Aperio Image Library v1\r\n320x320 (256x256) JPEG|AppMag = 20"
    write_tiff(tmp_path / "a.svs", pixels, tile=True, description=text, compression="jpeg")
    with pytest.raises(UserError, match=r"a.svs: does not state its scale, only 20x \(about 0.5 um per pixel\)"):
        SlideReader(tmp_path / "a.svs")


def test_another_scale_than_the_file_states_is_refused(slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heatmap", str(slide), "--ckpt_path=pcam-small", "--mpp=0.5"]) == 2
    message = (
        f"error: {slide}: states 0.243 um per pixel, but --mpp is 0.5. Remove --mpp, or, if the file is wrong, set it"
    )
    assert message in capsys.readouterr().err
    stated = SlideReader(slide).stated
    assert not stated.differs(0.25)  # 3 % away, as laboratories round it
    assert stated.differs(0.226)


def test_a_table_gives_and_corrects_scales(
    slide: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "scales.csv"
    table.write_text(f"slide,mpp\n{slide.stem},0.5\n{plain.name},0.972\nother,0.25\n")
    args = ["--accelerator=cpu", "--precision=32-true", "--num_workers=0", "--stride=96", "--ckpt_path=pcam-small"]
    assert main(["heatmap", str(slide), *args, f"--mpp={table}"]) == 0
    error = capsys.readouterr().err
    assert f"{table}: these rows match none of the slides: {plain.name}, other" in error
    assert f"warning: {slide}: states 0.243 um per pixel; using 0.5 from {table}" in error
    assert json.loads((Path("heatmaps") / slide.stem / "slide.json").read_text())["mpp"] == 0.5
    assert given_mpp(table, plain) == 0.972


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "not a CSV with the columns slide,mpp"),
        ("name,mpp\na,0.5\n", "not a CSV with the columns slide,mpp"),
        ("slide,mpp\na,half\n", "not a CSV with the columns slide,mpp"),
        ("slide,mpp\na,9\n", "row 2: mpp 9 should be from 0.05 to 4"),
        ("slide,mpp\na,0.5\na,0.25\n", "row 3: a has a different mpp in an earlier row"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "scales.csv").write_text(content)
    with pytest.raises(UserError, match=f"scales.csv.*{reason}"):
        read_mpp_table(tmp_path / "scales.csv")
