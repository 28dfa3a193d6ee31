"""Reading slides: scale, levels, regions, and what is refused."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcam_lightning.slides.reader import SlideReader, is_slide
from pcam_lightning.utils.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "slides"


def test_a_pyramid_states_its_scale_and_levels(slide: Path) -> None:
    reader = SlideReader(slide)
    assert reader.mpp == pytest.approx(0.243, abs=1e-6)
    assert (reader.width, reader.height) == (1280, 1280)
    assert [level.downsample for level in reader.levels][:3] == [1, 2, 4]
    assert reader.vendor == "generic-tiff"


def test_the_level_is_the_coarsest_that_is_fine_enough(slide: Path) -> None:
    reader = SlideReader(slide)
    assert reader.level_for(0.972) == 2
    assert reader.level_for(0.9) == 1
    assert reader.level_for(0.1) == 0


def test_a_region_is_what_was_drawn_and_white_beyond_the_border(slide: Path, pixels: np.ndarray) -> None:
    region = SlideReader(slide).read(4 * 80, 4 * 64, 96, 64, 2)
    assert region.shape == (64, 96, 3)
    assert np.abs(region.astype(int) - pixels[64:128, 80:176]).mean() < 6
    beyond = SlideReader(slide).read(-400, -400, 100, 100, 2)
    assert (beyond == 255).all()


def test_a_plain_image_needs_its_scale(plain: Path, pixels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"plain.png: does not state its scale; `mpp`"):
        SlideReader(plain)
    reader = SlideReader(plain, 0.972)
    assert np.array_equal(reader.read(10, 20, 50, 40), pixels[20:60, 10:60])
    beyond = reader.read(300, 310, 40, 40)
    assert np.array_equal(beyond[:10, :20], pixels[310:, 300:])
    assert (beyond[10:] == 255).all()
    assert (beyond[:, 20:] == 255).all()


def test_transparent_pixels_are_glass_and_gray_values_of_16_bits_are_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (SlideReader(tmp_path / "clear.png", 0.5).read(-5, -5, 60, 60) == 255).all()
    Image.fromarray(np.full((40, 40), 40_000, dtype=np.uint16)).save(tmp_path / "gray.png")
    with pytest.raises(UserError, match=r"gray.png: pixels of mode I;16 are no colors of 8 bits"):
        SlideReader(tmp_path / "gray.png", 0.5)


@pytest.mark.parametrize("unit", [2, 3])
def test_a_tiff_without_pyramid_states_its_scale_by_tags(pixels: np.ndarray, tmp_path: Path, unit: int) -> None:
    per_unit = {2: 25_400, 3: 10_000}[unit] / 0.5
    path = tmp_path / "strips.tif"
    Image.fromarray(pixels).save(path, resolution_unit=unit, x_resolution=per_unit, y_resolution=per_unit)
    assert SlideReader(path).mpp == pytest.approx(0.5)


def test_a_tiff_of_72_dpi_states_no_scale(pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "dpi.tif"
    Image.fromarray(pixels).save(path, dpi=(72, 72))
    with pytest.raises(UserError, match="does not state its scale"):
        SlideReader(path)


@pytest.mark.parametrize("mpp", [0.01, 5.0, float("nan")])
def test_a_scale_out_of_range_is_refused(slide: Path, mpp: float) -> None:
    with pytest.raises(UserError, match=r"`mpp` .*: um per pixel should be from 0.05 to 4"):
        SlideReader(slide, mpp)


def test_what_is_no_slide_is_refused(slide: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.svs: no such slide"):
        SlideReader(tmp_path / "missing.svs")
    text = tmp_path / "text.svs"
    text.write_text("no slide")
    with pytest.raises(UserError, match=r"text.svs: not a slide that OpenSlide reads, and not an image"):
        SlideReader(text)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(slide.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"cut.tif: "):
        SlideReader(cut).read(0, 0, 1280, 1280)
    assert not is_slide(text)
    assert is_slide(slide)


def test_a_damaged_region_is_named(slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.tif"
    shutil.copyfile(slide, path)
    with path.open("r+b") as file:
        file.seek(2000)
        file.write(bytes(60_000))
    with pytest.raises(UserError, match=r"damaged.tif: "):
        SlideReader(path).read(0, 0, 1280, 1280)


def test_a_level_of_another_size_than_it_states_is_named(slide: Path, tmp_path: Path) -> None:
    content = bytearray(slide.read_bytes())
    directory = struct.unpack_from("<I", content, 4)[0]
    entries = struct.unpack_from("<H", content, directory)[0]
    second = struct.unpack_from("<I", content, directory + 2 + 12 * entries)[0]
    tags = {struct.unpack_from("<H", content, at)[0]: at for at in range(second + 2, second + 2 + 12 * entries, 12)}
    struct.pack_into("<H", content, tags[256] + 8, 5)  # its width
    path = tmp_path / "lies.tif"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"lies.tif: level \d has 5 x 640 pixels, which is not level 0 \(1,280 x 1,280\)"
    ):
        SlideReader(path)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/slides")
def test_real_slides() -> None:
    reader = SlideReader(REAL / "CMU-1-Small-Region.svs")
    assert (reader.width, reader.height, reader.vendor) == (2220, 2967, "aperio")
    assert reader.mpp == pytest.approx(0.499)
    with pytest.raises(UserError, match="does not state its scale"):
        SlideReader(REAL / "tcga-no-mpp.svs")
    assert len(SlideReader(REAL / "tcga-no-mpp.svs", 0.25).levels) == 2
