"""Five synthetic hospitals with different stains, scanners and tumor shares, in the layout of Camelyon17-WILDS."""

import io
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from pcam_lightning.synthetic.tissue import BROWNER, RUIFROK, Array, Slide, blur, synthesize_patch
from pcam_lightning.utils.parallel import process_map

SLIDES = 10  # slides per hospital; each patient has two
VALIDATED = 10  # one in this many training patches is for in-distribution validation
_PER_PROCESS = 100  # patches; generating fewer takes less time than starting a worker process


class Hospital(NamedTuple):
    """Effect of a laboratory and its scanner on patches."""

    towards: float  # interpolation between the stains of two laboratories, 0 to 1, or beyond
    strength: tuple[float, float]  # factors of hematoxylin and eosin
    color: tuple[float, float, float]  # color of the scanner's light, in [0, 1]
    mixing: float  # crosstalk between the color channels of the sensor
    softness: float  # standard deviation of the blur, in pixels
    noise: float  # standard deviation, for pixels in [0, 1]
    quality: int  # JPEG quality
    tumor: float  # share of tumor patches


HOSPITALS = (
    Hospital(0.0, (1.0, 1.0), (0.97, 0.97, 0.97), 0.0, 0.0, 0.004, 90, 0.50),
    Hospital(0.5, (1.25, 0.8), (0.98, 0.94, 0.97), 0.06, 0.5, 0.008, 80, 0.35),
    Hospital(1.2, (0.75, 1.35), (0.93, 0.90, 0.97), 0.12, 0.7, 0.015, 70, 0.60),
    Hospital(0.2, (0.85, 1.15), (0.99, 0.97, 0.93), 0.03, 0.3, 0.006, 85, 0.45),
    Hospital(0.8, (1.15, 0.95), (0.95, 0.96, 0.98), 0.08, 0.0, 0.010, 75, 0.40),
)


def synthesize_hospitals(folder: Path, count: int, seed: int) -> None:
    """Write patches of five hospitals in turn: metadata.csv and patches/.

    Args:
        folder: folder to write to.
        count: total number of patches.
        seed: random seed.
    """
    with process_map(count // _PER_PROCESS, chunksize=16) as map_on_cores:
        results = map_on_cores(partial(_write_patch, folder, seed), range(count))
        rows = list(tqdm(results, desc="generating patches", total=count, unit="patch"))
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", lineterminator="\n")


def _write_patch(folder: Path, seed: int, index: int) -> dict[str, int | str]:
    """Write a synthetic patch, and return its row of metadata.csv."""
    center, number = index % len(HOSPITALS), index // len(HOSPITALS)
    slide = number % SLIDES
    rng = np.random.default_rng([seed, 5, index])
    label = int(rng.random() < HOSPITALS[center].tumor)
    patient = f"{20 * center + slide // 2:03d}"
    x, y = 32 * (number // SLIDES), 32 * slide
    path = folder / "patches" / f"patient_{patient}_node_{slide % 2}"
    path.mkdir(parents=True, exist_ok=True)
    name = f"patch_patient_{patient}_node_{slide % 2}_x_{x}_y_{y}.png"
    appearance = _sample_slide(np.random.default_rng([seed, 6, center, slide]), HOSPITALS[center])
    pixels = synthesize_patch(rng, appearance, label)[0]
    Image.fromarray(scan(rng, pixels, HOSPITALS[center])).save(path / name)
    split = int(center in (0, 3, 4) and number % VALIDATED == VALIDATED - 1)
    return {
        "patient": patient, "node": slide % 2, "x_coord": x, "y_coord": y, "tumor": label,
        "slide": SLIDES * center + slide, "center": center, "split": split,
    }  # fmt: skip


def _sample_slide(rng: np.random.Generator, hospital: Hospital) -> Slide:
    """Sample the stains and glass of a slide of a hospital."""
    towards = hospital.towards + rng.normal(0, 0.08)
    stains = (RUIFROK + towards * (BROWNER - RUIFROK)) * np.array(hospital.strength)[:, None]
    stains = (stains * np.exp(rng.normal(0, 0.08, (2, 1)))).clip(0.02).astype(np.float32)
    white = np.array(hospital.color, np.float32)[:, None, None] * np.float32(1 - abs(rng.normal(0, 0.01)))
    return Slide("hospital", stains, white, 0.5)


def scan(rng: np.random.Generator, pixels: Array, hospital: Hospital) -> Array:
    """Simulate the scan of a patch, uint8 (96, 96, 3): blur, color crosstalk, noise and JPEG."""
    image = pixels.transpose(2, 0, 1).astype(np.float32) / 255
    if hospital.softness:
        image = blur(image, hospital.softness)
    matrix = np.eye(3) * (1 - 2 * hospital.mixing) + hospital.mixing * (1 - np.eye(3))
    image = np.einsum("dc,chw->dhw", matrix, image) + hospital.noise * rng.standard_normal(image.shape)
    buffer = io.BytesIO()
    plain = (255 * image.clip(0, 1)).round().astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(plain)).save(buffer, "jpeg", quality=hospital.quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
