"""Heat maps of slides: the logits are those of the patches, what is written, resuming, and errors."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pandas as pd
import pytest
import torch
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.models.patch_network import PatchNetwork
from pcam_lightning.slides import slide_network
from pcam_lightning.slides.correction import prior_shift
from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.slides.many_slides import heatmap, list_slides
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.predict_slide import FILES, SlideResult, predict_slide
from pcam_lightning.slides.region_predictor import write_logits
from pcam_lightning.slides.saved_heat_map import SavedHeatMap
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.training.feature_distance import find_feature_distance
from pcam_lightning.training.loaded_run import LoadedRun, load_pretrained
from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.system import supported_precision

CPU = {"accelerator": "cpu", "precision": "32-true", "num_workers": 0}
ARGS = ("--accelerator=cpu", "--precision=32-true", "--num_workers=0", "--ckpt_path=pcam-small")
WRITTEN = {*FILES, "lesions.csv", "slide.json", "logits.npz"}


@pytest.fixture(scope="module")
def result(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> SlideResult:
    """The slide's heat map by pcam-small."""
    return predict_slide(str(slide), "pcam-small", tmp_path_factory.mktemp("heatmap"), **CPU)


def test_logits_are_those_of_the_patches(slide: Path, result: SlideResult) -> None:
    assert np.array_equal(np.isnan(result.heat_map.logit), ~_tissue())
    network, reader = load_pretrained("pcam-small"), SlideReader(slide)
    network.fold()
    for row, column in ((2, 3), (4, 5), (6, 7)):
        patch = reader.read((column * 32 - 32) * 4, (row * 32 - 32) * 4, 96, 96, 2)
        with torch.no_grad():
            logit = network.predict_logits(torch.from_numpy(patch.copy())[None], folded=True)
        assert result.heat_map.logit[row, column] == pytest.approx(float(logit), abs=1e-5)


def _tissue() -> np.ndarray:
    squares = np.zeros((10, 10), dtype=bool)
    squares[2:7, 3:8] = True
    return squares


def test_the_files_agree_with_each_other(slide: Path, result: SlideResult) -> None:
    folder, heat_map = result.folder, result.heat_map
    assert {path.name for path in folder.iterdir()} == WRITTEN
    patches = pd.read_csv(folder / "patches.csv")
    assert list(patches) == ["minx", "miny", "width", "height", "prob_tumor", "ood_distance", "ood"]
    assert len(patches) == 25
    assert heat_map.ood_distance is not None
    assert patches["ood_distance"].to_numpy() == pytest.approx(heat_map.ood_distance[_tissue()])
    assert patches["ood"].tolist() == (patches["ood_distance"] > heat_map.ood_threshold).astype(int).tolist()
    assert patches.iloc[0][["minx", "miny", "width", "height"]].tolist() == [2 * 128, 128, 384, 384]
    assert patches["prob_tumor"].to_numpy() == pytest.approx(heat_map.prob[_tissue()])
    summary = json.loads((folder / "slide.json").read_text())
    assert summary == result.summary
    assert summary["ood_mm2"] == pytest.approx(patches["ood"].sum() * heat_map.grid.square_mm2)
    assert summary["tissue_mm2"] == pytest.approx(25 * (32 * 0.972e-3) ** 2, rel=1e-3)
    assert summary["network"]["ckpt_path"] == "pcam-small"
    assert "threshold chosen on patches" in summary["caution"]
    assert Image.open(folder / "overlay.png").size == (1280, 1280)
    assert Image.open(folder / "tissue.png").size == (40, 40)


def test_tissue_out_of_distribution_is_loud_everywhere(slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "100 % of the tissue is out of distribution: do not use this score."
    for _ in range(2):  # also where the slide is finished already
        assert main(["heatmap", str(slide), *ARGS, "--stride=96"]) == 0
        error = capsys.readouterr().err
        assert f"warning: {slide}: {message}" in error
        assert "(do not use it)" in error
        assert "100 % of it out of distribution" in error
    folder = Path("heatmaps") / slide.stem
    assert json.loads((folder / "slide.json").read_text())["ood_fraction"] == 1
    assert pd.read_csv("heatmaps/slides.csv")["ood_fraction"].tolist() == [1]
    for page in (folder / "heatmap.html", Path("heatmaps/index.html")):
        assert message in page.read_text()


def test_the_tiff_lies_over_the_slide(result: SlideResult) -> None:
    tiff = openslide.OpenSlide(result.folder / "heatmap.tif")
    assert tiff.dimensions == (10, 10)
    assert float(tiff.properties["openslide.mpp-x"]) == pytest.approx(128 * 0.243, rel=1e-4)
    pixels = np.asarray(tiff.read_region((0, 0), 0, (10, 10)))[..., 0]
    assert np.abs(pixels - np.nan_to_num(255 * result.heat_map.prob)).max() <= 0.5 + 1e-6


def test_qupath_objects_are_tiles_and_outlines(result: SlideResult) -> None:
    content = json.loads((result.folder / "heatmap.geojson").read_text())
    tiles = [one for one in content["features"] if one["properties"]["objectType"] == "tile"]
    outlines = [one for one in content["features"] if one["properties"]["objectType"] == "annotation"]
    assert len(tiles) == 25
    corner = np.array(tiles[0]["geometry"]["coordinates"][0])
    assert (corner.min(0).tolist(), corner.max(0).tolist()) == ([384, 256], [512, 384])
    assert tiles[0]["properties"]["measurements"]["prob_tumor"] == pytest.approx(result.heat_map.prob[2, 3], abs=1e-6)
    assert bool(outlines) == bool((result.heat_map.prob >= 0.5).any())


def heat_map(logit: np.ndarray, **correction: float) -> HeatMap:
    return HeatMap(
        PatchGrid(logit.shape[1] * 128, logit.shape[0] * 128, 0.243),
        logit.astype(np.float32),
        correction.get("scale", 1.0),
        correction.get("shift", 0.0),
    )


def test_lesions_are_groups_of_adjacent_squares() -> None:
    logit = np.full((8, 8), -5.0)
    logit[1, 1], logit[2, 2] = 1.0, 2.0  # diagonal: one group
    logit[6, 5:7] = 3.0, 0.5
    logit[5] = np.nan
    table = heat_map(logit).lesions(0.5)
    assert table["confidence"].tolist() == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-2))])
    assert table[["x", "y"]].to_numpy().tolist() == [[5 * 128 + 64, 6 * 128 + 64], [2 * 128 + 64, 2 * 128 + 64]]
    assert table["area_mm2"].to_numpy() == pytest.approx([2 * 0.031104**2] * 2)
    assert heat_map(logit).lesions(0.99).empty


def test_a_slide_scores_its_best_neighborhood_not_its_best_square() -> None:
    single, group = np.full((9, 9), -9.0), np.full((9, 9), -9.0)
    single[4, 4] = 9.0
    group[3:6, 3:6] = 2.0
    assert heat_map(single).score == pytest.approx(1 / 9, abs=1e-3)
    assert heat_map(group).score == pytest.approx(1 / (1 + np.exp(-2)))
    lone = np.full((9, 9), np.nan)  # what was not predicted counts as 0
    lone[4, 4] = 9.0
    assert heat_map(lone).score == pytest.approx(1 / 9, abs=1e-3)


def test_a_prior_corrects_probabilities() -> None:
    assert prior_shift(0.4, 0.4) == 0
    # By Bayes: a likelihood ratio of 9, at 2 % instead of 50 %.
    shifted = heat_map(np.full((1, 1), np.log(9.0)), shift=prior_shift(0.02, 0.5)).prob[0, 0]
    assert shifted == pytest.approx(9 * 0.02 / (9 * 0.02 + 0.98))


def test_a_prior_is_given_on_the_command_line(slide: Path, result: SlideResult) -> None:
    assert main(["heatmap", str(slide), *ARGS, "--prior=0.02", "--output=maps"]) == 0
    folder = Path("maps") / slide.stem
    summary = json.loads((folder / "slide.json").read_text())
    fraction = summary["network"]["positive_fraction"]
    assert 0.4 < fraction < 0.6
    assert summary["network"]["caution"].startswith("trained on JPEG copies")
    assert summary["correction"] == {"scale": 1, "shift": pytest.approx(prior_shift(0.02, fraction))}
    before = result.heat_map.prob[_tissue()]
    after = pd.read_csv(folder / "patches.csv")["prob_tumor"].to_numpy()
    odds = after / (1 - after) / (before / (1 - before))
    assert odds == pytest.approx(np.exp(summary["correction"]["shift"]), rel=1e-3)
    assert pd.read_csv("maps/slides.csv")["slide"].tolist() == [str(slide)]


def test_a_calibration_file_corrects_probabilities(
    slide: Path, result: SlideResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "map", tmp_path / "calibration.json"
    shutil.copytree(result.folder, folder)
    network = {"sha256": result.summary["network"]["sha256"], "tta": "none"}
    content = {"scale": 0.5, "shift": -1.5, "network": network, "stride": 32}
    file.write_text(json.dumps(content))
    other = predict_slide(slide, "pcam-small", folder, calibration=file, **CPU)
    assert other.heat_map.prob[4, 4] == pytest.approx(1 / (1 + np.exp(1.5 - 0.5 * result.heat_map.logit[4, 4])))
    assert json.loads((folder / "slide.json").read_text())["options"]["calibration"] == str(file)
    for change, message in (
        ({"stride": 96}, "fitted with --stride 96, not 32"),
        ({"network": network | {"tta": "d4"}}, "fitted with --tta d4, not none"),
        ({"network": network | {"sha256": "a"}}, "fitted to another network"),
        ({"scale": -1}, "scale and shift should be finite"),
        ({"shift": float("nan")}, "scale and shift should be finite"),
        ({"stride": None, "network": None}, "not a calibration.json of evaluate-slides"),
    ):
        file.write_text(json.dumps(content | change))
        assert main(["heatmap", str(slide), *ARGS, f"--calibration={file}"]) == 2
        assert f"error: {file}: {message}" in capsys.readouterr().err
    assert main(["heatmap", str(slide), *ARGS, f"--calibration={file}", "--prior=0.1"]) == 2
    assert "--prior, --calibration: only one of them" in capsys.readouterr().err


def _count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    before = PatchNetwork.predict_logits

    def counted(self: PatchNetwork, image: torch.Tensor, **more: Any) -> torch.Tensor:
        counts.append(len(image))
        return before(self, image, **more)

    monkeypatch.setattr(PatchNetwork, "predict_logits", counted)
    return counts


def test_nothing_is_predicted_twice(
    slide: Path, result: SlideResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "map"
    shutil.copytree(result.folder, folder)
    counts = _count(monkeypatch)
    stamp = (folder / "slide.json").stat().st_mtime_ns
    again = predict_slide(slide, "pcam-small", folder, **CPU)
    assert not counts
    assert again.summary == result.summary
    assert (folder / "slide.json").stat().st_mtime_ns == stamp
    other = predict_slide(slide, "pcam-small", folder, threshold=0.9, **CPU)  # written anew from the same logits
    assert not counts
    assert other.summary["options"]["threshold"] == 0.9
    predict_slide(slide, "pcam-small", folder, tta="d4", **CPU)
    assert sum(counts) == 25


def test_regions_of_interest_are_predicted_alone(
    slide: Path,
    result: SlideResult,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write(left: int, right: int) -> Path:
        ring = [[left, 0], [right, 0], [right, 1280], [left, 1280], [left, 0]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        path = tmp_path / "regions" / f"{slide.stem}.geojson"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([{"type": "Feature", "geometry": geometry, "properties": None}]))
        return path

    shutil.copytree(result.folder, "map")
    counts = _count(monkeypatch)
    first = predict_slide(slide, "pcam-small", "map", regions=write(0, 500), **CPU)  # the centers of column 3
    assert not counts  # all are known
    assert np.argwhere(~np.isnan(first.heat_map.logit)).tolist() == [[row, 3] for row in range(2, 7)]
    second = predict_slide(slide, "pcam-small", "map", regions=write(0, 700), **CPU)
    assert sum(counts) == 5  # column 4 alone
    assert second.heat_map.logit[:, :5] == pytest.approx(result.heat_map.logit[:, :5], abs=1e-4, nan_ok=True)
    assert second.summary["regions"] != first.summary["regions"]
    again = predict_slide(slide, "pcam-small", "map", regions=write(0, 700), **CPU)
    assert again.summary == second.summary
    with pytest.raises(UserError, match=r"tumor_001.geojson: contains no tissue of .*tumor_001.tif"):
        predict_slide(slide, "pcam-small", "map", regions=write(0, 300), **CPU)
    other = tmp_path / "other.tif"
    shutil.copyfile(slide, other)
    args = ["heatmap", str(slide), str(other), *ARGS]
    assert main([*args, f"--regions={write(0, 500)}"]) == 2
    assert "tumor_001.geojson: one file for 2 slides; pass a folder of files" in capsys.readouterr().err
    (tmp_path / "regions" / "third.xml").touch()
    assert main([*args, f"--regions={tmp_path / 'regions'}"]) == 2
    error = capsys.readouterr().err
    assert "regions: these annotation files match none of the slides: third.xml" in error
    assert "regions: no file for other.tif. Add other.geojson or other.xml" in error
    assert pd.read_csv("heatmaps/slides.csv")["folder"].tolist() == [f"heatmaps/{slide.stem}"]


def test_an_interrupted_slide_is_resumed(
    slide: Path, result: SlideResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pcam_lightning.slides.patch_grid.BLOCK", 4)  # several regions
    folder = tmp_path / "map"
    before = PatchNetwork.predict_logits
    calls = 0

    def stopping(self: PatchNetwork, image: torch.Tensor, **more: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return before(self, image, **more)

    monkeypatch.setattr(PatchNetwork, "predict_logits", stopping)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predict_slide(slide, "pcam-small", folder, **CPU)
    monkeypatch.setattr(PatchNetwork, "predict_logits", before)
    assert not (folder / "slide.json").exists()
    counts = _count(monkeypatch)
    again = predict_slide(slide, "pcam-small", folder, **CPU)
    assert 0 < sum(counts) < 25
    assert again.heat_map.logit == pytest.approx(result.heat_map.logit, abs=1e-4, nan_ok=True)
    assert again.heat_map.ood_distance == pytest.approx(result.heat_map.ood_distance, abs=1e-4, nan_ok=True)
    assert again.heat_map.ood_distance is not None
    assert not np.isnan(again.heat_map.ood_distance[_tissue()]).any()
    assert {path.name for path in folder.iterdir()} == WRITTEN


def test_worker_processes_read_the_same(slide: Path, result: SlideResult, tmp_path: Path) -> None:
    options = {**CPU, "num_workers": 1}
    other = predict_slide(slide, "pcam-small", tmp_path / "map", **options)
    assert np.array_equal(other.heat_map.logit, result.heat_map.logit, equal_nan=True)


def test_empty_glass_is_an_error_that_names_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (200, 200), (245, 245, 245)).save(tmp_path / "glass.png")
    assert main(["heatmap", str(tmp_path / "glass.png"), *ARGS, "--mpp=0.972"]) == 2
    assert "glass.png: no tissue found, see heatmaps/glass/tissue.png. Set --tissue none" in capsys.readouterr().err
    assert Path("heatmaps/glass/tissue.png").is_file()
    assert not Path("heatmaps/glass/slide.json").exists()
    assert main(["heatmap", str(tmp_path / "glass.png"), *ARGS, "--mpp=0.972", "--tissue=none", "--stride=96"]) == 0
    assert len(pd.read_csv("heatmaps/glass/patches.csv")) == 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stride=48"], "--stride 48: should be a multiple of 32"),
        (["--threshold=1"], "--threshold 1.0: should be more than 0 and less than 1"),
        (["--prior=0"], "--prior 0.0: should be more than 0"),
        (["--batch_size=0"], "--batch_size 0"),
        (["--mpp=9"], "--mpp 9: um per pixel should be from 0.05 to 4"),
        (["--ckpt_path=none.ckpt"], "none.ckpt"),
        (["--accelerator=gpux"], "--accelerator"),
        (["--tissue=some"], "tissue"),
    ],
)
def test_wrong_options_are_one_line(
    slide: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heatmap", str(slide), "--accelerator=cpu", "--ckpt_path=pcam-small", *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_a_slide_that_fails_does_not_stop_the_others(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copyfile(slide, folder / "good.tif")
    (folder / "bad.tif").write_bytes(b"II*\0 no slide")
    (folder / "notes.txt").write_text("no slide")
    assert main(["heatmap", str(folder), *ARGS, "--stride=96"]) == 2
    error = capsys.readouterr().err
    assert "error: 1 of 2 slides could not be predicted. First error: " in error
    assert pd.read_csv("heatmaps/slides.csv")["folder"].tolist() == ["heatmaps/good"]


def test_slides_csv_has_all_slides_of_the_folder(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.tif"
    shutil.copyfile(slide, other)
    for path in (slide, other):
        assert main(["heatmap", str(path), *ARGS, "--stride=96"]) == 0
    assert pd.read_csv("heatmaps/slides.csv")["slide"].tolist() == [str(other), str(slide)]
    assert capsys.readouterr().err.count(": score ") == 2  # each command reports its own
    twin = tmp_path / "twin" / "other.tif"
    twin.parent.mkdir()
    shutil.copyfile(slide, twin)
    assert main(["heatmap", str(twin), *ARGS, "--stride=96"]) == 2
    assert f"heatmaps/other: contains the results of {other}; choose another --output folder" in capsys.readouterr().err


def test_results_name_their_slide_from_anywhere(
    slide: Path, result: SlideResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
    shutil.copyfile(slide, here / "a.tif")
    Image.new("RGB", (200, 200), (150, 90, 160)).save(there / "a.tif")
    monkeypatch.chdir(here)
    first = predict_slide("a.tif", "pcam-small", "../maps/a", stride=96, **CPU)
    assert first.summary["slide"] == str(here / "a.tif")
    monkeypatch.chdir(there)
    with pytest.raises(UserError, match=f"contains the results of {here / 'a.tif'}; choose another `output` folder"):
        predict_slide("a.tif", "pcam-small", "../maps/a", mpp=0.972, **CPU)
    (here / "a.tif").rename(here / "b.tif")
    with pytest.raises(UserError, match=f"contains the results of {here / 'a.tif'}"):
        predict_slide("a.tif", "pcam-small", "../maps/a", mpp=0.972, **CPU)
    counts = _count(monkeypatch)
    moved = predict_slide(here / "b.tif", "pcam-small", "../maps/a", stride=96, **CPU)  # the same slide
    assert not counts
    assert moved.summary["slide"] == str(here / "b.tif")
    shutil.copyfile(here / "b.tif", here / "c.tif")
    Image.new("RGB", (200, 200), (150, 90, 160)).save(here / "b.tif")  # another slide takes its place
    moved = predict_slide(here / "c.tif", "pcam-small", "../maps/a", stride=96, **CPU)
    assert moved.summary["slide"] == str(here / "c.tif")
    assert not counts
    SavedHeatMap.read(Path("../maps/a")).check_slide()


def test_what_a_result_depends_on_is_predicted_anew(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder, options = tmp_path / "a.bmp", tmp_path / "map", {**CPU, "mpp": 0.972, "stride": 96}
    Image.fromarray(pixels).save(path)
    stamp = path.stat().st_mtime_ns
    counts = _count(monkeypatch)
    first = predict_slide(path, "pcam-small", folder, **options)
    Image.fromarray(np.ascontiguousarray(pixels[::-1])).save(path)  # other content of the same size and date
    os.utime(path, ns=(stamp, stamp))
    second = predict_slide(path, "pcam-small", folder, **options)
    assert not np.array_equal(first.heat_map.logit, second.heat_map.logit, equal_nan=True)
    measured = find_feature_distance(LoadedRun.open("pcam-small"))
    assert measured is not None
    for changed in (replace(measured, mean=measured.mean + 1), replace(measured, threshold=0.0)):
        monkeypatch.setattr(slide_network, "find_feature_distance", lambda _, changed=changed: changed)
        before = second
        second = predict_slide(path, "pcam-small", folder, **options)
        assert second.heat_map.ood_distance is not None
        assert before.summary["key"] != second.summary["key"]
    assert second.heat_map.ood is not None
    assert second.heat_map.ood.sum() == second.summary["squares"]
    used = supported_precision("cpu", "16-mixed")
    third = predict_slide(path, "pcam-small", folder, **options | {"precision": "16-mixed"})
    assert third.summary["options"]["precision"] == used != "16-mixed"
    counts.clear()
    predict_slide(path, "pcam-small", folder, **options | {"precision": used})  # as what was asked for is used here
    assert not counts


def test_logits_that_are_not_numbers_are_an_error(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = PatchNetwork.predict_logits

    def overflowing(self: PatchNetwork, image: torch.Tensor, **more: Any) -> torch.Tensor:
        logit = before(self, image, **more)
        logit[0] = torch.inf
        return logit

    monkeypatch.setattr(PatchNetwork, "predict_logits", overflowing)
    with pytest.raises(UserError, match="1 logits are not finite; try `precision` 32-true"):
        predict_slide(slide, "pcam-small", tmp_path / "map", **CPU)
    assert not (tmp_path / "map" / "slide.json").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_slide_json_is_named(slide: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("heatmaps") / slide.stem / "slide.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert main(["heatmap", str(slide), *ARGS]) == 2
    assert f"error: {file}: damaged" in capsys.readouterr().err


def test_an_error_of_an_earlier_call_is_not_raised_again(slide: Path, result: SlideResult, tmp_path: Path) -> None:
    folder = tmp_path / "map"
    folder.mkdir()
    nothing = np.full((10, 10), np.nan, dtype=np.float32)
    write_logits(folder / "logits_1.npz", nothing, result.summary["key"], "a disk was away")  # of a second process
    again = predict_slide(slide, "pcam-small", folder, **CPU)
    assert np.array_equal(again.heat_map.logit, result.heat_map.logit, equal_nan=True)
    assert {path.name for path in folder.iterdir()} == WRITTEN


def test_a_damaged_region_is_an_error_from_worker_processes_too(slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.tif"
    shutil.copyfile(slide, path)
    with openslide.OpenSlide(path) as whole:
        assert whole.level_dimensions[2] == (320, 320)
    with path.open("r+b") as file:
        file.seek(2000)
        file.write(bytes(len(slide.read_bytes()) - 20_000))
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"damaged.tif: (damaged at|cannot be read|neither OpenSlide nor Pillow)"):
            predict_slide(path, "pcam-small", tmp_path / "map", **{**CPU, "num_workers": workers})


def test_slides_are_listed(slide: Path, tmp_path: Path) -> None:
    assert list_slides([slide.parent]) == [slide]
    with pytest.raises(UserError, match="contains no slide"):
        list_slides([tmp_path])
    other = tmp_path / f"{slide.stem}.png"
    with pytest.raises(UserError, match="both would write to the same results folder"):
        list_slides([slide, other])
    with pytest.raises(UserError, match="no such slide"):
        heatmap([tmp_path / "missing.svs"], "pcam-small", tmp_path / "out", **CPU)


def test_every_square_of_tissue_has_one_value(result: SlideResult) -> None:
    grid, painted = result.heat_map.grid, np.zeros((1280, 1280), dtype=int)
    table = pd.read_csv(result.folder / "patches.csv")
    side = (table["width"] - grid.center) // 2
    for x, y in zip(table["minx"] + side, table["miny"] + side, strict=True):
        painted[y : y + grid.center, x : x + grid.center] += 1
    expected = np.kron(_tissue().astype(int), np.ones((128, 128), dtype=int))
    assert np.array_equal(painted, expected)


@pytest.mark.parametrize("mpp", [0.226, 0.25, 0.499, 1.0])
def test_the_scale_of_a_slide_hardly_changes_its_map(
    result: SlideResult, pixels: np.ndarray, tmp_path: Path, mpp: float
) -> None:
    """The same tissue at another scale; squares are up to 1.3 % larger or smaller, and resampled."""
    side = round(320 * 0.972 / mpp)
    path = tmp_path / "scaled.png"
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(path)
    other = predict_slide(path, "pcam-small", tmp_path / "map", mpp=mpp, **CPU)
    both = ~np.isnan(other.heat_map.logit[:10, :10]) & _tissue()
    assert both.sum() == 25
    difference = np.abs(other.heat_map.prob[:10, :10] - result.heat_map.prob)[both]
    assert difference.mean() < 0.1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.svs", b"no slide"),
        ("empty.tif", b""),
        ("cut.tif", None),
    ],
)
def test_files_that_are_no_slides_are_one_line(
    name: str, content: bytes | None, slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(slide.read_bytes()[:3000] if content is None else content)
    assert main(["heatmap", str(path), *ARGS]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {path}")
    assert not list(Path("heatmaps").glob("*/slide.json"))


def test_one_pixel_is_a_slide_without_tissue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (1, 1), (150, 90, 160)).save(tmp_path / "pixel.png")
    assert main(["heatmap", str(tmp_path / "pixel.png"), *ARGS, "--mpp=0.972"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_an_image_too_large_to_decode_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bomb.png"
    with Image.new("1", (30_000, 20_000)) as image:
        image.save(path)
    assert main(["heatmap", str(path), *ARGS, "--mpp=0.5"]) == 2
    assert "bomb.png: has more than 178,956,970 pixels and no pyramid, too many" in capsys.readouterr().err
    assert not list(Path("heatmaps").glob("*/slide.json"))


def test_a_folder_that_cannot_be_written_is_one_line(slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("a file")
    assert main(["heatmap", str(slide), *ARGS, "--output=taken"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: taken")
