"""The scores of slides, and what is known of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pcam_lightning.cli.main import main
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.reference import label_of, read_reference
from pcam_lightning.slides.region_predictor import write_logits
from pcam_lightning.slides.score_slides import evaluate_slides
from pcam_lightning.utils.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "slide,label\na,1\nb.1,0\n",
        "image,type\na.tif,Tumor\nb.1.tif,Normal\n",
        "name,label,stage\na,macro,x\nb.1,negative,y\n",
        "a,Tumor,IDC,Macro\nb.1,Normal,None,None\n",  # CAMELYON16's, without a header
    ],
)
def test_references_in_several_forms(tmp_path: Path, text: str) -> None:
    path = tmp_path / "reference.csv"
    path.write_text(text)
    labels = read_reference(path)
    assert [label_of(labels, Path(f"x/{name}.tif"), path) for name in ("a", "b.1")] == [1, 0]
    with pytest.raises(UserError, match=r"reference.csv: no row for b"):
        label_of(labels, Path("b.tif"), path)


def test_a_reference_without_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.csv"
    path.write_text("slide,label\na,maybe\n")
    with pytest.raises(UserError, match=r"reference.csv, row 2: label 'maybe'"):
        read_reference(path)
    path.write_text("slide,label\na,1\na,0\n")
    with pytest.raises(UserError, match=r"reference.csv, row 3: a has another row above"):
        read_reference(path)
    path.write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match=r"reference.csv: has the columns x,y; expected slide,label"):
        read_reference(path)


def write_heatmap(
    folder: Path, name: str, score: float, detections: list[tuple[float, int, int]], mpp: float = 0.243
) -> None:
    """Write what evaluate_slides reads of a heat map."""
    (folder / name).mkdir(parents=True)
    summary: dict[str, Any] = {"slide": f"slides/{name}.tif", "score": score, "mpp": mpp, "key": "k"}
    summary |= {"geojson_origin": [0, 0], "content_sha256": "c", "ood_fraction": None}
    summary["correction"] = {"scale": 1.0, "shift": 0.0}
    summary |= {"width": 40_000, "height": 40_000, "options": {"stride": 32}, "network": {"sha256": "n", "tta": "none"}}
    rng = np.random.default_rng(0)
    grid = PatchGrid(40_000, 40_000, mpp)
    logit = rng.normal(-2.0, 2.0, (grid.rows, grid.columns)).astype(np.float32)
    if name.startswith("t"):
        logit[78:110, 78:110] += 6  # those that the outline from 10,000 to 14,000 reaches
    write_logits(folder / name / "logits.npz", logit, "k")
    (folder / name / "slide.json").write_text(json.dumps(summary))
    table = pd.DataFrame(detections, columns=["confidence", "x", "y"]).assign(area_mm2=0.1)
    table.to_csv(folder / name / "lesions.csv", index=False)


def outline(left: int, top: int, right: int, bottom: int, name: str | None = "Tumor") -> dict[str, Any]:
    """Return a rectangle as QuPath writes it."""
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    properties = {} if name is None else {"classification": {"name": name}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Heat maps of two slides with a lesion each and two without, and annotations."""
    folder = tmp_path / "annotations"
    folder.mkdir()
    for name in ("t1", "t2"):
        (folder / f"{name}.geojson").write_text(json.dumps({"features": [outline(10_000, 10_000, 14_000, 14_000)]}))
    heatmaps = tmp_path / "heatmaps"
    write_heatmap(heatmaps, "t1", 0.9, [(0.9, 12_000, 12_000), (0.3, 100, 100)])
    write_heatmap(heatmaps, "t2", 0.4, [(0.6, 30_000, 12_000)])
    write_heatmap(heatmaps, "n1", 0.5, [(0.5, 5_000, 5_000)])
    write_heatmap(heatmaps, "n2", 0.1, [])
    return tmp_path


def test_slides_are_scored(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = evaluate_slides(annotated / "heatmaps", annotations=annotated / "annotations", bootstrap_samples=50)
    assert scores.auroc is not None
    assert scores.auroc.value == 0.75
    assert scores.froc is not None
    # One of two lesions is found, before any false positive; the other at none.
    assert scores.froc.value == 0.5
    assert scores.slides.set_index("slide")["false"].to_dict() == {"n1": 1, "n2": 0, "t1": 1, "t2": 1}
    written = json.loads((annotated / "heatmaps" / "slide_scores.json").read_text())
    assert written["froc"]["value"] == 0.5
    (annotated / "r.csv").write_text("slide,label\nt1,1\nt2,1\nn1,0\nn2,0\n")
    args = ["evaluate-slides", str(annotated / "heatmaps"), "--reference", str(annotated / "r.csv")]
    for name in ("t1", "t2", "n1", "n2"):
        file = annotated / "heatmaps" / name / "slide.json"
        summary = json.loads(file.read_text())
        summary |= {"ood_fraction": 0.6 if name == "t1" else 0.4}
        file.write_text(json.dumps(summary | {"network": summary["network"] | {"caution": "trained on copies"}}))
    assert main(args) == 0
    error = capsys.readouterr().err
    assert "AUROC of slides 0.7500" in error
    assert "the network was trained on copies; scores may be optimistic" in error
    assert "most tissue of 1 of 4 slides is out of distribution; do not use their scores. The first is t1" in error


def test_squares_of_annotated_slides_calibrate_others(annotated: Path) -> None:
    evaluate_slides(annotated / "heatmaps", annotations=annotated / "annotations", bootstrap_samples=10)
    written = json.loads((annotated / "heatmaps" / "calibration.json").read_text())
    assert written["squares"] == 4 * 313**2
    tumor = 2 * 32**2
    assert written["tumor"] == pytest.approx(tumor / (4 * 313**2))
    # Two normal distributions of deviation 2, at -2 and 4: by Bayes, log odds of 1.5 (z - 1) + the prior's.
    assert written["scale"] == pytest.approx(1.5, rel=0.05)
    assert written["shift"] == pytest.approx(-1.5 + np.log(tumor / (4 * 313**2 - tumor)), abs=0.3)


def test_heat_maps_that_do_not_compare_are_refused(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heatmaps, annotations, reference = (annotated / name for name in ("heatmaps", "annotations", "r.csv"))
    reference.write_text("slide,label\nt1,1\nt2,1\nn1,0\nn2,0\nn3,0\n")
    evaluate_slides(heatmaps, reference, bootstrap_samples=5)
    assert "warning: 1 of 5 slides in" in capsys.readouterr().err
    file = heatmaps / "n1" / "slide.json"
    plain = json.loads(file.read_text())
    for change, message in (
        ({"network": {"sha256": "m", "tta": "none"}}, "n1.tif and n2.tif have different networks"),
        ({"options": {"stride": 32, "prior": 0.1}}, "n1.tif and n2.tif differ in `prior`"),
        ({"options": {"stride": 32, "regions": "r"}}, "n1.tif and n2.tif differ in `regions`"),
        ({"correction": {"scale": 1.5, "shift": 0.0}}, "n1.tif and n2.tif differ in `calibration`"),
        ({"slide": "other/n2.svs"}, "two heat maps of n2"),
        ({"key": "other"}, "logits.npz: does not belong to"),
        ({"score": None}, "slide.json: damaged"),
    ):
        file.write_text(json.dumps(plain | change))
        with pytest.raises(UserError, match=message):
            evaluate_slides(heatmaps, annotations=annotations)
    file.write_text(json.dumps(plain))
    (annotations / "t1.geojson").write_text('{"features": []}')
    with pytest.raises(UserError, match=r"t1.geojson: no tumor outline, but t1 has metastases"):
        evaluate_slides(heatmaps, reference, annotations)


def test_what_is_missing_is_named(annotated: Path) -> None:
    heatmaps, annotations, reference = (annotated / name for name in ("heatmaps", "annotations", "r.csv"))
    with pytest.raises(UserError, match="`reference`, `annotations`: one of them is required"):
        evaluate_slides(heatmaps)
    with pytest.raises(UserError, match="contains no heat maps"):
        evaluate_slides(annotations, annotations=annotations)
    reference.write_text("slide,label\nt1,1\nt2,1\nn1,0\n")
    with pytest.raises(UserError, match=r"r.csv: no row for n2"):
        evaluate_slides(heatmaps, reference)
    reference.write_text("slide,label\nt1,1\nt2,1\nn1,1\nn2,0\n")
    with pytest.raises(UserError, match="no annotation file for n1, which has metastases"):
        evaluate_slides(heatmaps, reference, annotations)


def test_another_calibration_file_of_the_same_content_is_no_difference(annotated: Path) -> None:
    file = annotated / "heatmaps" / "n1" / "slide.json"
    summary = json.loads(file.read_text())
    summary["options"]["calibration"] = "elsewhere/calibration.json"
    file.write_text(json.dumps(summary))
    evaluate_slides(annotated / "heatmaps", annotations=annotated / "annotations", bootstrap_samples=5)


def test_a_calibration_is_replaced_only_by_a_new_one(annotated: Path) -> None:
    heatmaps, file = annotated / "heatmaps", annotated / "heatmaps" / "calibration.json"
    evaluate_slides(heatmaps, annotations=annotated / "annotations", bootstrap_samples=5)
    before = file.read_bytes()
    assert json.loads(before)["stride"] == 32
    for path in (annotated / "annotations").iterdir():
        path.write_text('{"features": []}')
    evaluate_slides(heatmaps, annotations=annotated / "annotations", bootstrap_samples=5)
    assert file.read_bytes() == before


def test_a_label_for_calibration_is_about_the_center_of_a_patch(tmp_path: Path) -> None:
    heatmaps, annotations = tmp_path / "heatmaps", tmp_path / "annotations"
    write_heatmap(heatmaps, "t1", 0.9, [])
    file = heatmaps / "t1" / "slide.json"
    summary = json.loads(file.read_text())
    summary["options"]["stride"] = 96  # squares of 384 pixels, of which the middle 128 count
    file.write_text(json.dumps(summary))
    logit = np.random.default_rng(0).normal(-2.0, 2.0, (105, 105)).astype(np.float32)
    logit[20:22] += 6
    write_logits(heatmaps / "t1" / "logits.npz", logit, "k")
    annotations.mkdir()
    # From the middle of row 20 to below that of row 21; columns 30 and 31 are reached at their borders alone.
    rows, border = (20 * 384, 21 * 384 + 256), 31 * 384
    features = [outline(0, rows[0], 30 * 384, rows[1]), outline(border - 100, rows[0], border + 100, rows[1])]
    (annotations / "t1.geojson").write_text(json.dumps({"features": features}))
    evaluate_slides(heatmaps, annotations=annotations, bootstrap_samples=5)
    written = json.loads((heatmaps / "calibration.json").read_text())
    assert written["tumor"] == pytest.approx(2 * 30 / 105**2)


def test_outlines_of_another_class_count_on_request(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heatmaps, annotations, reference = (annotated / name for name in ("heatmaps", "annotations", "r.csv"))
    reference.write_text("slide,label\nt1,1\nt2,1\nn1,0\nn2,0\n")
    (annotations / "n1.tif.geojson").write_text(json.dumps([outline(0, 0, 9_000, 9_000, None)]))  # tissue
    (annotations / "t2.geojson").write_text(json.dumps([outline(10_000, 10_000, 14_000, 14_000, "Carcinoma")]))
    args = ["evaluate-slides", str(heatmaps), f"--annotations={annotations}", "--bootstrap_samples=5"]
    assert main(args) == 2
    assert "n1.tif.geojson: no polygon has a tumor class; classes found: no class. Name " in capsys.readouterr().err
    assert main([*args, f"--reference={reference}"]) == 2
    assert "classes found: carcinoma. Name the tumor class in --tumor_class" in capsys.readouterr().err
    assert main([*args, f"--reference={reference}", "--tumor_class=Carcinoma"]) == 0
    error = capsys.readouterr().err
    assert "t1.geojson: 0.9448 mm2 of tumor (tumor: tumor 0.9448)." in error
    assert "t2.geojson: 0.9448 mm2 of tumor (tumor: carcinoma 0.9448)." in error
    assert "n1.tif.geojson: 0 mm2 of tumor (ignored: no class 4.783)." in error
    assert "AUROC of slides 0.7500" in error
    assert main([*args, f"--reference={reference}", "--tumor_class=Carcinoma", "--tumor_class", "none"]) == 0
    assert f"warning: {reference}: n1 has label 0, but " in capsys.readouterr().err


def test_annotations_of_no_slide_are_listed(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heatmaps, annotations = annotated / "heatmaps", annotated / "annotations"
    (annotations / "t1.geojson").rename(annotations / "T1.geojson")
    evaluate_slides(heatmaps, annotations=annotations, bootstrap_samples=5)
    assert "annotations: these annotation files match none of the slides: T1.geojson." in capsys.readouterr().err
    (annotations / "t2.geojson").unlink()
    with pytest.raises(UserError, match="annotations: no file matches a slide"):
        evaluate_slides(heatmaps, annotations=annotations, bootstrap_samples=5)


def test_camelyon16_takes_one_scale_for_all_slides(tmp_path: Path) -> None:
    heatmaps, annotations = tmp_path / "heatmaps", tmp_path / "annotations"
    annotations.mkdir()
    write_heatmap(heatmaps, "t1", 0.9, [(0.9, 12_000, 12_000), (0.8, 16_000, 12_000), (0.25, 5, 7)], mpp=0.226)
    write_heatmap(heatmaps, "n1", 0.1, [])
    # Ten pixels of the mask apart: 72 um at 0.226 um per pixel, and 78 um at 0.243.
    features = [outline(10_240, 10_240, 14_080, 14_080), outline(14_400, 10_240, 18_240, 14_080)]
    (annotations / "t1.geojson").write_text(json.dumps({"features": features}))
    (heatmaps / "camelyon16").mkdir()
    (heatmaps / "camelyon16" / "old.csv").touch()
    official = evaluate_slides(heatmaps, annotations=annotations, bootstrap_samples=5, camelyon16=True)
    ours = evaluate_slides(heatmaps, annotations=annotations, bootstrap_samples=5)
    assert [one.slides.set_index("slide").loc["t1", "lesions"] for one in (ours, official)] == [1, 2]
    files = {path.name: path.read_text() for path in (heatmaps / "camelyon16").iterdir()}
    assert files == {"t1.csv": "0.9,12000,12000\n0.8,16000,12000\n0.25,5,7\n", "n1.csv": ""}
    reference = tmp_path / "r.csv"
    reference.write_text("slide,label\nt1,0\nn1,1\n")
    (annotations / "n1.geojson").write_text(json.dumps({"features": features}))
    scores = evaluate_slides(heatmaps, reference, annotations, 5, camelyon16=True)
    counts = scores.slides.set_index("slide")[["lesions", "false"]].to_dict("index")
    assert counts["t1"] == {"lesions": 0, "false": 3}  # all are false where the reference says normal
