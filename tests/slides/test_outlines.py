"""Outlines that QuPath reads, and the origin of its coordinates."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import pyvips
import shapely

from pcam_lightning.slides.hard_negatives import mine_negatives
from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.slides.outlines import write_geojson
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.predict_slide import predict_slide
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.utils.errors import UserError

CPU = {"accelerator": "cpu", "precision": "32-true", "num_workers": 0}
LEFT, TOP = 256, 128  # where the scanned region begins
SCN = """<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">
<collection sizeX="{whole}" sizeY="{whole}"><barcode/><image><device model="a" version="1"/>
<pixels sizeX="320" sizeY="320"><dimension sizeX="320" sizeY="320" r="0" ifd="0"/></pixels>
<view sizeX="{side}" sizeY="{side}" offsetX="{left}" offsetY="{top}" spacingZ="0"/><scanSettings>
<objectiveSettings><objective>10</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image></collection></scn>"""


@pytest.fixture(scope="module")
def scn(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Leica SCN of 0.972 um per pixel, 768 x 768 pixels of which 320 x 320 were scanned."""
    path = tmp_path_factory.mktemp("scn") / "leica.scn"
    nm = {"whole": 768, "side": 320, "left": LEFT, "top": TOP}
    image = pyvips.Image.new_from_array(pixels).copy()
    text = SCN.format_map({name: 972 * value for name, value in nm.items()})
    image.set_type(pyvips.GValue.gstr_type, "image-description", text)
    per_mm = 1000 / 0.972
    image.tiffsave(str(path), tile=True, bigtiff=True, compression="jpeg", Q=95, xres=per_mm, yres=per_mm, resunit="cm")
    return path


@pytest.fixture(scope="module")
def heatmaps(scn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its heat map by pcam-small, in a folder of heat maps."""
    folder = tmp_path_factory.mktemp("heatmaps")
    predict_slide(scn, "pcam-small", folder / "leica", **CPU)
    return folder


def test_tiles_lie_where_qupath_shows_the_tissue(scn: Path, heatmaps: Path) -> None:
    assert SlideReader(scn).bounds_origin == (LEFT, TOP)
    content = json.loads((heatmaps / "leica" / "heatmap.geojson").read_text())
    boxes = [shapely.from_geojson(json.dumps(one["geometry"])) for one in content["features"]]
    assert shapely.total_bounds(boxes).tolist() == [96, 64, 256, 224]  # in the image of 320 x 320
    patches = pd.read_csv(heatmaps / "leica" / "patches.csv")
    assert patches[["minx", "miny"]].min().tolist() == [LEFT + 96 - 32, TOP + 64 - 32]
    assert json.loads((heatmaps / "leica" / "slide.json").read_text())["geojson_origin"] == [LEFT, TOP]


def test_outlines_of_qupath_and_of_asap_mean_the_same_place(heatmaps: Path, tmp_path: Path) -> None:
    ring = np.array([[60, 30], [290, 30], [290, 260], [60, 260], [60, 30]])  # around all patches, as QuPath counts
    geometry = {"type": "Polygon", "coordinates": [ring.tolist()]}
    feature = {"geometry": geometry, "properties": {"classification": {"name": "Tumor"}}}
    (tmp_path / "qupath").mkdir()
    (tmp_path / "qupath" / "leica.geojson").write_text(json.dumps([feature]))
    root = ElementTree.Element("ASAP_Annotations")
    annotation = ElementTree.SubElement(root, "Annotation", Type="Polygon", PartOfGroup="Tumor")
    for order, (x, y) in enumerate(ring + np.array([LEFT, TOP])):
        ElementTree.SubElement(annotation, "Coordinate", Order=str(order), X=str(x), Y=str(y))
    (tmp_path / "asap").mkdir()
    ElementTree.ElementTree(root).write(tmp_path / "asap" / "leica.xml")
    for name in ("qupath", "asap"):
        with pytest.raises(UserError, match=r"no false positive found at `threshold` 0 \(annotated slides: 1\)"):
            mine_negatives(heatmaps, tmp_path / "mined", annotations=tmp_path / name, threshold=0)


def test_exterior_rings_run_counterclockwise(tmp_path: Path) -> None:
    logit = np.full((5, 5), 3.0, dtype=np.float32)
    logit[2, 2] = -3.0
    write_geojson(tmp_path / "a.geojson", HeatMap(PatchGrid(640, 640, 0.243), logit), 0.5)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    rings = [[shapely.LinearRing(ring) for ring in one["geometry"]["coordinates"]] for one in features]
    assert len(rings) == 26
    assert all(exterior.is_ccw for exterior, *_ in rings)
    assert [ring.is_ccw for _, *interior in rings for ring in interior] == [False]
