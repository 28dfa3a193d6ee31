"""Reading slides: scale, levels, regions, and what is refused."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image
from written import put_second_level_first, write_tiff

from pcam_lightning.slides.slide_reader import SlideReader
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
    with pytest.raises(UserError, match=r"plain.png: does not state its scale. Set `mpp`"):
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
    with pytest.raises(UserError, match=r"gray.png: has pixels of mode I;16; convert it to 8-bit color"):
        SlideReader(tmp_path / "gray.png", 0.5)


@pytest.mark.parametrize("tile", [False, True], ids=["strips", "tiles"])
def test_pixels_that_decoders_take_wrong_are_refused(pixels: np.ndarray, tmp_path: Path, tile: bool) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, pixels.astype(np.uint16) * 16, tile=tile, mpp=(0.5, 0.5))  # 12 bits in 16
    with pytest.raises(UserError, match=r"a.tif: cannot be read as a slide \(16 bits a channel"):
        SlideReader(path)
    write_tiff(path, pixels, tile=tile, mpp=(0.5, 0.5), orientation=6)
    with pytest.raises(UserError, match=r"a.tif: its Orientation tag \(6\) rotates or mirrors it"):
        SlideReader(path)
    write_tiff(path, pixels, tile=tile, mpp=(0.5, 0.5), orientation=1)
    assert np.array_equal(SlideReader(path).read(0, 0, 320, 320), pixels)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_orientation_tag_is_refused_in_other_formats_too(pixels: np.ndarray, tmp_path: Path, suffix: str) -> None:
    tags = Image.Exif()
    tags[274] = 3
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=tags)
    with pytest.raises(UserError, match=r"its Orientation tag \(3\) rotates or mirrors it"):
        SlideReader(tmp_path / f"a.{suffix}", 0.5)


def test_colors_of_16_bits_are_refused_in_a_png(pixels: np.ndarray, tmp_path: Path) -> None:
    pyvips.Image.new_from_array(pixels.astype(np.uint16) * 16).pngsave(str(tmp_path / "a.png"), bitdepth=16)
    with pytest.raises(UserError, match=r"a.png: has pixels of mode RGB with 16 bits per channel"):
        SlideReader(tmp_path / "a.png", 0.5)


def test_a_first_image_that_is_not_the_largest_is_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    strips, tiles, twice = tmp_path / "strips.tif", tmp_path / "tiles.tif", tmp_path / "twice.tif"
    image = Image.fromarray(pixels)
    image.crop((0, 0, 100, 100)).save(strips, save_all=True, append_images=[image])
    write_tiff(tiles, np.tile(pixels, (2, 2, 1)), tile=True, pyramid=True)
    assert SlideReader(tiles, 0.5).width == 640
    put_second_level_first(tiles)
    for path in (strips, tiles):
        with pytest.raises(UserError, match=r"2 images in one file, \d+ x \d+ pixels first and also (320 x 320|640)"):
            SlideReader(path, 0.5)
    image.save(twice, save_all=True, append_images=[image])  # a stack: which of them?
    with pytest.raises(UserError, match="save the one to read as a file of its own"):
        SlideReader(twice, 0.5)
    image.save(twice, save_all=True, append_images=[image.resize((160, 160))])
    assert SlideReader(twice, 0.5).width == 320


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
    with pytest.raises(UserError, match=r"text.svs: neither OpenSlide nor Pillow can read this file"):
        SlideReader(text)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(slide.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"cut.tif: "):
        SlideReader(cut).read(0, 0, 1280, 1280)


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
        UserError, match=r"lies.tif: level \d has 5 x 640 pixels, which does not match level 0 \(1,280 x 1,280\)"
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
