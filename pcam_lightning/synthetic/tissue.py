"""Generate synthetic lymph-node tissue, cell by cell, with a mask of its tumor cells."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MARGIN, CANVAS = 12, 120  # the canvas is larger than a patch, so the patch border cuts cells
VISIBLE, CENTER = slice(12, 108), slice(32, 64)

# Optical densities of hematoxylin and eosin in R, G, B: the published vectors, and the browner stains of a second
# laboratory. CAMELYON16 has two laboratories; the stains of each slide are interpolated between them.
RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)
BROWNER = np.array([[0.53, 0.67, 0.52], [0.20, 0.77, 0.61]], np.float32)

MOST_CELLS = 4000  # cells per step: 200 MB
LYMPHOID, FOLLICLE, STROMA, FAT, SINUS, TUMOR, VOID = range(7)
HOSTS = (
    (0.35, 0.11, 0.14, 0.26, 0.14),
    (0.42, 0.06, 0.34, 0.10, 0.08),
)  # tissue shares without, with tumor


class Cell(NamedTuple):
    """Appearance of one cell type; lengths are in pixels of about 1 um."""

    spacing: float  # distance between possible positions
    rates: tuple[float, ...]  # share of occupied positions, for each tissue in the order above
    radius: float  # radius of the nucleus
    radius_sd: float  # standard deviation of the log radius
    aspect: float
    rough: float  # roughness of the outline
    hematoxylin: float
    rim: float  # 0: uniform; 1: only the membrane is dark
    chromatin: float  # contrast of the texture
    nucleolus: float
    body: float  # ratio of the radii of cell and nucleus
    eosin: float  # eosin of the cytoplasm


LYMPHOCYTE = Cell(6.7, (0.92, 0.2, 0.06, 0.08, 0.22, 0.07, 0), 3.05, 0.13, 1.3, 0.15, 2.1, 0.1, 0.16, 0, 1.2, 0.4)
RED_CELL = Cell(6.5, (0.05, 0.02, 0.12, 0.25, 0.5, 0.05, 0), 2.9, 0.1, 1.2, 0.08, 0.1, 0, 0.05, 0, 1.1, 1.1)
FIBROBLAST = Cell(10.5, (0.05, 0.03, 0.45, 0.3, 0.12, 0.1, 0), 2.7, 0.25, 3.2, 0.18, 1.2, 0.1, 0.2, 0, 1.2, 0.6)
CENTROBLAST = Cell(9.2, (0.04, 0.85, 0, 0, 0.05, 0, 0), 4.2, 0.14, 1.3, 0.12, 1.2, 0.35, 0.2, 0.4, 1.3, 0.45)
HISTIOCYTE = Cell(12.5, (0.06, 0.08, 0.05, 0.08, 0.55, 0.03, 0), 4.5, 0.15, 1.4, 0.1, 0.9, 0.4, 0.18, 0.3, 1.6, 0.4)
TUMOR_CELL = Cell(12, (0, 0, 0, 0, 0, 0.92, 0), 4.8, 0.17, 1.4, 0.15, 1.1, 0.4, 0.2, 0.7, 1.55, 0.55)


class Slide(NamedTuple):
    """Appearance of one whole slide: stains, glass and sharpness."""

    name: str
    stains: Array  # optical density of hematoxylin and eosin, shape (2, 3)
    white: Array  # color of bare glass in [0, 1], shape (3, 1, 1)
    sharpening: float


@cache
def coordinates(side: int) -> tuple[Array, Array]:
    """Return the rows and columns of the pixels of a canvas, float32 (side, side)."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    return rows, columns


def blur(image: Array, scale: float) -> Array:
    """Blur an image, shape (..., side, side), with a Gaussian; `scale` is its standard deviation in pixels."""
    return np.asarray(np.fft.irfft2(np.fft.rfft2(image) * _low_pass(scale, image.shape[-1]), s=image.shape[-2:]))


@cache
def _low_pass(scale: float, side: int) -> Array:
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    return np.asarray(np.exp(-2 * (np.pi * scale * frequency) ** 2), np.float32)


def noise(rng: np.random.Generator, scale: float, side: int = CANVAS) -> Array:
    """Sample a Gaussian field with mean 0 and variance 1, smoothed over `scale` pixels, shape (side, side)."""
    field = blur(rng.standard_normal((side, side), dtype=np.float32), scale)
    return np.asarray((field - field.mean()) / field.std())


def _scatter(rng: np.random.Generator, spacing: float, side: int) -> Array:
    """Sample cell positions from a jittered hexagonal grid at a random angle, shape (N, 2)."""
    reach = int(0.85 * side / spacing)
    row, column = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    y, x, angle = 0.866 * spacing * row, spacing * (column + 0.5 * (row % 2)), rng.uniform(0, np.pi)
    points = np.stack([y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)], 1) + side / 2
    points += rng.normal(0, 0.18 * spacing, points.shape)
    inside = ((points >= 4) & (points < side - 4)).all(1)
    return np.asarray(points[inside], np.float32)


def _tissue(rng: np.random.Generator, label: int, tumor: bool) -> Array:
    """Sample a map of tissue types, shape (120, 120)."""
    rows, columns = coordinates(CANVAS)
    first, second = rng.choice(5, size=2, p=HOSTS[tumor])
    tissue: Array = np.where(noise(rng, 16) > rng.normal(0.8, 0.9), second, first)
    if tumor:
        y, x = rng.uniform(36, 60, 2) if label else rng.permutation([rng.choice([8, 88]), rng.uniform(0, 96)])
        nest = noise(rng, 9) - np.hypot(rows - MARGIN - y, columns - MARGIN - x) / rng.uniform(12, 40)
        share = rng.beta(1, 1.1) if label else rng.uniform(0.1, 0.6)
        tissue[nest >= np.quantile(nest, 1 - share)] = TUMOR
    if rng.random() < 0.35:
        tissue[noise(rng, 6) > rng.uniform(0.9, 2.2)] = VOID  # cracks
    for y, x, radius in rng.uniform((0, 0, 6), (CANVAS, CANVAS, 32), (max(0, int(rng.normal(0, 1.2))), 3)):
        tissue[np.hypot(rows - y, columns - x) < radius] = VOID  # single vacuoles
    return tissue


def ground(rng: np.random.Generator, tissue: Array, angle: float) -> Array:
    """Sample hematoxylin and eosin between the cells, shape (2, side, side); vacuoles in FAT become VOID."""
    side = len(tissue)
    rows, columns = coordinates(side)
    fine, coarse, slow = noise(rng, 0.8, side), noise(rng, 2, side), noise(rng, 9, side)
    across = columns * np.sin(angle) - rows * np.cos(angle) + 5 * slow
    at, profile = np.arange(4 * side) - 2 * side, rng.standard_normal((2, 4 * side))
    fibres = np.interp(across / 2.2, at, profile[0]) + 0.7 * np.interp(across / 1.1 + coarse, at, profile[1])
    count = int(rng.integers(6, 14) * ((side + 60) / (CANVAS + 60)) ** 2)
    vacuoles = rng.uniform(-30, side + 30, (count, 2)).astype(np.float32)
    membranes = _membranes(tissue == FAT, rows + 4 * slow, columns - 4 * slow, vacuoles, rng.uniform(1, 3))
    loose = rng.uniform(-0.1, 0.45)
    eosin = np.zeros((7, side, side), np.float32)
    eosin[LYMPHOID] = 0.12 + loose + 0.22 * coarse + 0.1 * fine
    eosin[FOLLICLE] = 0.4 + 0.15 * coarse + 0.1 * fine
    eosin[STROMA] = (0.35 + 0.7 * loose + 0.15 * slow).clip(0.05) * (1 + 0.5 * fibres + 0.15 * fine)
    eosin[FAT] = membranes * (0.5 + 0.3 * coarse)
    eosin[SINUS] = 0.5 * np.exp(-((coarse / 0.3) ** 2)) + 0.2 * slow + 0.5 * loose - 0.1
    eosin[TUMOR] = 0.15 + 0.8 * loose + 0.2 * coarse + 0.1 * fine
    hematoxylin = np.array([0.05, 0.12, 0.06, 0, 0.03, 0.1, 0], np.float32)[tissue] * (1 + 0.5 * coarse)
    stains = np.stack([hematoxylin, np.take_along_axis(eosin, tissue[None], 0)[0]])
    tissue[(tissue == FAT) & (membranes < 0.3)] = VOID
    return np.asarray(blur(stains.clip(0), 0.5).clip(0))


def _membranes(fat: Array, rows: Array, columns: Array, vacuoles: Array, width: float) -> Array:
    """Return the membranes between the vacuoles of fat, in [0, 1], shape (side, side), window by window."""
    membranes = np.zeros_like(rows)
    for top in range(0, len(fat), CANVAS):
        for left in range(0, len(fat), CANVAS):
            window = slice(top, top + CANVAS), slice(left, left + CANVAS)
            if not fat[window].any():
                continue
            near = (np.abs(vacuoles - (top + CANVAS / 2, left + CANVAS / 2)) < CANVAS).all(1)
            y, x = vacuoles[near].T[..., None, None]
            squared = (rows[window] - y) ** 2 + (columns[window] - x) ** 2
            share = 1 / np.exp((squared.min(0) - squared) / (8 * width**2)).sum(0)  # share of the nearest vacuole
            membranes[window] = (3 - 3 * share).clip(0, 1)
    return membranes


def _paint(
    rng: np.random.Generator, stains: Array, cell: Cell, points: Array, angle: float, rough: Array, fine: Array
) -> Array:
    """Paint cells of one type over the stains, in place; return the mask of their nuclei, shape (side, side)."""
    side = stains.shape[-1]
    nuclei, bodies = np.zeros((side, side), np.bool_), np.zeros((side, side), np.float32)
    if not len(points):
        return nuclei
    sampled = rng.uniform(-1, 1, (5, len(points), 1, 1)).astype(np.float32)
    radius = (cell.radius * np.exp(1.7 * cell.radius_sd * sampled[0])).clip(2, 8.5)  # the sd of the uniform is 1 / 1.7
    stretch = np.sqrt(1 + (cell.aspect - 1) * (0.9 + 0.7 * sampled[1]))
    turn = angle + 0.5 * sampled[2] if cell is FIBROBLAST else np.float32(np.pi) * sampled[2]
    half = min(MARGIN, int((radius * stretch).max() * cell.body + 1))
    corner = points.round().astype(np.intp).clip(half, side - 1 - half) - half  # (N, 2)
    window = np.arange(2 * half + 1)
    at = corner[:, :1, None] + window[:, None], corner[:, 1:, None] + window  # (N, W, 1) and (N, 1, W)
    y, x = (index.astype(np.float32) - points[:, i, None, None] for i, index in enumerate(at))
    along, over = (x * np.cos(turn) + y * np.sin(turn)) / stretch, (y * np.cos(turn) - x * np.sin(turn)) * stretch
    rho = np.hypot(along, over) / radius + cell.rough * rough[at]  # (N, W, W), 1 at the outline
    nucleus, body = ((1 - rho) * radius + 0.5).clip(0, 1), ((cell.body - rho) * radius / 2 + 0.5).clip(0, 0.9)
    tone = 1 - cell.rim + cell.rim * rho.clip(0, 1) ** 3 + cell.chromatin * fine[at]
    if cell.nucleolus:
        off = (along - 0.4 * sampled[3] * radius) ** 2 + (over - 0.4 * sampled[4] * radius) ** 2
        tone += cell.nucleolus * np.exp(-off / 1.6)
    tone *= cell.hematoxylin * np.exp(np.float32(0.15) * rng.standard_normal(radius.shape, dtype=np.float32))
    spans = [(slice(top, top + len(window)), slice(left, left + len(window))) for top, left in corner]
    for i, span in enumerate(spans):
        np.maximum(bodies[span], body[i], out=bodies[span])
    stains += bodies * (np.stack([0.12 + 0.03 * rough, cell.eosin * (1 + 0.15 * fine + 0.1 * rough)]) - stains)
    paint = np.stack([0.12 + nucleus * (tone.clip(0.2) - 0.12), cell.eosin * (0.8 - 0.2 * nucleus)], 1)
    cover = ((1 - rho) * radius + 1.4).clip(0, 1)  # one pixel wider: cytoplasm separates touching nuclei
    for i, span in enumerate(spans):
        stains[:, *span] += cover[i] * (paint[i] - stains[:, *span])
        nuclei[span] |= nucleus[i] > 0.5
    return nuclei


def paint_cells(
    rng: np.random.Generator, stains: Array, tissue: Array, angle: float, *, spare_center: bool = False
) -> Array:
    """Paint all cell types over the stains, in place; return the mask of tumor nuclei, shape (side, side).

    Args:
        rng: random generator.
        stains: amounts of hematoxylin and eosin, shape (2, side, side).
        tissue: map of tissue types, shape (side, side).
        angle: angle of the fibers.
        spare_center: keep the center 32 x 32 free of tumor cells.
    """
    side = len(tissue)
    rough, fine, crowd = noise(rng, 2.5, side), noise(rng, 0.9, side), noise(rng, 8, side)
    for kind in (LYMPHOCYTE, RED_CELL, FIBROBLAST, CENTROBLAST, HISTIOCYTE, TUMOR_CELL):
        cell = kind
        if kind in (CENTROBLAST, HISTIOCYTE, TUMOR_CELL):  # neither size nor color alone identifies tumor
            scale, tone, tint = rng.uniform((0.85, 0.75, 0.5), (1.2, 1.4, 1.4)).tolist()
            cell = kind._replace(spacing=kind.spacing * scale, radius=kind.radius * scale, rim=rng.uniform(0.1, 0.65))
            cell = cell._replace(hematoxylin=kind.hematoxylin * tone, eosin=kind.eosin * tint)
        points = _scatter(rng, cell.spacing, side)
        at = tuple(points.astype(np.intp).T)
        rate = np.array(cell.rates)[tissue[at]] * (crowd[at] > 1 if kind is RED_CELL else 1 + 0.15 * crowd[at])
        keep = rng.random(len(points)) < rate
        if kind is TUMOR_CELL and spare_center:
            keep &= np.abs(points - side / 2).max(1) > 16 + 1.5 * cell.radius
        points = points[keep]
        nuclei = np.zeros((side, side), np.bool_)
        for first in range(0, max(1, len(points)), MOST_CELLS):
            nuclei |= _paint(rng, stains, cell, points[first : first + MOST_CELLS], angle, rough, fine)
    stains *= 1 + 0.1 * rng.standard_normal((side, side), dtype=np.float32)  # grain
    stains *= np.exp(rng.normal(0.05, [[[0.3]], [[0.22]]]))  # variable section thickness
    return nuclei  # nuclei of the last cell type: tumor


def transmitted(stains: Array, slide: Slide) -> Array:
    """Return the light transmitted by a stained slide, shape (3, side, side): white * exp(-density)."""
    through = np.exp(-np.einsum("shw,sc->chw", stains, slide.stains))
    return np.asarray(slide.white * (0.03 + 0.97 * through))  # stray light in the lens


def synthesize_patch(rng: np.random.Generator, slide: Slide, label: int) -> tuple[Array, Array]:
    """Generate one patch of a slide.

    Stains mix by the Beer-Lambert law, intensity = white * exp(-density). Stain vectors: Ruifrok
    and Johnston, "Quantification of histochemical staining by color deconvolution", 2001.

    Args:
        rng: random generator; the same state gives the same tissue for every slide.
        slide: slide of the patch; most negatives on a tumor slide contain tumor outside the center.
        label: label of the patch.

    Returns:
        The patch, uint8 of shape (96, 96, 3), and the mask of its tumor nuclei, bool of shape (96, 96). The label is 1
        exactly if the mask intersects the center 32 x 32.
    """
    tumor, reached = bool(label) or ("_tumor_" in slide.name and rng.random() < 0.7), None
    while reached != bool(label):
        tissue, angle = _tissue(rng, label, tumor), rng.uniform(0, np.pi)
        stains = ground(rng, tissue, angle)
        nuclei = paint_cells(rng, stains, tissue, angle, spare_center=not label)
        mask = nuclei[VISIBLE, VISIBLE]
        reached = bool(mask[CENTER, CENTER].any())
    image = transmitted(stains, slide)
    soft = float(rng.choice([0.7, 1.0, 1.3])) if rng.random() < 0.06 else 0  # out of focus
    image = blur(image, soft) if soft else image + slide.sharpening * (image - blur(image, 1))
    image = image + 0.006 * rng.standard_normal(image.shape, dtype=np.float32)
    pixels = (255 * image[:, VISIBLE, VISIBLE].clip(0, 1)).round().astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)), mask
