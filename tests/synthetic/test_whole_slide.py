"""Drawn whole slides: tissue, metastases and their outlines."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pcam_lightning.cli.main import main
from pcam_lightning.slides.annotations import tumor_outlines
from pcam_lightning.slides.outlines import outline_mask
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.slides.tissue_mask import is_tissue
from pcam_lightning.synthetic.kaggle_folder import sample_slide
from pcam_lightning.synthetic.whole_slide import synthesize_whole_slide, write_whole_slide


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small slides."""
    folder = tmp_path_factory.mktemp("drawn") / "slides"
    assert main(["synthesize", str(folder), "--slides", "3", "--whole", "--side_mm", "0.5"]) == 0
    return folder


def test_slides_come_with_annotations_and_a_reference(drawn: Path) -> None:
    assert {path.name for path in drawn.iterdir()} == {
        "SYNTHETIC.txt", "reference.csv", "tumor_001.tif", "tumor_001.xml", "tumor_002.tif", "tumor_002.xml",
        "normal_003.tif",
    }  # fmt: skip
    reference = pd.read_csv(drawn / "reference.csv")
    assert dict(reference.itertuples(index=False)) == {"tumor_001": 1, "tumor_002": 1, "normal_003": 0}


def test_a_slide_has_tissue_and_glass_at_camelyons_scale(drawn: Path) -> None:
    slide = SlideReader(drawn / "normal_003.tif")
    assert slide.mpp == pytest.approx(0.243, rel=1e-4)
    assert slide.width == 4 * round(500 / 0.972)
    pixels = slide.read(0, 0, slide.levels[2].width, slide.levels[2].height, 2)
    assert 0.2 < is_tissue(pixels).mean() < 0.8
    assert np.median(pixels[:20, -20:]) > 200  # bare glass in a corner


def test_outlines_lie_on_tissue(drawn: Path) -> None:
    for name in ("tumor_001", "tumor_002"):
        slide = SlideReader(drawn / f"{name}.tif")
        tumor = tumor_outlines(drawn / f"{name}.xml", PatchGrid(slide.width, slide.height, slide.mpp))
        mask = outline_mask(tumor, slide.width, slide.height, 4.0)
        assert mask.any()
        pixels = slide.read(0, 0, slide.levels[2].width, slide.levels[2].height, 2)
        assert is_tissue(pixels)[mask].mean() > 0.9


def test_the_same_seed_draws_the_same_slides(drawn: Path, tmp_path: Path) -> None:
    assert main(["synthesize", str(tmp_path / "again"), "--slides", "3", "--whole", "true", "--side_mm", "0.5"]) == 0
    for name in ("tumor_001.xml", "tumor_001.tif"):
        assert (tmp_path / "again" / name).read_bytes() == (drawn / name).read_bytes()


@pytest.mark.parametrize("flag", ["--slides=2", "--side_mm=0.1", "--side_mm=60", "--slide_effect=9"])
def test_wrong_arguments_are_one_line(tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", str(tmp_path / "slides"), "--whole", flag]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "slides").exists()


def test_a_slide_may_have_an_odd_side(tmp_path: Path) -> None:
    side = 515
    rng = np.random.default_rng(0)
    image, metastases = synthesize_whole_slide(rng, sample_slide(rng, "tumor", 1.0), side, tumor=True)
    assert image.shape == (side, side, 3)
    assert metastases.shape == (side, side)
    write_whole_slide(tmp_path / "tumor.tif", image, metastases)
    assert SlideReader(tmp_path / "tumor.tif").width == 4 * side


@pytest.mark.parametrize("side_mm", ["0.49", "4.1"])
def test_other_sides_are_refused(side_mm: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", "slides", "--whole", "--side_mm", side_mm]) == 2
    assert f"side_mm {side_mm} is out of range. Set a number from 0.5 to 4." in capsys.readouterr().err
    assert not Path("slides").exists()
