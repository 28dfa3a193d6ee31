"""Which files are slides, which belong to one, and what identifies its content."""

import os
import re
import shutil
from pathlib import Path

import pytest

from pcam_lightning.cli.main import main
from pcam_lightning.slides.slide_files import companions, content_sha256, dates, find_slides

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
    assert last.startswith("error: 5 of 6 slides could not be predicted; the first: ")
    assert all(f"{folder / name}" in last for name in names[:5])
    assert "empty.ndpi: is empty" in error
    assert f"other.vsi: OpenSlide does not read this .vsi. {hint}" in error
    assert re.search(rf"some.czi: cannot be read as a slide \(.*\). {hint}", error)
    assert f"alone.mrxs: its folder {folder / 'alone'} is missing" in error
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
    before, stamps = content_sha256(path), dates(path)
    shutil.copytree(tmp_path, tmp_path.parent / "copy", ignore=shutil.ignore_patterns("work"))
    assert content_sha256(tmp_path.parent / "copy" / "a.mrxs") == before
    data.write_bytes(b"others")
    os.utime(data, ns=(stamps[1], stamps[1]))
    assert dates(path) == stamps
    assert content_sha256(path) != before


def test_of_a_large_file_blocks_are_read(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcam_lightning.slides.slide_files._WHOLE", 1000)
    monkeypatch.setattr("pcam_lightning.slides.slide_files._BLOCK", 100)
    path = tmp_path / "a.tif"
    content = bytearray(slide.read_bytes())
    path.write_bytes(content)
    before = content_sha256(path)
    assert content_sha256(path) == before
    content[-50] ^= 1  # within the last block
    path.write_bytes(content)
    assert content_sha256(path) != before
