"""Mining false positives: which squares, which pixels, and training on them."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from conftest import FAST
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.slides.hard_negatives import false_positives, mine_negatives
from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.predict_slide import predict_slide
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.utils.errors import UserError

CPU = {"accelerator": "cpu", "precision": "32-true", "num_workers": 0}


@pytest.fixture(scope="module")
def heatmaps(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slide's heat map by pcam-small, in a folder of heat maps."""
    folder = tmp_path_factory.mktemp("heatmaps")
    predict_slide(slide, "pcam-small", folder / slide.stem, **CPU)
    return folder


@pytest.fixture
def reference(slide: Path, tmp_path: Path) -> Path:
    path = tmp_path / "reference.csv"
    path.write_text(f"slide,label\n{slide.stem},0\n")
    return path


def test_patches_are_those_that_the_network_saw(slide: Path, heatmaps: Path, reference: Path) -> None:
    table = mine_negatives(heatmaps, Path("mined"), reference, threshold=0)
    predicted = pd.read_csv(heatmaps / slide.stem / "patches.csv")
    mined = table.sort_values(["miny", "minx"])
    assert len(mined) == 25
    assert mined[["minx", "miny", "prob_tumor"]].to_numpy() == pytest.approx(
        predicted.sort_values(["miny", "minx"])[["minx", "miny", "prob_tumor"]].to_numpy()
    )
    reader = SlideReader(slide)
    for patch_id, x, y in zip(table["id"], table["minx"].tolist(), table["miny"].tolist(), strict=True):
        patch = np.asarray(Image.open(f"mined/train/{patch_id}.tif"))
        assert np.array_equal(patch, reader.read(x, y, 96, 96, 2))
        assert patch_id == hashlib.sha1(patch.tobytes()).hexdigest()
    assert pd.read_csv("mined/train_labels.csv").to_dict("list") == {"id": table["id"].tolist(), "label": [0] * 25}
    assert pd.read_csv("mined/patch_id_wsi.csv")["wsi"].unique().tolist() == [slide.stem]


def test_fit_trains_on_them_too(
    heatmaps: Path, reference: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["mine-negatives", str(heatmaps), "--reference", str(reference), "--threshold=0", "--per_slide=20"]
    assert main(args) == 0
    assert (
        "hard_negatives: 20 false positives in 1 of 1 slides. To train on them, run fit with --data.extra_train"
        in capsys.readouterr().err
    )
    config = str(Path(__file__).parents[2] / "configs" / "base.yaml")
    fit = ["fit", "-c", config, "--data.root", str(drawn), "--trainer.max_epochs=1", *FAST]
    assert main([*fit, "--data.extra_train=hard_negatives"]) == 0
    assert "hard_negatives: 20 patches (0.0% tumor, 1 slide)." in capsys.readouterr().err


def heat_map(logit: np.ndarray) -> HeatMap:
    return HeatMap(PatchGrid(logit.shape[1] * 128, logit.shape[0] * 128, 0.243), logit.astype(np.float32))


def test_false_positives_are_outside_of_all_outlines_and_the_most_probable_first() -> None:
    logit = np.full((10, 10), -5.0)
    logit[2, 2:8] = 1, 2, 3, 4, 5, 6
    logit[8, 8] = np.nan
    tumor = shapely.box(7.5 * 128, 2 * 128, 8 * 128, 3 * 128)  # within the patch of column 6, and in that of 7 and 8
    found = false_positives(heat_map(logit), tumor, 0.5, 10)
    assert np.argwhere(found).tolist() == [[2, 2], [2, 3], [2, 4], [2, 5]]
    found = false_positives(heat_map(logit), tumor, 0.5, 2)
    assert np.argwhere(found).tolist() == [[2, 4], [2, 5]]
    assert not false_positives(heat_map(logit), tumor, 0.999, 2).any()


def test_slides_of_which_nothing_is_known_are_skipped(
    slide: Path, heatmaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    with pytest.raises(UserError, match="annotations: no file matches a slide"):
        mine_negatives(heatmaps, Path("mined"), annotations=annotations, threshold=0)
    other = annotations / "other"
    shutil.copytree(heatmaps, other)
    (other / slide.stem).rename(other / "normal")
    file = other / "normal" / "slide.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"slide": "normal.tif"}))
    shutil.copytree(heatmaps / slide.stem, other / slide.stem)
    (annotations / f"{slide.stem}.geojson").write_text(json.dumps({"features": []}))
    assert len(mine_negatives(other, Path("mined"), annotations=annotations, threshold=0)) == 25
    assert "skipped slides without annotations: 1, starting with normal" in capsys.readouterr().err


def test_tumor_of_another_class_is_not_mined(
    slide: Path, heatmaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"{slide.name}.geojson"
    ring = [[512, 384], [768, 384], [768, 640], [512, 640], [512, 384]]
    feature = {"geometry": {"type": "Polygon", "coordinates": [ring]}}
    content = {"features": [feature | {"properties": {"classification": {"names": ["Tumor", "Positive"]}}}]}
    file.write_text(json.dumps(content))
    args = ["mine-negatives", str(heatmaps), "--output=mined", f"--annotations={tmp_path}", "--threshold=0"]
    assert main(args) == 2
    assert f"{file}: no polygon has a tumor class; classes found: tumor: positive." in capsys.readouterr().err
    assert main([*args, "--tumor_class=Tumor: Positive"]) == 0
    assert "0.00387 mm2 of tumor (tumor: tumor: positive 0.00387)" in capsys.readouterr().err
    assert len(pd.read_csv("mined/mined_patches.csv")) == 9  # of 25; the outline reaches 4 x 4 patches


def test_a_slide_with_metastases_is_not_mined_without_annotations(
    slide: Path, heatmaps: Path, reference: Path, tmp_path: Path
) -> None:
    reference.write_text(f"slide,label\n{slide.stem},1\n")
    with pytest.raises(UserError, match=r"no false positive found at `threshold` 0 \(annotated slides: 0\)"):
        mine_negatives(heatmaps, Path("mined"), reference, threshold=0)
    with pytest.raises(UserError, match=f"no annotation file for {slide.stem}, which has metastases"):
        mine_negatives(heatmaps, Path("mined"), reference, tmp_path, threshold=0)


def test_what_is_missing_is_named_and_nothing_is_left(heatmaps: Path, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`reference`, `annotations`: one of them is required"):
        mine_negatives(heatmaps)
    with pytest.raises(UserError, match=r"`annotations` nowhere: no such folder"):
        mine_negatives(heatmaps, annotations=Path("nowhere"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "a").touch()
    with pytest.raises(UserError, match=r"full exists and is not empty"):
        mine_negatives(heatmaps, full, reference, threshold=0)
    moved = tmp_path / "moved"
    for folder in heatmaps.iterdir():
        (moved / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            text = file.read_bytes()
            if file.name == "slide.json":
                text = json.dumps(json.loads(text) | {"slide": str(tmp_path / f"{folder.name}.tif")}).encode()
            (moved / folder.name / file.name).write_bytes(text)
    with pytest.raises(UserError, match=r"tumor_001.tif: no such slide"):
        mine_negatives(moved, tmp_path / "mined", reference, threshold=0)
    assert not (tmp_path / "mined").exists()
    assert not list(tmp_path.glob(".*"))


def test_another_slide_under_the_same_name_is_not_mined(
    slide: Path, heatmaps: Path, reference: Path, tmp_path: Path
) -> None:
    copy, path = tmp_path / "maps", tmp_path / slide.name
    shutil.copytree(heatmaps, copy)
    shutil.copyfile(slide, path)
    file = copy / slide.stem / "slide.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"slide": str(path)}))
    assert len(mine_negatives(copy, tmp_path / "moved", reference, threshold=0)) == 25  # the same slide elsewhere
    content = bytearray(slide.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{slide.name}: has changed since .*{slide.stem} was predicted"):
        mine_negatives(copy, tmp_path / "mined", reference, threshold=0)
    assert not (tmp_path / "mined").exists()
