"""Generate synthetic whole slides of lymph nodes with annotations, for tests and for users without slides."""

import errno
from pathlib import Path
from xml.etree import ElementTree

import contourpy
import numpy as np
import pyvips
import shapely

from pcam_lightning.synthetic.tissue import (
    FAT,
    FOLLICLE,
    LYMPHOID,
    SINUS,
    STROMA,
    TUMOR,
    VOID,
    Array,
    Slide,
    blur,
    coordinates,
    ground,
    noise,
    paint_cells,
    transmitted,
)

MPP = 0.972  # um per pixel of the generated image, as for patches
FINER = 2  # number of finer levels: level 0 has 0.243 um, as in CAMELYON16
PENS = np.array([[0.05, 0.35, 0.15], [0.1, 0.15, 0.6], [0.1, 0.1, 0.12]], np.float32)  # light transmitted by ink


def synthesize_whole_slide(rng: np.random.Generator, slide: Slide, side: int, *, tumor: bool) -> tuple[Array, Array]:
    """Generate a lymph node with capsule, sinuses, follicles and fat, on glass with a pen mark and a blurred strip.

    Args:
        rng: random generator.
        slide: stains, glass and sharpness.
        side: side in pixels of 0.972 um.
        tumor: whether the node has metastases.

    Returns:
        The slide, uint8 (side, side, 3), and the mask of its metastases, bool (side, side).
    """
    tissue = _node(rng, side)
    metastases = _metastases(rng, tissue) if tumor else np.zeros((side, side), np.bool_)
    tissue[metastases] = TUMOR
    tissue[noise(rng, 6, side) > 2.6] = VOID  # cracks
    metastases &= tissue == TUMOR
    angle = rng.uniform(0, np.pi)
    stains = ground(rng, tissue, angle)
    stains *= blur((tissue != VOID).astype(np.float32), 0.8)
    paint_cells(rng, stains, tissue, angle)
    image = transmitted(stains, slide)
    image = image + slide.sharpening * (image - blur(image, 1))
    image = _out_of_focus(rng, image)
    image = image * _pen_mark(rng, side)
    image = image + 0.006 * rng.standard_normal(image.shape, dtype=np.float32)
    pixels = (255 * image.clip(0, 1)).round().astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)), metastases


def _node(rng: np.random.Generator, side: int) -> Array:
    """Sample the map of tissue types of a lymph node, shape (side, side)."""
    rows, columns = coordinates(side)
    y, x = side * rng.uniform(0.46, 0.54, 2)
    height, width = side * rng.uniform(0.33, 0.4, 2)
    depth = np.hypot((rows - y) / height, (columns - x) / width) + 0.05 * noise(rng, side / 16, side)  # 1 at the border
    loose = noise(rng, 24, side)
    tissue = np.full((side, side), VOID)
    tissue[(depth < 1.16) & (noise(rng, side / 24, side) > 0.2)] = FAT
    tissue[depth < 1] = STROMA  # the capsule
    tissue[depth < 0.97] = SINUS
    tissue[depth < 0.94] = LYMPHOID
    tissue[(depth < 0.55) & (loose > 0.3)] = SINUS
    tissue[(depth < 0.5) & (loose < -1.0)] = STROMA
    for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(5, 9))):
        reach, radius = rng.uniform(0.62, 0.78), side * rng.uniform(0.02, 0.045)
        center = y + reach * height * np.sin(angle), x + reach * width * np.cos(angle)
        tissue[np.hypot(rows - center[0], columns - center[1]) + 0.15 * radius * loose < radius] = FOLLICLE
    return tissue


def _metastases(rng: np.random.Generator, tissue: Array) -> Array:
    """Sample the mask of one to three metastases, bool (side, side); the first radius is 8 to 15 % of the side."""
    side = len(tissue)
    rows, columns = coordinates(side)
    inside = np.argwhere(np.isin(tissue, (LYMPHOID, SINUS, FOLLICLE)))
    rough = noise(rng, 9, side)
    found = np.zeros((side, side), np.bool_)
    for number, (y, x) in enumerate(rng.choice(inside, int(rng.integers(1, 4)), replace=False)):
        radius = side * np.exp(rng.uniform(np.log(0.02 if number else 0.08), np.log(0.15)))
        found |= np.hypot(rows - y, columns - x) + 0.2 * radius * rough < radius
    return found & ~np.isin(tissue, (VOID, FAT))


def _out_of_focus(rng: np.random.Generator, image: Array) -> Array:
    """Blur a strip, like a scanner that loses focus."""
    side = image.shape[-1]
    left, width = side * rng.uniform(0.1, 0.8), side * rng.uniform(0.04, 0.08)
    inside = ((coordinates(side)[1] >= left) & (coordinates(side)[1] < left + width)).astype(np.float32)
    return np.asarray(image + blur(inside, 6) * (blur(image, 2.0) - image))


def _pen_mark(rng: np.random.Generator, side: int) -> Array:
    """Sample the light transmitted by a pen mark beside the node, shape (3, side, side)."""
    rows, columns = coordinates(side)
    across, along = (columns, rows) if rng.random() < 0.5 else (rows, columns)
    middle = side * (0.04 + 0.01 * np.sin(along / side * rng.uniform(4, 9)))
    stroke = (np.abs(across - middle) < side * 0.012) & (np.abs(along - side / 2) < side * rng.uniform(0.1, 0.3))
    ink = blur(stroke.astype(np.float32), 2) * (0.85 + 0.1 * noise(rng, 12, side)).clip(0, 1)
    return np.asarray(1 - ink * (1 - PENS[rng.integers(len(PENS)), :, None, None]))


def write_whole_slide(path: Path, image: Array, metastases: Array, quality: int = 85) -> None:
    """Write a slide as a pyramidal TIFF with JPEG tiles, and its metastases, if any, as ASAP's XML.

    Args:
        path: path of the TIFF; the XML has the same stem.
        image: uint8 (H, W, 3), at 0.972 um per pixel; finer levels are interpolated from it.
        metastases: mask of the metastases, bool (H, W).
        quality: quality of the JPEG tiles.
    """
    per_mm = 1000 / MPP * 2**FINER
    whole = pyvips.Image.new_from_array(image).resize(2**FINER, kernel="cubic")
    try:
        whole.tiffsave(
            str(path),
            tile=True,
            tile_width=256,
            tile_height=256,
            pyramid=True,
            compression="jpeg",
            Q=quality,
            xres=per_mm,
            yres=per_mm,
            resunit="cm",
        )
    except pyvips.Error as error:
        raise OSError(errno.EIO, " ".join(str(error).split()), str(path)) from error
    if not metastases.any():
        return
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    for number, outline in enumerate(_outlines(metastases)):
        annotation = ElementTree.SubElement(
            annotations, "Annotation", Name=f"Annotation {number}", Type="Polygon", PartOfGroup="metastases"
        )
        coordinates_ = ElementTree.SubElement(annotation, "Coordinates")
        for order, (x, y) in enumerate((outline + 0.5) * 2**FINER):
            ElementTree.SubElement(coordinates_, "Coordinate", Order=str(order), X=f"{x:.1f}", Y=f"{y:.1f}")
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    ElementTree.SubElement(groups, "Group", Name="metastases", PartOfGroup="None", Color="#ff0000")
    ElementTree.ElementTree(root).write(path.with_suffix(".xml"), encoding="utf-8", xml_declaration=True)


def _outlines(mask: Array) -> list[Array]:
    """Return the outer outlines of a mask, (N, 2) each, as x and y in pixels, without specks and holes."""
    padded = np.pad(blur(mask.astype(np.float32), 4), 1)
    lines: list[Array] = contourpy.contour_generator(z=padded).lines(0.5)  # type: ignore[assignment]
    outlines = [shapely.LineString(line - 1).simplify(1.0) for line in lines if _area(line) > 200]
    return [shapely.get_coordinates(outline) for outline in outlines]


def _area(line: Array) -> float:
    """Return the area inside a closed line; it is negative if the line runs clockwise, as around a hole."""
    x, y = line.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)
