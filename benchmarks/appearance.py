"""Group similar patches as a substitute for unknown slides.

    python benchmarks/appearance.py ROOT groups.csv [--patches 300] [--seed 42]

ROOT has Kaggle's layout. Writes a CSV file for `--data.slides` (id,wsi). `unseen_slides.py` measures how well
validation on such groups predicts scores on unseen slides. With `--patches 4000`, there are about five groups, and a
held-out group differs from all training patches.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import MiniBatchKMeans

from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_train
from pcam_lightning.utils.atomic_io import atomic_write

PATCHES = 300  # average group size; slides of PatchCamelyon have about a thousand patches
_CHUNK = 512


def appearance_groups(images: np.ndarray, rows: np.ndarray, seed: int, patches: int = PATCHES) -> np.ndarray:
    """Cluster patches by their stain, which is similar within a slide.

    Groups are smaller than slides. A slide in several groups leaks a little, while several slides in a group only
    affect the class balance.

    Args:
        images: patches, uint8 (M, 96, 96, 3), read in chunks if memory-mapped.
        rows: rows to group, shape (N,).
        seed: random seed for the clustering.
        patches: average group size.

    Returns:
        Group of each patch, int64 (N,).
    """
    clusters = max(2, min(round(len(rows) / patches), 400))
    found = MiniBatchKMeans(clusters, batch_size=4096, n_init=3, random_state=seed).fit_predict(describe(images, rows))
    groups: np.ndarray = found.astype(np.int64)
    return groups


def describe(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return stain features: mean, standard deviation and extremes of optical densities, scaled to unit variance.

    Args:
        images: patches, uint8 (M, 96, 96, 3).
        rows: rows to describe, shape (N,).

    Returns:
        Features, float32 (N, 15).
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
