"""Matplotlib figures of patches: grids, top errors, augmented patches, heat maps."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.special import expit

from pcam_lightning.data.packed_store import PackedStore
from pcam_lightning.metrics.classification import top_errors
from pcam_lightning.plotting.style import styled

Array = np.ndarray
_GAP, _LINE, _INCH = 8, 10, 80  # space between patches, a line of text and an inch, in patch pixels


@styled
def patch_grid(images: Array, titles: list[str], columns: int = 8) -> Figure:
    """Plot patches, uint8 (N, 96, 96, 3), each with a title and its labeled center, 32 x 32."""
    rows = max(-(-len(images) // columns), 1)
    band = _GAP + _LINE * max((title.count("\n") + 1 for title in titles if title), default=0)
    canvas = np.full((rows * (96 + band), columns * (96 + _GAP), 3), 255, dtype=np.uint8)
    figure = Figure((canvas.shape[1] / _INCH, canvas.shape[0] / _INCH))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    squares = []
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        top, left = number // columns * (96 + band) + band, number % columns * (96 + _GAP) + _GAP // 2
        canvas[top : top + 96, left : left + 96] = image
        squares.append(Rectangle((left + 31.5, top + 31.5), 32, 32))
        axes.text(left + 47.5, top - 2, title, fontsize=7, ha="center", va="bottom")
    axes.imshow(canvas, interpolation="nearest")
    if len(images) == 0:
        axes.text(canvas.shape[1] / 2, canvas.shape[0] / 2, "none", fontsize=9, ha="center", va="center")
    for color, width in (("black", 1.6), ("#F0E442", 0.8)):
        axes.add_collection(PatchCollection(squares, facecolor="none", edgecolor=color, linewidth=width))
    return figure


def patch_titles(ids: "pd.Series[str]", logit: Array) -> list[str]:
    """Return a title for each patch: the start of its id and its tumor probability."""
    return [f"{patch_id[:12]}\n{prob:.3f}" for patch_id, prob in zip(ids, expit(logit), strict=True)]


def error_grids(
    ids: "pd.Series[str]", label: Array, logit: Array, store: PackedStore, limit: int = 16
) -> dict[str, tuple[int, Figure]]:
    """Plot the largest errors at 0.5; return the number of errors and the figure of each kind."""
    found = {}
    for kind, errors in top_errors(label, logit).items():
        first = ids.iloc[errors[:limit]]
        images = store.images[store.rows(first)]
        found[kind] = len(errors), patch_grid(images, patch_titles(first, logit[errors[:limit]]))
    return found


def augmented_grid(images: Array, unit: torch.Tensor, titles: list[str]) -> Figure:
    """Plot patches, uint8 (N, 96, 96, 3), beside augmented copies, float in [0, 1] (N, 3, 96, 96)."""
    seen = (255 * unit.permute(0, 2, 3, 1)).round().to(torch.uint8).cpu().numpy()
    return patch_grid(_beside(images, seen), [text for title in titles for text in (title, "augmented")], 10)


def heatmap_grid(images: Array, heat: Array, titles: list[str]) -> Figure:
    """Plot patches, uint8 (N, 96, 96, 3), beside their heat maps, float in [0, 1] (N, 96, 96)."""
    color = mpl.colormaps["viridis"](heat)[..., :3]
    share = 0.15 + 0.6 * heat[..., None]
    over = (255 * ((1 - share) * (images / 255) + share * color)).round().astype(np.uint8)
    return patch_grid(_beside(images, over), [text for title in titles for text in (title, "")])


def _beside(images: Array, others: Array) -> Array:
    """Interleave two arrays of shape (N, ...) into one of shape (2 N, ...)."""
    return np.stack([images, others], axis=1).reshape(-1, *images.shape[1:])
