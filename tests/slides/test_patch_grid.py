"""Patch grid and tissue mask."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pcam_lightning.data.image_io import MPP
from pcam_lightning.slides.patch_grid import PatchGrid, Region
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.slides.slide_regions import SlideRegions, cut_patches
from pcam_lightning.slides.tissue_mask import is_tissue, tissue_mask
from pcam_lightning.synthetic.whole_slide import write_whole_slide


def whole(grid: PatchGrid) -> Region:
    return Region(0, 0, grid.rows, grid.columns)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.floats(0.05, 4.0),
    st.sampled_from([32, 64, 96, 160]),
)
def test_centers_tile_the_slide_and_regions_the_grid(width: int, height: int, mpp: float, stride: int) -> None:
    grid = PatchGrid(width, height, mpp, stride)
    assert grid.columns * grid.square >= width > (grid.columns - 1) * grid.square
    assert grid.rows * grid.square >= height > (grid.rows - 1) * grid.square
    x, y = grid.corners(np.arange(3), np.arange(3))
    center = (grid.patch - grid.center) // 2
    if stride == 32:  # the centers of patches are the squares
        assert np.array_equal(x + center, np.arange(3) * grid.square)
        assert np.array_equal(y + center, np.arange(3) * grid.square)
    if mpp <= 0.8:
        assert grid.mpp == pytest.approx(MPP, rel=0.0135)
    covered = np.zeros((grid.rows, grid.columns), dtype=int)
    for region in grid.regions(np.ones_like(covered, dtype=bool)):
        covered[region.slice] += 1
    assert (covered == 1).all()


def test_patches_of_a_level_are_its_pixels(slide: Path, pixels: np.ndarray) -> None:
    reader = SlideReader(slide)
    grid = PatchGrid(reader.width, reader.height, reader.mpp)
    assert (grid.center, grid.square, grid.patch) == (128, 128, 384)
    assert (grid.rows, grid.columns) == (10, 10)
    image = torch.from_numpy(grid.read(reader, whole(grid)).copy())
    assert image.shape == (352 + 32, 352 + 32, 3)
    row, column = torch.tensor([3, 9]), torch.tensor([4, 9])
    patches = cut_patches(image, row, column, 32).numpy()
    assert patches.shape == (2, 96, 96, 3)
    expected = pixels[3 * 32 - 32 : 3 * 32 + 64, 4 * 32 - 32 : 4 * 32 + 64]
    assert np.abs(patches[0].astype(int) - expected).mean() < 6
    assert (patches[1, 64:] == 255).all()  # beyond the slide


@pytest.mark.parametrize("mpp", [0.25, 0.324, 0.486, 0.5, 1.0, 1.944])
def test_other_scales_are_resampled_to_the_same_patches(tmp_path: Path, mpp: float) -> None:
    rows, columns = np.mgrid[:1000, :1000] * mpp  # um
    waves = 128 + 60 * np.sin(rows / 20) + 60 * np.sin(columns / 30)
    path = tmp_path / "waves.png"
    Image.fromarray(np.repeat(waves[..., None], 3, axis=2).astype(np.uint8)).save(path)
    reader = SlideReader(path, mpp)
    grid = PatchGrid(reader.width, reader.height, mpp)
    region = Region(2, 3, 2, 2)
    patches = cut_patches(torch.from_numpy(grid.read(reader, region).copy()), torch.tensor([1]), torch.tensor([0]), 32)
    x, y = grid.corners(np.array([3]), np.array([3]))
    at = (np.arange(96) + 0.5) * grid.mpp
    # A pixel's color is that of its corner in the drawing and of its center in the patch.
    half = mpp / 2
    expected = 128 + 60 * np.sin((y[0] * mpp + at[:, None] - half) / 20) + 60 * np.sin((x[0] * mpp + at - half) / 30)
    assert np.abs(patches[0, ..., 0].numpy() - expected).max() < 4


def test_a_slide_that_is_twice_as_fine_is_averaged(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    grid = PatchGrid(400, 400, MPP / 2)
    pixels = grid.read(SlideReader(tmp_path / "noise.png", MPP / 2), Region(1, 1, 1, 1)).astype(float)
    left, top = (int(value[0]) for value in grid.corners(np.array([1]), np.array([1])))
    expected = noise[top : top + 192, left : left + 192].reshape(96, 2, 96, 2, 3).mean(axis=(1, 3))
    assert np.abs(pixels - expected).max() <= 1


def test_patches_that_begin_within_a_pixel_of_a_level_lie_where_they_should(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:320, :320]
    waves = 128 + 50 * np.sin(rows / 3) + 50 * np.sin(columns / 2)
    pixels = np.repeat(waves[..., None], 3, axis=2).astype(np.uint8)
    write_whole_slide(tmp_path / "waves.tif", pixels, np.zeros((320, 320), dtype=bool), quality=98)
    reader = SlideReader(tmp_path / "waves.tif")
    grid = PatchGrid(reader.width, reader.height, 0.27)
    assert reader.level_for(grid.mpp) == 1
    found = grid.read(reader, Region(2, 2, 1, 1)).astype(float)
    finest = Image.fromarray(reader.read(grid.square, grid.square, grid.patch, grid.patch))
    expected = np.asarray(finest.resize((96, 96), Image.Resampling.BILINEAR), dtype=float)
    assert np.abs(found - expected).mean() < 1.5


def test_strips_of_any_height_make_the_same_picture(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def picture() -> np.ndarray:
        return np.asarray(SlideReader(plain, 0.5).read_scaled((0, 0, 320, 320), (90, 90)), dtype=float)

    whole = picture()
    monkeypatch.setattr("pcam_lightning.slides.slide_reader._MOST_PIXELS", 320 * 20)
    assert np.abs(picture() - whole).max() <= 1


def test_strides_and_regions_give_the_same_patches(slide: Path) -> None:
    reader = SlideReader(slide)
    fine, coarse = (PatchGrid(reader.width, reader.height, reader.mpp, stride) for stride in (32, 96))
    every = torch.from_numpy(fine.read(reader, whole(fine)).copy())
    some = torch.from_numpy(coarse.read(reader, whole(coarse)).copy())
    one = cut_patches(every, torch.tensor([4]), torch.tensor([4]), 32)
    same = cut_patches(some, torch.tensor([1]), torch.tensor([1]), 96)
    assert torch.equal(one, same)  # square 1 of 96 has its center where square 4 of 32 has
    part = torch.from_numpy(fine.read(reader, Region(3, 4, 5, 2)).copy())
    assert torch.equal(cut_patches(part, torch.tensor([1]), torch.tensor([0]), 32), one)


def test_tissue_has_color_and_density() -> None:
    colors = np.array([[[245, 245, 245], [200, 200, 200], [150, 90, 160], [235, 205, 225], [40, 20, 60], [0, 0, 0]]])
    assert is_tissue(colors.astype(np.uint8)).tolist() == [[False, False, True, True, True, False]]


def test_squares_that_hold_tissue_are_found(slide: Path) -> None:
    reader = SlideReader(slide)
    grid = PatchGrid(reader.width, reader.height, reader.mpp)
    squares = grid.squares_with(tissue_mask(reader, grid))
    expected = np.zeros((10, 10), dtype=bool)
    expected[2:7, 3:8] = True  # rows 64 to 224, columns 96 to 256
    assert np.array_equal(squares, expected)


def test_a_few_lymphocytes_are_tissue(tmp_path: Path) -> None:
    image = np.full((960, 960, 3), 245, dtype=np.uint8)
    rows, columns = np.mgrid[:960, :960]
    for y, x in ((500, 300), (506, 307), (498, 309)):  # three nuclei of 7 um
        image[np.hypot(rows - y, columns - x) < 3.5] = (70, 40, 120)
    path = tmp_path / "sparse.png"
    Image.fromarray(image).save(path)
    reader = SlideReader(path, 0.972)
    grid = PatchGrid(960, 960, 0.972)
    squares = grid.squares_with(tissue_mask(reader, grid))
    assert squares[500 // 32, 300 // 32]
    assert squares.sum() <= 2


def test_a_reader_is_not_shared_between_processes(slide: Path) -> None:
    grid = PatchGrid(1280, 1280, 0.243)
    squares = np.zeros((10, 10), dtype=bool)
    squares[3, 4] = squares[5, 7] = True
    regions = SlideRegions(slide, grid, list(grid.regions(squares)), squares)
    batch = regions[0]
    assert batch["square"].tolist() == [34, 57]
    again = pickle.loads(pickle.dumps(regions))
    assert torch.equal(again[0]["image"], batch["image"])
