"""explain: Grad-CAM of the top errors, or of chosen patches, of a run."""

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
    """Show by Grad-CAM where the best network of a run finds tumor in validation patches.

    Writes to the run folder `explain_false_tumor.png` and `explain_false_normal.png` (top errors of each kind) or
    `explain_ids.png`, and `explain.csv` (id,label,logit,inside) for a random sample. `inside` is the share of heat in
    the labeled center, 32 x 32. Uniform heat gives 1/9.

    Args:
        run: folder of a run, whose best checkpoint is validated again; or pcam or pcam-small (included in the package;
            requires `root`).
        ids: validation patches to show instead of the top errors, separated by commas.
        patches: number of errors of each kind to show.
        sample: number of validation patches to sample for `explain.csv`.
        layer: name of a network layer; by default the last layer with a feature map of at least 6 x 6.
        root: data folder, if it has moved since the run.
        seed: random seed for the sample.
    """
    for name, value in (("patches", patches), ("sample", sample)):
        if value < 1:
            raise UserError(f"`{name}` {value}: should be at least 1.")
    loaded = open_target(run)
    if not isinstance(loaded, LoadedRun):
        hint = f" but of a cross-validation; use one of its folds, such as {run / 'fold_0'}" if run.is_dir() else ""
        raise UserError(f"{run}: not the folder of a run{hint}.")
    wanted = [] if ids is None else ids.split(",")
    _check_ids(wanted, loaded.run.split)
    predictions = read_labeled_predictions(loaded, None, None, root)
    rows, data = predictions.rows, predictions.data
    assert data is not None  # the run was validated
    if unknown := sorted(set(wanted) - set(rows["id"])):
        raise UserError(f"`ids`: {unknown[0]}: not one of the validation patches.")
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
            _plot(folder / f"explain_{name}.png", data.train_store, model, rows.iloc[chosen], layer)
    _measure(folder, data.train_store, model, rows.iloc[_sample_rows(len(rows), sample, seed)], layer)


def _check_ids(wanted: list[str], split: Path) -> None:
    """Check that patches are in the validation split before the run is validated.

    Raises:
        UserError: a patch is not in the validation split.
    """
    if not split.is_file():
        return
    splits = read_csv(split, ("id", "split"), keep_suffix=True).set_index("id")["split"]
    if unknown := sorted(set(wanted) - set(splits.index[splits == "val"])):
        raise UserError(f"`ids`: {unknown[0]}: not in the validation split; see {split}.")


def _plot(path: Path, store: PackedStore, model: PCamClassifier, rows: pd.DataFrame, layer: str) -> None:
    """Plot patches beside their Grad-CAM heat maps."""
    images = store.images[store.rows(rows["id"])]
    heat = grad_cam(model, torch.from_numpy(images), layer)
    titles = zip(patch_titles(rows["id"], rows["logit"].to_numpy()), center_heat_labels(heat), strict=True)
    atomic_write(path, as_png(heatmap_grid(images, heat, [f"{title}, {share}" for title, share in titles])))
    rank_zero_info(f"{path}: {len(rows):,} {'patch' if len(rows) == 1 else 'patches'}.")


def _sample_rows(count: int, sample: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(count)[:sample])


def _measure(folder: Path, store: PackedStore, model: PCamClassifier, rows: pd.DataFrame, layer: str) -> None:
    """Write the share of heat in the center of each patch, and print a summary."""
    images = store.images[store.rows(rows["id"])]
    inside = center_heat_fraction(grad_cam(model, torch.from_numpy(images), layer))
    path = folder / "explain.csv"
    atomic_write(path, rows[["id", "label", "logit"]].assign(inside=inside).to_csv(index=False, lineterminator="\n"))
    for value, name in enumerate(CLASSES):
        share = inside[(rows["label"] == value) & np.isfinite(inside)]
        if len(share) > 1:
            summary = f"mean {share.mean():.1%}, sd {share.std(ddof=1):.1%}, n = {len(share):,}"
            rank_zero_info(f"{name}: share of heat in the center 32 x 32: {summary}; {1 / 9:.1%} for uniform heat.")
    rank_zero_info("A larger share means that the network uses the labeled center; a smaller share, its surroundings.")
    blank, called = np.isnan(inside), (rows["logit"] > 0).to_numpy()
    rank_zero_info(
        f"{path}: {len(rows):,} patches, {int(blank.sum()):,} without heat in {layer}, including "
        f"{int((blank & called).sum()):,} of {int(called.sum()):,} called tumor."
    )
    if (blank & called).sum() > called.sum() / 10:
        rank_zero_info("This layer does not explain the predictions; choose a later one with `layer`.")
