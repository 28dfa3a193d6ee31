"""Slide files: finding them, their companions, and hashes of their content."""

import os
import re
import shutil
from pathlib import Path

import openslide
import pandas as pd
import pytest

from pcam_lightning.cli.main import main
from pcam_lightning.slides.slide_files import companions, content_sha256, dates, find_slides
from pcam_lightning.utils.errors import UserError

ARGS = ("--accelerator=cpu", "--precision=32-true", "--num_workers=0", "--ckpt_path=pcam-small", "--stride=96")


def test_what_cannot_be_opened_counts_as_failed(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "slides"
    hint = "Convert it to a pyramidal TIFF, with QuPath"
    for name in ("0a-uuid", "logs", ".hidden"):
        (folder / name).mkdir(parents=True)
    shutil.copyfile(slide, folder / "0a-uuid" / "good.tif")
    content = slide.read_bytes()
    (folder / "half.svs").write_bytes(content[: len(content) // 2])
    (folder / "empty.ndpi").touch()
    (folder / "other.vsi").write_bytes(b"a stub beside a folder")
    (folder / "some.czi").write_bytes(b"ZISRAWFILE" + bytes(100))  # which OpenSlide knows by its first bytes
    (folder / "alone.mrxs").write_bytes(content[:1000])
    (folder / "logs" / "annotations.txt").write_text("no slide")
    (folder / "._good.tif").write_bytes(b"left by macOS")
    (folder / ".hidden" / "good.tif").write_bytes(content)
    names = [path.name for path in find_slides(folder)]
    assert names == ["alone.mrxs", "empty.ndpi", "half.svs", "other.vsi", "some.czi", "good.tif"]
    assert main(["heatmap", str(folder), *ARGS, f"--output={folder / 'maps'}"]) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: 5 of 6 slides could not be predicted. First error: ")
    assert all(f"{folder / name}" in last for name in names[:5])
    assert "empty.ndpi: the file is empty" in error
    assert f"other.vsi: OpenSlide cannot read this .vsi file. {hint}" in error
    assert re.search(rf"some.czi: cannot be read as a slide \(.*\). {hint}", error)
    assert f"alone.mrxs: the folder with its pixels, {folder / 'alone'}, is missing" in error
    assert [path.name for path in find_slides(folder)] == names  # the results' pictures are no slides


def test_the_parts_of_a_slide_are_no_slides(slide: Path, tmp_path: Path) -> None:
    for name in ("mirax.mrxs", "scan(0,1).jpg", "scan_map2.jpg", "photo.jpg"):
        shutil.copyfile(slide, tmp_path / name)
    (tmp_path / "mirax").mkdir()
    (tmp_path / "mirax" / "Data0000.dat").write_bytes(b"pixels")
    (tmp_path / "mirax" / "thumbnail.jpg").write_bytes(b"pixels")
    (tmp_path / "scan.vms").write_text("ImageFile=scan(0,1).jpg\nMapFile=scan_map2.jpg\n")
    assert [path.name for path in find_slides(tmp_path)] == ["mirax.mrxs", "photo.jpg", "scan.vms"]
    assert [path.name for path in companions(tmp_path / "scan.vms")] == ["scan(0,1).jpg", "scan_map2.jpg"]


def test_content_is_that_of_all_files_wherever_they_lie(slide: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "a.mrxs", tmp_path / "a" / "Data0000.dat"
    data.parent.mkdir()
    shutil.copyfile(slide, path)
    data.write_bytes(b"pixels")
    before, stamp = content_sha256(path), data.stat().st_mtime_ns
    shutil.copytree(tmp_path, tmp_path.parent / "copy", ignore=shutil.ignore_patterns("work"))
    assert content_sha256(tmp_path.parent / "copy" / "a.mrxs") == before
    data.write_bytes(b"others")
    os.utime(data, ns=(stamp, stamp))
    assert content_sha256(path) != before
    assert dates(path) == []  # of what is read whole they say nothing


def test_of_a_large_file_blocks_are_read(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcam_lightning.slides.slide_files._WHOLE", 1000)
    monkeypatch.setattr("pcam_lightning.slides.slide_files._BLOCK", 100)
    path = tmp_path / "a.tif"
    content = bytearray(slide.read_bytes())
    path.write_bytes(content)
    before = content_sha256(path)
    assert content_sha256(path) == before
    assert dates(path) == [path.stat().st_mtime_ns]
    content[-50] ^= 1  # within the last block
    path.write_bytes(content)
    assert content_sha256(path) != before


def test_folders_of_results_and_linked_ones_are_searched(slide: Path, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "slides", tmp_path / "elsewhere"
    for place in (folder / "a", elsewhere):
        place.mkdir(parents=True)
        shutil.copyfile(slide, place / f"{place.name}.tif")
    for name in ("tissue.png", "overlay.png", "heatmap.tif"):  # of `heatmap`, with its output beside the slide
        (folder / "a" / name).touch()
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(folder)
    assert [path.name for path in find_slides(folder)] == ["a.tif", "elsewhere.tif"]


def test_a_damaged_series_counts_for_itself(slide: Path, tmp_path: Path) -> None:
    shutil.copyfile(slide, tmp_path / "good.tif")
    # Explicit VR: the class of whole-slide images, by which OpenSlide knows a file, and nothing after it.
    uid = b"1.2.840.10008.5.1.4.1.1.77.1.6"
    syntax = b"1.2.840.10008.1.2.4.50"
    meta = b"".join(
        b"\x02\x00" + tag + b"UI" + len(value).to_bytes(2, "little") + value
        for tag, value in ((b"\x02\x00", uid), (b"\x10\x00", syntax))
    )
    head = b"\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little")
    (tmp_path / "half.dcm").write_bytes(bytes(128) + b"DICM" + head + meta)
    assert openslide.OpenSlide.detect_format(tmp_path / "half.dcm") == "dicom"
    assert [path.name for path in find_slides(tmp_path)] == ["good.tif", "half.dcm"]
    assert companions(tmp_path / "half.dcm") == []
    with pytest.raises(UserError, match=r"half.dcm: cannot be read as a slide"):
        content_sha256(tmp_path / "half.dcm")


def test_a_slide_that_fails_leaves_the_table(slide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copyfile(slide, folder / name)
    assert main(["heatmap", str(folder), *ARGS]) == 0
    (folder / "b.tif").write_bytes(slide.read_bytes()[:5000])
    assert main(["heatmap", str(folder), *ARGS]) == 2
    assert pd.read_csv("heatmaps/slides.csv")["slide"].tolist() == [str(folder / "a.tif")]
