"""explain: where in its most wrong patches, or in chosen ones, a run's network finds tumour."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pcam_lightning.checkpoint import read_checkpoint
from pcam_lightning.classifier import PCamClassifier
from pcam_lightning.features import cam_layer, grad_cam, share_inside, told_inside
from pcam_lightning.files import write_whole
from pcam_lightning.grids import heat_grid, told
from pcam_lightning.judged import read_judged
from pcam_lightning.messages import UserError, say
from pcam_lightning.run import Run
from pcam_lightning.scores import most_wrong
from pcam_lightning.stages import load_classifier
from pcam_lightning.store import Store
from pcam_lightning.style import CLASSES, as_png


def explain(
    run: Path,
    ids: str | None = None,
    patches: int = 16,
    sample: int = 500,
    layer: str | None = None,
    root: Path | None = None,
    seed: int = 0,
) -> None:
    """Show by Grad-CAM where a run's best network finds tumour in patches that it was validated on.

    Writes `explain_false_tumour.png` and `explain_false_normal.png`, the most wrong patches of each kind, or
    `explain_ids.png`, and of a random sample `explain.csv` (id,label,logit,inside), into the run. `inside` is the share
    of the heat that lies in the centre 32 x 32, which the label is about: a ninth of heat that is the same everywhere.

    Args:
        run: its folder; its best checkpoint is validated again.
        ids: patches of the validation part to show instead of the most wrong ones, with commas between.
        patches: how many of each kind of mistake are shown.
        sample: how many patches the share is measured on, drawn from the validation part.
        layer: of the network, by its name; by default the last one whose map has six cells a side.
        root: data folder, where it has moved since the run.
        seed: of the sample.
    """
    for name, value in (("patches", patches), ("sample", sample)):
        if value < 1:
            raise UserError(f"--{name} {value}: should be at least 1.")
    if not Run(run).config.is_file():
        raise UserError(f"{run}: not the folder of a run: it has no config.yaml.")
    wanted = [] if ids is None else ids.split(",")
    if Run(run).split.is_file():  # before it is validated for nothing
        part = pd.read_csv(Run(run).split, dtype=str).set_index("id")["split"]
        if unknown := sorted(set(wanted) - set(part.index[part == "val"])):
            raise UserError(f"--ids: {unknown[0]}: not in the validation part; {Run(run).split} lists it.")
    judged = read_judged(run, None, None, root)
    rows, data = judged.rows, judged.data
    if judged.made_by is None or data is None or data.train_store is None:
        raise UserError(f"{run}: of a cross-validation, name one of its folds: {run / 'fold_0'}.")
    checkpoint = Run(run).best if judged.chosen_by_these else Run(run).last
    model = load_classifier(checkpoint, read_checkpoint(checkpoint), None)
    if ids is None:
        wrong = most_wrong(rows["label"].to_numpy(), rows["logit"].to_numpy())
        kinds = ("false_tumour", "false_normal")
        places = {kind: found[:patches] for kind, found in zip(kinds, wrong.values(), strict=True)}
    else:
        places = {"ids": np.flatnonzero(rows["id"].isin(wanted))}
    layer = layer or cam_layer(model, torch.zeros(1, 96, 96, 3, dtype=torch.uint8))
    say(f"Grad-CAM of {checkpoint}, {layer}.")
    for name, chosen in places.items():
        if len(chosen):
            shown = rows.iloc[chosen]
            images = data.train_store.images[data.train_store.rows(shown["id"])]
            heat = grad_cam(model, torch.from_numpy(images), layer)
            titles = [
                f"{title}, {share}"
                for title, share in zip(told(shown["id"], shown["logit"].to_numpy()), told_inside(heat), strict=True)
            ]
            path = run / f"explain_{name}.png"
            write_whole(path, as_png(heat_grid(images, heat, titles)))
            say(f"{path}: {len(shown):,} patches.")
    _measure(run, data.train_store, model, rows.iloc[_drawn(len(rows), sample, seed)], layer)


def _drawn(count: int, sample: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(count)[:sample])


def _measure(run: Path, store: Store, model: PCamClassifier, rows: pd.DataFrame, layer: str) -> None:
    """Write how much of the heat lies in the centre of each patch, and say what it comes to."""
    images = store.images[store.rows(rows["id"])]
    inside = share_inside(grad_cam(model, torch.from_numpy(images), layer))
    path = run / "explain.csv"
    write_whole(path, rows[["id", "label", "logit"]].assign(inside=inside).to_csv(index=False, lineterminator="\n"))
    for value, name in enumerate(CLASSES):
        share = inside[(rows["label"] == value) & np.isfinite(inside)]
        if len(share) > 1:
            spread = f"mean {share.mean():.1%}, sd {share.std(ddof=1):.1%}, n = {len(share):,}"
            say(f"{name}: heat in the centre 32 x 32: {spread}; {1 / 9:.1%} if it were everywhere the same.")
    say("More than that: it looks at the square that the label is about. Less: at what surrounds it.")
    blank, called = np.isnan(inside), (rows["logit"] > 0).to_numpy()
    say(
        f"{path}: {len(rows):,} patches; {int(blank.sum()):,} have no heat in {layer}, among them "
        f"{int((blank & called).sum()):,} of the {int(called.sum()):,} that are called tumour."
    )
    if (blank & called).sum() > called.sum() / 10:
        say("Of those this layer does not tell why: what is made of it further up does. --layer names another one.")
