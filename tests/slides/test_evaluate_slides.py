"""Annotations, CAMELYON16's lesions, and the scores of slides."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pcam_lightning.cli.main import main
from pcam_lightning.slides.annotations import lesions, major_axis, read_annotations, tumor_mask
from pcam_lightning.slides.evaluate import evaluate_slides
from pcam_lightning.slides.predictor import write_logits
from pcam_lightning.slides.reference import label_of, read_reference
from pcam_lightning.utils.errors import UserError

ASAP = """<?xml version="1.0"?><ASAP_Annotations><Annotations>
<Annotation Name="a" Type="Polygon" PartOfGroup="_0"><Coordinates>
<Coordinate Order="1" X="800" Y="0" /><Coordinate Order="0" X="0" Y="0" />
<Coordinate Order="2" X="800" Y="800" /><Coordinate Order="3" X="0" Y="800" /></Coordinates></Annotation>
<Annotation Name="b" Type="Polygon" PartOfGroup="_2"><Coordinates>
<Coordinate Order="0" X="200" Y="200" /><Coordinate Order="1" X="400" Y="200" />
<Coordinate Order="2" X="400" Y="400" /><Coordinate Order="3" X="200" Y="400" /></Coordinates></Annotation>
</Annotations></ASAP_Annotations>"""
SQUARE = [[0, 0], [800, 0], [800, 800], [0, 800], [0, 0]]
HOLE = [[200, 200], [400, 200], [400, 400], [200, 400], [200, 200]]
GEOJSON = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [SQUARE, HOLE]},
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
        },
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[900, 0], [950, 0], [950, 50], [900, 0]]]},
            "properties": {"objectType": "tile"},
        },
    ],
}


@pytest.mark.parametrize(("name", "text"), [("a.xml", ASAP), ("a.geojson", json.dumps(GEOJSON))])
def test_outlines_become_a_mask_with_holes(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    mask = tumor_mask(read_annotations(path), 1005, 1000, 10.0)
    expected = np.zeros((100, 101), dtype=bool)  # the last column is half a pixel wide
    expected[:80, :80] = True
    expected[20:40, 20:40] = False
    assert np.array_equal(mask, expected)


def test_an_island_in_a_hole_is_tumor_and_other_classes_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def feature(kind: str, polygons: list[Any], name: str | None) -> dict[str, Any]:
        properties = {} if name is None else {"classification": {"name": name}}
        return {"type": "Feature", "geometry": {"type": kind, "coordinates": polygons}, "properties": properties}

    island = [[250, 250], [350, 250], [350, 350], [250, 350], [250, 250]]
    features = [
        feature("MultiPolygon", [[SQUARE, HOLE], [island]], None),
        feature("Polygon", [[[0, 0], [1000, 0], [1000, 1000], [0, 1000], [0, 0]]], "Tissue"),
        feature("Polygon", [[[0, 0], [100, 0], [100, 800], [0, 800], [0, 0]]], "Normal"),
    ]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(features))
    mask = tumor_mask(read_annotations(path), 1000, 1000, 10.0)
    assert mask[30, 30]
    assert not mask[22, 22]
    assert not mask[50, 5]
    assert mask.sum() == 80 * 70 - 20 * 20 + 10 * 10
    assert "a.geojson: annotations of tissue are not of tumor and are ignored." in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<a/>",
        "{",
        '{"features": [{}]}',
        '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[1]]}}]}',
        "[" * 100_000,
        '<?xml version="1.0" encoding="none"?><ASAP_Annotations/>',
        '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[1], [2], [3]]]}}]}',
        '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[1, 2]]]}}]}',
    ],
)
@pytest.mark.parametrize("suffix", [".xml", ".geojson"])
def test_damaged_annotations_are_named(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken.* neither ASAP's XML nor GeoJSON"):
        read_annotations(path)


def test_lesions_less_than_75_um_apart_are_one_and_small_ones_are_ignored() -> None:
    mpp = 7.776
    mask = np.zeros((200, 200), dtype=bool)
    mask[20:60, 20:40] = mask[20:60, 46:60] = True  # 47 um apart
    mask[20:60, 80:100] = True  # 156 um
    mask[150:155, 150:155] = True  # 39 um, and 114 um when grown
    mask[100:140, 20:60] = True
    mask[115:125, 35:45] = False  # a hole
    label, ignored = lesions(mask, mpp)
    assert len(np.unique(label)) - 1 == 4
    assert label[30, 30] == label[30, 50] != label[30, 90]
    assert label[120, 40] == label[101, 21] != 0
    assert ignored == [label[152, 152]]


def test_the_major_axis_is_that_of_an_ellipse() -> None:
    rows, columns = np.mgrid[:200, :300]
    ellipse = ((rows - 100) / 40) ** 2 + ((columns - 150) / 120) ** 2 <= 1
    assert major_axis(ellipse) == pytest.approx(240, rel=0.01)
    assert major_axis(ellipse.T) == pytest.approx(240, rel=0.01)


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
    with pytest.raises(UserError, match=r"reference.csv: no row of b"):
        label_of(labels, Path("b.tif"), path)


def test_a_reference_without_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.csv"
    path.write_text("slide,label\na,maybe\n")
    with pytest.raises(UserError, match=r"reference.csv, row 2: label 'maybe'"):
        read_reference(path)
    path.write_text("slide,label\na,1\na,0\n")
    with pytest.raises(UserError, match=r"reference.csv, row 3: a stands there twice"):
        read_reference(path)
    path.write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match=r"reference.csv: has the columns x,y; should have slide,label"):
        read_reference(path)


def write_heatmap(folder: Path, name: str, score: float, detections: list[tuple[float, int, int]]) -> None:
    """Write what evaluate_slides reads of a heat map."""
    (folder / name).mkdir(parents=True)
    summary: dict[str, Any] = {"slide": f"slides/{name}.tif", "score": score, "mpp": 0.243, "key": "k"}
    summary["correction"] = {"scale": 1.0, "shift": 0.0}
    summary |= {"width": 40_000, "height": 40_000, "options": {"stride": 32}, "network": {"sha256": "n", "tta": "none"}}
    rng = np.random.default_rng(0)
    logit = rng.normal(-2.0, 2.0, (313, 313)).astype(np.float32)  # squares of 128 pixels
    if name.startswith("t"):
        logit[78:110, 78:110] += 6  # those that the outline from 10,000 to 14,000 reaches
    write_logits(folder / name / "logits.npz", logit, "k")
    (folder / name / "slide.json").write_text(json.dumps(summary))
    table = pd.DataFrame(detections, columns=["confidence", "x", "y"]).assign(area_mm2=0.1)
    table.to_csv(folder / name / "lesions.csv", index=False)


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Heat maps of two slides with a lesion each and two without, and annotations."""
    folder = tmp_path / "annotations"
    folder.mkdir()
    square = [[[10_000, 10_000], [14_000, 10_000], [14_000, 14_000], [10_000, 14_000], [10_000, 10_000]]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": square}, "properties": {}}
    for name in ("t1", "t2"):
        (folder / f"{name}.geojson").write_text(json.dumps({"features": [feature]}))
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
    assert main(args) == 0
    assert "AUROC of slides 0.7500" in capsys.readouterr().err


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
    assert "warning: 1 of 5 slides of" in capsys.readouterr().err
    file = heatmaps / "n1" / "slide.json"
    plain = json.loads(file.read_text())
    for change, message in (
        ({"network": {"sha256": "m", "tta": "none"}}, "n1.tif and n2.tif are of different networks"),
        ({"options": {"stride": 32, "prior": 0.1}}, "n1.tif and n2.tif differ in `prior`"),
        ({"slide": "other/n2.svs"}, "two heat maps of n2"),
        ({"key": "other"}, "logits.npz: not of"),
        ({"score": None}, "slide.json: damaged"),
    ):
        file.write_text(json.dumps(plain | change))
        with pytest.raises(UserError, match=message):
            evaluate_slides(heatmaps, annotations=annotations)
    file.write_text(json.dumps(plain))
    (annotations / "t1.geojson").write_text('{"features": []}')
    with pytest.raises(UserError, match=r"t1.geojson: no outline of tumor of t1, which has metastases"):
        evaluate_slides(heatmaps, reference, annotations)


def test_what_is_missing_is_named(annotated: Path) -> None:
    heatmaps, annotations, reference = (annotated / name for name in ("heatmaps", "annotations", "r.csv"))
    with pytest.raises(UserError, match="`reference`, `annotations`: one of them is required"):
        evaluate_slides(heatmaps)
    with pytest.raises(UserError, match="no heat maps there"):
        evaluate_slides(annotations, annotations=annotations)
    reference.write_text("slide,label\nt1,1\nt2,1\nn1,0\n")
    with pytest.raises(UserError, match=r"r.csv: no row of n2"):
        evaluate_slides(heatmaps, reference)
    reference.write_text("slide,label\nt1,1\nt2,1\nn1,1\nn2,0\n")
    with pytest.raises(UserError, match="no annotations of n1, which has metastases"):
        evaluate_slides(heatmaps, reference, annotations)
