"""Quality checks of packed patches: black, blank, out of focus, duplicates, ids that do not match their pixels."""

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pcam_lightning.data.csv_tables import looks_like_sha1
from pcam_lightning.data.packed_store import PackedStore

# Chosen by eye on 19,171 real patches. Pixels are from 0 to 255.
BLACK = 50.0  # mean of a patch, below which there is no light: pen, the edge of a scan
BLANK = 8.0  # standard deviation of green, below which there is glass, or fat out of focus, and no tissue
BLURRED = 0.1  # sharpness below which no cell can be made out; of patches in focus it is from 2 to 11
KINDS = {
    "black": f"mean pixel below {BLACK:.0f} of 255",
    "blank": f"standard deviation of green below {BLANK:.0f} of 255",
    "out of focus": f"the Laplacian's variance below {BLURRED} of that of green, neither black nor blank",
    "copies": "the very pixels of another patch",
    "copies with another label": "the very pixels of another patch, which has another label",
    "ids that do not match": "an id that looks like a SHA-1 and is not that of the pixels",
}
_CHUNK = 1024  # patches looked at together: 28 MB


def measure_quality(store: PackedStore) -> pd.DataFrame:
    """Measure every patch of a store, with a progress bar.

    Sharpness is the variance of the Laplacian of green, a common measure of focus (Pech-Pacheco et al. 2000), over the
    variance of green itself: contrast alone does not make it high.

    Returns:
        One row a patch, in the store's order, with columns `id`, `pixel_sha1`, `brightness` (mean pixel, 0 to 255),
        `spread` (standard deviation of green) and `sharpness`.
    """
    measured = []
    with tqdm(total=len(store.images), desc="looking at patches", unit=" patches", unit_scale=True) as bar:
        for start in range(0, len(store.images), _CHUNK):
            chunk = store.images[start : start + _CHUNK].copy()
            measured.append(patch_quality(chunk))
            bar.update(len(chunk))
    columns = dict(zip(("brightness", "spread", "sharpness"), np.concatenate(measured).T, strict=True))
    return pd.DataFrame({"id": store.ids, "pixel_sha1": store.pixel_sha1, **columns})


def patch_quality(pixels: np.ndarray) -> np.ndarray:
    """Map patches, uint8 (N, 96, 96, 3), to brightness, spread and sharpness, see `measure_quality`, float32 (N, 3)."""
    image = torch.from_numpy(np.ascontiguousarray(pixels))
    brightness = image.flatten(1).sum(dim=1, dtype=torch.int32) / image[0].numel()
    green = image[..., 1].float()
    edges = -4 * green[:, 1:-1, 1:-1]
    for neighbor in (green[:, :-2, 1:-1], green[:, 2:, 1:-1], green[:, 1:-1, :-2], green[:, 1:-1, 2:]):
        edges += neighbor
    variance = green.var(dim=(1, 2))
    sharpness = edges.var(dim=(1, 2)) / variance.clamp(min=1e-6)
    measured: np.ndarray = torch.stack([brightness, variance.sqrt(), sharpness], dim=1).numpy()
    return measured


def is_blank(image: np.ndarray) -> np.ndarray:
    """Return which patches, uint8 (N, 96, 96, 3), are black or blank: their slide cannot be recognized."""
    brightness, spread, _ = patch_quality(image).T
    mask: np.ndarray = (brightness < BLACK) | (spread < BLANK)
    return mask


def find_flagged(patches: pd.DataFrame) -> pd.DataFrame:
    """List the patches that fail a quality check.

    Args:
        patches: what `measure_quality` returns, of one part or several, with a column `part`, and `label` where labels
            are known (missing elsewhere).

    Returns:
        Columns `part`, `id`, `kind` (one of `KINDS`) and `of` (the id that a copy is one of, else empty), sorted by
        kind; a patch may stand in several rows.
    """
    black = patches["brightness"] < BLACK
    blank = ~black & (patches["spread"] < BLANK)
    label = patches["label"] if "label" in patches else pd.Series(np.nan, index=patches.index)
    same = patches.assign(label=label).groupby("pixel_sha1", sort=False)
    first = same["id"].transform("first")
    copy = same["id"].transform("size") > 1
    masks = {
        "black": black,
        "blank": blank,
        "out of focus": ~black & ~blank & (patches["sharpness"] < BLURRED),
        "copies": copy & same.cumcount().gt(0),
        "copies with another label": copy & (same["label"].transform("nunique") > 1),
        "ids that do not match": looks_like_sha1(patches["id"]) & (patches["id"] != patches["pixel_sha1"]),
    }
    found = [
        patches.loc[mask, ["part", "id"]].assign(kind=kind, of=first[mask] if kind.startswith("copies") else "")
        for kind, mask in masks.items()
    ]
    return pd.concat(found, ignore_index=True)
