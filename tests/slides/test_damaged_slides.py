"""Damaged tiles: read around, left empty, and counted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from written import damage_tile

from pcam_lightning.cli.main import main
from pcam_lightning.slides.patch_grid import PatchGrid, Region
from pcam_lightning.slides.predict_slide import predict_slide
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.slides.slide_regions import SlideRegions
from pcam_lightning.slides.tissue_mask import tissue_mask
from pcam_lightning.utils.errors import UserError

CPU = {"accelerator": "cpu", "precision": "32-true", "num_workers": 0}


@pytest.fixture
def copy(slide: Path, tmp_path: Path) -> Path:
    """A slide to damage; its level 2 has tiles of 256 x 256 pixels, two across and two down."""
    path = tmp_path / "damaged.tif"
    shutil.copyfile(slide, path)
    return path


def test_a_damaged_tile_leaves_its_squares_empty(slide: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage_tile(copy, level=2, tile=1)  # from column 256 of 320 on, where the last column of patches with tissue ends
    args = ["heatmap", str(copy), "--ckpt_path=pcam-small", "--accelerator=cpu", "--precision=32-true"]
    assert main([*args, "--num_workers=1"]) == 0
    assert "damaged.tif: damaged at x 896, y 256: 5 of 25 squares cannot be read and stay empty" in (
        capsys.readouterr().err
    )
    folder, whole = Path("heatmaps/damaged"), predict_slide(slide, "pcam-small", Path("whole"), **CPU)
    patches = pd.read_csv(folder / "patches.csv")
    expected = whole.heat_map.patches().query("minx + width <= 1024")
    assert len(patches) == 20
    assert patches["prob_tumor"].to_numpy() == pytest.approx(expected["prob_tumor"].to_numpy(), abs=1e-5)
    assert json.loads((folder / "slide.json").read_text())["damaged_squares"] == 5
    assert pd.read_csv("heatmaps/slides.csv")["damaged_squares"].tolist() == [5]
    assert "5 of 25 squares cannot be read" in (folder / "heatmap.html").read_text()
    (folder / "tissue.png").unlink()  # to be written anew, from the logits that are there
    again = predict_slide(copy, "pcam-small", folder, **CPU)
    assert again.summary["damaged_squares"] == 5


def test_a_slide_of_which_most_is_damaged_is_an_error(copy: Path) -> None:
    damage_tile(copy, level=2, tile=0)
    with pytest.raises(UserError, match=r"damaged at x 384, y 256: 25 of 25 squares cannot be read. Copy the slide"):
        predict_slide(copy, "pcam-small", Path("map"), **CPU)
    assert not Path("map/slide.json").exists()


def test_where_the_overview_is_damaged_all_may_be_tissue(slide: Path, copy: Path) -> None:
    damage_tile(copy, level=3, tile=0)
    reader = SlideReader(copy)
    grid = PatchGrid(reader.width, reader.height, reader.mpp)
    assert tissue_mask(SlideReader(slide), grid).mean() < 0.5
    assert tissue_mask(reader, grid).all()


@pytest.mark.parametrize("start", [0, -150])
def test_what_is_read_around_damage_is_what_it_was(slide: Path, copy: Path, start: int) -> None:
    damage_tile(copy, level=0, tile=7)  # the third of the second row: 512 to 768 across, 256 to 512 down
    reader = SlideReader(copy)
    found = reader.read_around(start, start, 900, 900)
    whole = SlideReader(slide).read(start, start, 900, 900)
    lost = np.zeros((900, 900), dtype=bool)
    for box in reader.damaged:
        lost[int(box.top) - start : int(box.bottom) - start, int(box.left) - start : int(box.right) - start] = True
    tile = np.zeros_like(lost)
    tile[256 - start : 512 - start, 512 - start : 768 - start] = True
    assert not (tile & ~lost).any()
    assert (lost & ~tile).sum() < 100_000  # no more than the blocks that reach into it
    assert np.array_equal(found[~lost], whole[~lost])
    assert (found[lost] == 255).all()


def test_what_is_damaged_in_a_region_does_not_depend_on_those_before(copy: Path) -> None:
    damage_tile(copy, level=2, tile=1)  # from column 256 of 320 on
    reader = SlideReader(copy)
    grid = PatchGrid(reader.width, reader.height, reader.mpp)
    # The first region ends at 256; the second one gives up blocks that begin before that.
    parts = [Region(0, 4, grid.rows, 3), Region(0, 7, grid.rows, 3)]
    regions = SlideRegions(copy, grid, parts, np.ones((grid.rows, grid.columns), dtype=bool))
    for index in (0, 1, 0):
        lost = len(regions[index]["damaged"])
        assert lost == 0 if index == 0 else lost > 0
