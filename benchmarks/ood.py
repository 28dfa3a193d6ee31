"""Share of altered patches that early-stage features mark as out-of-distribution.

    python benchmarks/ood.py DIR [--ckpt_path pcam] [--patches 500]

DIR has Kaggle's layout; test/ contains other slides than train/, and its labels are not read. Samples test patches
and alters them in several ways. Prints the share of each kind that is farther from the training patches than 99 % of
the validation patches measured by `evaluate --abstain`.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import torch
from PIL import Image, ImageFilter

from pcam_lightning import PCamDataModule
from pcam_lightning.models.stage_statistics import StageStatistics
from pcam_lightning.synthetic.kaggle_folder import sample_slide
from pcam_lightning.synthetic.tissue import synthesize_patch
from pcam_lightning.training.feature_distance import find_feature_distance
from pcam_lightning.training.loaded_run import LoadedRun, load_pretrained

BATCH = 100
RNG = np.random.default_rng(0)


def as_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Compress a patch."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer))


def blurred(pixels: np.ndarray, sd: float) -> np.ndarray:
    """Blur a patch."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sd)))


def with_noise(pixels: np.ndarray, sd: float) -> np.ndarray:
    """Add normal noise."""
    return (pixels + RNG.normal(0, sd, pixels.shape)).clip(0, 255).astype(np.uint8)


def synthetic_tissue(_: np.ndarray) -> np.ndarray:
    """Replace a patch by synthetic tissue."""
    slide = sample_slide(np.random.default_rng(RNG.integers(2**31)), "slide", 1.0)
    return synthesize_patch(RNG, slide, int(RNG.integers(2)))[0]


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "unchanged": lambda pixels: pixels,
    "JPEG of quality 20": lambda pixels: as_jpeg(pixels, 20),
    "blurred, sd 1 pixel": lambda pixels: blurred(pixels, 1),
    "blurred, sd 3 pixels": lambda pixels: blurred(pixels, 3),
    "noise added, sd 10 of 255": lambda pixels: with_noise(pixels, 10),
    "noise added, sd 40 of 255": lambda pixels: with_noise(pixels, 40),
    "half as bright": lambda pixels: pixels // 2,
    "gray": lambda pixels: np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8),
    "red and blue exchanged": lambda pixels: pixels[..., ::-1].copy(),
    "inverted": lambda pixels: 255 - pixels,
    "one color": lambda pixels: np.broadcast_to(RNG.integers(0, 256, 3, dtype=np.uint8), pixels.shape).copy(),
    "uniform noise": lambda pixels: RNG.integers(0, 256, pixels.shape, dtype=np.uint8),
    "synthetic tissue": synthetic_tissue,
}


def main() -> None:
    """Alter patches and print the out-of-distribution share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--ckpt_path", default="pcam")
    parser.add_argument("--patches", type=int, default=500)
    args = parser.parse_args()
    distance = find_feature_distance(LoadedRun.open(args.ckpt_path))
    if distance is None:
        raise SystemExit(f"{args.ckpt_path}: no features of training patches; run evaluate --abstain 0.05 first.")
    data = PCamDataModule(args.root)
    data.setup("predict")
    rows = np.sort(RNG.permutation(len(data.test_store.ids))[: args.patches])
    images = data.test_store.images[rows]
    network = load_pretrained(args.ckpt_path)
    statistics = StageStatistics(network.net, network.hparams["backbone"])
    print(
        f"{args.ckpt_path}, {len(images)} patches of each kind, {measure.machine()}\n\n"
        "| patches | out-of-distribution |\n|---|---:|"
    )
    for name, change in KINDS.items():
        changed = torch.from_numpy(np.stack([change(np.array(one)) for one in images]))
        found = []
        with torch.no_grad():
            for batch in torch.split(changed, BATCH):
                network.predict_logits(batch)
                found.append(distance(statistics.take()))
        print(f"| {name} | {(torch.cat(found) > distance.threshold).float().mean():.1%} |", flush=True)


if __name__ == "__main__":
    main()
