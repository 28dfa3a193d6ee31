"""Annotations: what ASAP's and QuPath's files say, which outlines count, and files by the names of slides."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcam_lightning.slides.annotations import find_annotation, list_unmatched, regions_of_interest, tumor_outlines
from pcam_lightning.slides.outlines import outline_mask, read_outlines
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.utils.errors import UserError

GRID = PatchGrid(1005, 1000, 1.0)
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


def feature(name: str | None, ring: list[list[int]] = SQUARE, **properties: Any) -> dict[str, Any]:
    """Return an annotation of a class."""
    classification = {} if name is None else {"classification": {"name": name}}
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {**classification, **properties}}


def write(path: Path, *features: dict[str, Any]) -> Path:
    """Write annotations as GeoJSON."""
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize(("name", "text"), [("a.xml", ASAP), ("a.geojson", json.dumps(GEOJSON))])
def test_outlines_become_a_mask_with_holes(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    mask = outline_mask(tumor_outlines(path, GRID), 1005, 1000, 10.0)
    expected = np.zeros((100, 101), dtype=bool)  # the last column is half a pixel wide
    expected[:80, :80] = True
    expected[20:40, 20:40] = False
    assert np.array_equal(mask, expected)


def test_an_island_in_a_hole_is_tumor_and_other_classes_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    island = [[250, 250], [350, 250], [350, 350], [250, 350], [250, 250]]
    whole = feature("Tumor")
    whole["geometry"] = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [island]]}
    tissue = feature("Tissue", [[0, 0], [1000, 0], [1000, 1000], [0, 1000], [0, 0]])
    normal = feature("Normal", [[0, 0], [100, 0], [100, 800], [0, 800], [0, 0]])
    path = write(tmp_path / "a.geojson", whole, tissue, normal)
    mask = outline_mask(tumor_outlines(path, GRID), 1000, 1000, 10.0)
    assert mask[30, 30]
    assert not mask[22, 22]
    assert not mask[50, 5]
    assert mask.sum() == 80 * 70 - 20 * 20 + 10 * 10
    report = "a.geojson: 0.53 mm2 of tumor (tumor: tumor 0.61; subtracted: normal 0.08; ignored: tissue 1)."
    assert report in capsys.readouterr().err


def test_a_class_is_read_as_each_version_of_qupath_writes_it(tmp_path: Path) -> None:
    derived = feature(None, classification={"names": ["Stroma", "Negative"]})  # since 0.4
    older = feature("Tumor: Positive", object_type="annotation")
    detections = [feature("Tumor", object_type="detection"), {**feature("Tumor"), "id": "PathDetectionObject"}]
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}}
    nested = feature("Tumor", id="PathAnnotationObject")
    nested["geometry"] = {"type": "GeometryCollection", "geometries": [point["geometry"], nested["geometry"]]}
    found = read_outlines(write(tmp_path / "a.geojson", derived, older, *detections, point, nested))
    assert [one.name for one in found] == ["stroma: negative", "tumor: positive", "none", "tumor"]
    assert [one.polygon.area for one in found] == [640_000, 640_000, 0, 640_000]


def test_point_sets_and_measurements_of_asap_are_no_polygons(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    for kind, area in (("Polygon", 600_000), ("Spline", 600_000), ("PointSet", 0), ("Measurement", 0), ("Dot", 0)):
        path.write_text(ASAP.replace('Name="a" Type="Polygon"', f'Name="a" Type="{kind}"'))
        if area:
            assert tumor_outlines(path, GRID).area == area
        else:
            with pytest.raises(UserError, match=r"a.xml: no polygon has a tumor class; classes found: _0"):
                tumor_outlines(path, GRID)
            assert tumor_outlines(path, GRID, label=0).is_empty


@pytest.mark.parametrize("name", ["Carcinoma", "Tumor: Positive", None])
def test_a_file_in_which_no_outline_counts_names_its_classes(tmp_path: Path, name: str | None) -> None:
    path = write(tmp_path / "a.geojson", feature(name), feature("Normal", HOLE))
    shown = "no class" if name is None else name.lower()
    message = rf"a.geojson: no polygon has a tumor class; classes found: {shown}. Name .* in `tumor_class`"
    with pytest.raises(UserError, match=message):
        tumor_outlines(path, GRID)
    assert tumor_outlines(path, GRID, label=0).is_empty
    assert tumor_outlines(path, GRID, tumor_class=[name or "none"]).area == 600_000


def test_a_file_of_normal_outlines_alone_is_of_a_slide_without_tumor(tmp_path: Path) -> None:
    assert tumor_outlines(write(tmp_path / "a.geojson", feature("Normal")), GRID).is_empty
    assert tumor_outlines(write(tmp_path / "b.geojson"), GRID).is_empty


def test_an_outline_outside_the_slide_is_an_error(tmp_path: Path) -> None:
    outside = [[2000, 100], [2100, 100], [2100, 200], [2000, 100]]
    path = write(tmp_path / "a.geojson", feature("Tumor"), feature("Tumor", outside))
    message = r"a.geojson: 1 of 2 outlines lie .* 1,005 x 1,000 pixels; the first starts at x 2,000, y 100"
    with pytest.raises(UserError, match=message):
        tumor_outlines(path, GRID)
    assert tumor_outlines(path, PatchGrid(3000, 1000, 1.0)).area == 645_000
    write(path, feature("Tissue", outside), feature("Tumor"))  # of no interest
    assert tumor_outlines(path, GRID).area == 640_000


def test_geojson_has_the_origin_of_qupath_and_asap_that_of_openslide(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", feature("Tumor", HOLE))
    assert tumor_outlines(path, GRID, (100, 50)).bounds == (300, 250, 500, 450)
    (tmp_path / "a.xml").write_text(ASAP)
    assert tumor_outlines(tmp_path / "a.xml", GRID, (100, 50)).bounds == (0, 0, 800, 800)


def test_regions_of_interest_are_of_any_class_but_those_to_ignore(tmp_path: Path) -> None:
    slide = Path("a.tif")
    path = write(tmp_path / "a.geojson", feature("Region*"), feature("Ignore*", HOLE))
    assert regions_of_interest(path, slide, GRID, (0, 0)).area == 600_000
    assert regions_of_interest(tmp_path, slide, GRID, (0, 0)).area == 600_000
    with pytest.raises(UserError, match=r"no file for b.svs. Add b.geojson or b.xml"):
        regions_of_interest(tmp_path, Path("b.svs"), GRID, (0, 0))
    write(path)
    with pytest.raises(UserError, match=r"a.geojson: contains no region polygon"):
        regions_of_interest(path, slide, GRID, (0, 0))


def test_files_are_found_by_the_name_of_the_slide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = [Path("a.tif"), Path("b.svs"), Path("c.svs")]
    for name in ("a.tif.geojson", "b.xml", "d.geojson", "notes.txt"):
        (tmp_path / name).touch()
    assert [find_annotation(tmp_path, slide) for slide in slides] == [
        tmp_path / "a.tif.geojson",
        tmp_path / "b.xml",
        None,
    ]
    assert list_unmatched(tmp_path, slides)
    assert not list_unmatched(tmp_path, slides[2:])
    error = capsys.readouterr().err
    assert "these annotation files match none of the slides: d.geojson.\n" in error
    assert "these annotation files match none of the slides: a.tif.geojson, b.xml, d.geojson." in error
    (tmp_path / "a.json").touch()
    with pytest.raises(UserError, match=r"a.json.*a.tif.geojson: a.tif has two annotation files"):
        find_annotation(tmp_path, slides[0])


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
        '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, NaN]]]}}]}',
        ASAP.replace('X="800"', 'X="nan"'),
    ],
)
@pytest.mark.parametrize("suffix", [".xml", ".geojson"])
def test_damaged_annotations_are_named(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken.* neither ASAP's XML nor GeoJSON"):
        read_outlines(path)
