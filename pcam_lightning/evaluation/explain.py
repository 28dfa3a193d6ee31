"""explain: where in its top errors, or in chosen patches, a run's network finds tumor."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pcam_lightning.data.csv_tables import read_csv
from pcam_lightning.data.packed_store import PackedStore
from pcam_lightning.evaluation.interpret import cam_layer, center_heat_fraction, center_heat_labels, grad_cam
from pcam_lightning.evaluation.labeled_predictions import open_target, read_labeled_predictions
from pcam_lightning.metrics.classification import top_errors
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.plotting.patch_grids import heatmap_grid, patch_titles
from pcam_lightning.plotting.style import CLASSES, as_png
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info


def explain(
    run: Path,
    ids: str | None = None,
    patches: int = 16,
    sample: int = 500,
    layer: str | None = None,
    root: Path | None = None,
    seed: int = 0,
) -> None:
    """Show by Grad-CAM where a run's best network finds tumor in patches that it was validated on.

    Writes `explain_false_tumor.png` and `explain_false_normal.png`, the top errors of each kind, or
    `explain_ids.png`, and of a random sample `explain.csv` (id,label,logit,inside), into the run. `inside` is the share
    of the heat that lies in the center 32 x 32, which the label is about: a ninth of heat that is the same everywhere.

    Args:
        run: its folder, whose best checkpoint is validated again; or pcam or pcam-small, the networks that come with
            the package, with `root`.
        ids: patches of the validation part to show instead of the top errors, separated by commas.
        patches: how many of each kind of mistake are shown.
        sample: how many patches the share is measured on, drawn from the validation part.
        layer: of the network, by its name; by default the last one whose map has six cells a side.
        root: data folder, where it has moved since the run.
        seed: of the sample.
    """
    for name, value in (("patches", patches), ("sample", sample)):
        if value < 1:
            raise UserError(f"`{name}` {value}: should be at least 1.")
    loaded = open_target(run)
    if not isinstance(loaded, LoadedRun):
        hint = f": it is a cross-validation; name one of its folds: {run / 'fold_0'}" if run.is_dir() else ""
        raise UserError(f"{run}: not the folder of a run{hint}.")
    wanted = [] if ids is None else ids.split(",")
    _check_ids(wanted, loaded.run.split)
    predictions = read_labeled_predictions(loaded, None, None, root)
    rows, data = predictions.rows, predictions.data
    assert data is not None  # the run has been validated
    if unknown := sorted(set(wanted) - set(rows["id"])):
        raise UserError(f"`ids`: {unknown[0]}: none of the patches that the network was validated on.")
    folder, model = loaded.run.folder, loaded.classifier()
    if ids is None:
        errors = top_errors(rows["label"].to_numpy(), rows["logit"].to_numpy())
        names = ("false_tumor", "false_normal")
        groups = {kind: found[:patches] for kind, found in zip(names, errors.values(), strict=True)}
    else:
        groups = {"ids": np.flatnonzero(rows["id"].isin(wanted))}
    layer = layer or cam_layer(model, torch.zeros(1, 96, 96, 3, dtype=torch.uint8))
    rank_zero_info(f"Grad-CAM of {loaded.path}, {layer}.")
    for name, chosen in groups.items():
        if len(chosen):
            _draw(folder / f"explain_{name}.png", data.train_store, model, rows.iloc[chosen], layer)
    _measure(folder, data.train_store, model, rows.iloc[_drawn(len(rows), sample, seed)], layer)


def _check_ids(wanted: list[str], split: Path) -> None:
    """Check that patches are in the validation part, before the run is validated for nothing.

    Raises:
        UserError: one is not.
    """
    if not split.is_file():
        return
    part = read_csv(split, ("id", "split"), keep_suffix=True).set_index("id")["split"]
    if unknown := sorted(set(wanted) - set(part.index[part == "val"])):
        raise UserError(f"`ids`: {unknown[0]}: not in the validation part; {split} lists it.")


def _draw(path: Path, store: PackedStore, model: PCamClassifier, rows: pd.DataFrame, layer: str) -> None:
    """Draw patches and where the network finds tumor in them."""
    images = store.images[store.rows(rows["id"])]
    heat = grad_cam(model, torch.from_numpy(images), layer)
    titles = zip(patch_titles(rows["id"], rows["logit"].to_numpy()), center_heat_labels(heat), strict=True)
    atomic_write(path, as_png(heatmap_grid(images, heat, [f"{title}, {share}" for title, share in titles])))
    rank_zero_info(f"{path}: {len(rows):,} patches.")


def _drawn(count: int, sample: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(count)[:sample])


def _measure(folder: Path, store: PackedStore, model: PCamClassifier, rows: pd.DataFrame, layer: str) -> None:
    """Write how much of the heat lies in the center of each patch, and say what it comes to."""
    images = store.images[store.rows(rows["id"])]
    inside = center_heat_fraction(grad_cam(model, torch.from_numpy(images), layer))
    path = folder / "explain.csv"
    atomic_write(path, rows[["id", "label", "logit"]].assign(inside=inside).to_csv(index=False, lineterminator="\n"))
    for value, name in enumerate(CLASSES):
        share = inside[(rows["label"] == value) & np.isfinite(inside)]
        if len(share) > 1:
            spread = f"mean {share.mean():.1%}, sd {share.std(ddof=1):.1%}, n = {len(share):,}"
            rank_zero_info(f"{name}: heat in the center 32 x 32: {spread}; {1 / 9:.1%} if it were everywhere the same.")
    rank_zero_info("More than that: it looks at the square that the label is about. Less: at what surrounds it.")
    blank, called = np.isnan(inside), (rows["logit"] > 0).to_numpy()
    rank_zero_info(
        f"{path}: {len(rows):,} patches; {int(blank.sum()):,} have no heat in {layer}, among them "
        f"{int((blank & called).sum()):,} of the {int(called.sum()):,} that are called tumor."
    )
    if (blank & called).sum() > called.sum() / 10:
        rank_zero_info("This layer does not explain these predictions; choose a later one with `layer`.")
