"""Groups of patches that look alike, as a stand-in for slides where no map to them is known.

    python benchmarks/appearance.py ROOT groups.csv [--patches 300] [--seed 42]

ROOT is in Kaggle's layout. Writes a CSV for `--data.slides` (id,wsi). What a validation by such groups is worth is
measured by `unseen_slides.py`. With `--patches 4000` a fifth of these patches looks alike, so that the one that is held
out differs from all training patches.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import MiniBatchKMeans

from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_train
from pcam_lightning.utils.atomic_io import atomic_write

PATCHES = 300  # a group, on average: slides of PatchCamelyon have about a thousand
_CHUNK = 512


def appearance_groups(images: np.ndarray, rows: np.ndarray, seed: int, patches: int = PATCHES) -> np.ndarray:
    """Group patches by their stain.

    What a laboratory and a scanner do to a slide, they do to all of its patches. Groups are smaller than slides on
    purpose: a slide that falls into several groups leaks a little, a group of several slides costs balance alone.

    Args:
        images: uint8, (M, 96, 96, 3), memory-mapped perhaps: it is read in pieces.
        rows: those to group, shape (N,).
        seed: of the clustering.
        patches: of a group, on average.

    Returns:
        The group of each patch, int64, shape (N,).
    """
    clusters = max(2, min(round(len(rows) / patches), 400))
    found = MiniBatchKMeans(clusters, batch_size=4096, n_init=3, random_state=seed).fit_predict(describe(images, rows))
    groups: np.ndarray = found.astype(np.int64)
    return groups


def describe(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Describe patches by their stain: mean, spread and extremes of the optical densities, each with deviation 1.

    Args:
        images: uint8, (M, 96, 96, 3).
        rows: those to describe, shape (N,).

    Returns:
        float32, (N, 15).
    """
    found = []
    for start in range(0, len(rows), _CHUNK):
        chunk = images[rows[start : start + _CHUNK]]
        density = -np.log((chunk[:, ::2, ::2].astype(np.float32) + 1) / 256)
        density = density.reshape(len(density), -1, 3)
        centerd = density - density.mean(axis=1, keepdims=True)
        covariance = np.einsum("npi,npj->nij", centerd, centerd)[:, *np.triu_indices(3)] / density.shape[1]
        extremes = np.percentile(density, [10, 90], axis=1).transpose(1, 0, 2).reshape(len(density), -1)
        found.append(np.hstack([density.mean(axis=1), np.sign(covariance) * np.sqrt(np.abs(covariance)), extremes]))
    features: np.ndarray = np.vstack(found).astype(np.float32)
    features -= features.mean(axis=0)
    features /= np.maximum(features.std(axis=0), 1e-6)
    return features


def write_groups(root: Path, path: Path, seed: int, patches: int = PATCHES) -> None:
    """Group the training patches of a folder and write id,wsi."""
    table = read_train(root)
    store = open_store(table, open_source(root), "train")
    group = appearance_groups(store.images, store.rows(table["id"]), seed, patches)
    rows = pd.DataFrame({"id": table["id"], "wsi": [f"group_{one:03d}" for one in group]})
    atomic_write(path, rows.to_csv(index=False, lineterminator="\n"))


def main() -> None:
    """Write the groups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--patches", type=int, default=PATCHES)
    args = parser.parse_args()
    write_groups(args.root, args.path, args.seed, args.patches)


if __name__ == "__main__":
    main()
