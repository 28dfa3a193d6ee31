"""explore: a data folder -> explore.html, its pictures, and a list of flagged patches."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from pcam_lightning import __version__
from pcam_lightning.data.datamodule import READ_OPTIONS
from pcam_lightning.data.quality import KINDS, find_flagged
from pcam_lightning.evaluation.dataset_overview import DatasetOverview, augment_patches, read_overview
from pcam_lightning.evaluation.interpret import features, tsne
from pcam_lightning.evaluation.report import render_template
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.trained_network import FIT_PATCHES
from pcam_lightning.plotting import patch_grids, plots
from pcam_lightning.plotting.style import CLASSES, as_png, data_uri
from pcam_lightning.training.demo_run import draw_demo_data, is_demo_folder, is_synthetic, load_initial_weights
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.training.options import Config
from pcam_lightning.transforms.augment import Augmentation
from pcam_lightning.transforms.preprocess import Preprocess
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info

_GRID = 25  # patches of a picture, five by five
_FLAGGED = 16  # patches shown of each kind
_SAMPLE = 4000  # patches of the histograms of pixels: 37 million pixels
_WIDE = 36  # letters of a figure's title


def _slug(kind: str) -> str:
    return kind.replace(" ", "_")


# Pictures that not every page has.
_NAMES = {*(f"patches_{group}" for group in CLASSES), "slides", "tsne_class", "tsne_slide"}
_NAMES |= {f"flagged_{_slug(kind)}" for kind in KINDS}


def explore(
    config: Config,
    *,
    output: Path = Path("explore"),
    augmented: int = 10,
    points: int = 2000,
    ckpt_path: LoadedRun | Path | str | None = None,
    next_command: str = "",
) -> None:
    """Explore a data folder: explore.html with classes, patches, augmentation, colors, slides, flagged patches, t-SNE.

    Writes the page, each of its pictures, and `flagged_patches.csv` (part,id,kind,of) into the output folder.

    Args:
        config: options of a run: data, augmentation and network are those that it would have.
        output: folder to write into; a page there is replaced.
        augmented: augmented patches to show.
        points: patches for t-SNE.
        ckpt_path: of the network whose features are shown; by default one as training would start with.
        next_command: that the page names as the next step.

    Raises:
        UserError: the data or the checkpoint cannot be used, or the folder cannot be written.
    """
    _check(output)
    config.resolve(trains=False, what="explore")
    options = config.plain()
    root = options["data"]["root"]
    if is_demo_folder(root):
        draw_demo_data()
    model, network = _load_network(options, ckpt_path)
    data = config.data_module()
    overview = read_overview(
        data.root,
        data.slides,
        data.unknown_slides,
        data.cache_dir,
        data.split_seed,
        **{name: options["data"][name] for name in READ_OPTIONS},
    )
    if model.preprocess.needs_fit and not model.preprocess.fitted:
        model.preprocess.fit(torch.from_numpy(overview.images(overview.draw(FIT_PATCHES))))
    flagged = find_flagged(overview.patches)
    drawn = {
        **_draw_patches(overview),
        **_draw_augmented(overview, augmented, Augmentation(**options["model"]["augment"]), model.preprocess),
        **_draw_charts(overview),
        **_draw_flagged(overview, flagged),
        **_draw_features(overview, model, points, network),
    }
    pictures = {name: as_png(figure) for name, figure in drawn.items()}
    counts = {kind: int((flagged["kind"] == kind).sum()) for kind in KINDS}
    page = render_template(
        "explore.html",
        root=root,
        version=__version__,
        parts={part: int(count) for part, count in overview.patches["part"].value_counts(sort=False).items()},
        main=f"Some of {next(iter(overview.stores))}",
        groups=overview.counts(),
        slides=overview.rows["slide"].nunique() if "slide" in overview.rows else 0,
        kinds=[(kind, message, counts[kind], f"flagged_{_slug(kind)}") for kind, message in KINDS.items()],
        most=_FLAGGED,
        augmentation={name: value for name, value in options["model"]["augment"].items() if value},
        network=network,
        points=min(points, len(overview.rows)),
        pictures={name: data_uri(png) for name, png in pictures.items()},
        synthetic=is_synthetic(root),
        fit=next_command,
    )
    _write(output, page, pictures, flagged)
    message = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    rank_zero_info(f"{output / 'flagged_patches.csv'}: {message or 'no flagged patch'}.")
    rank_zero_info(f"{output / 'explore.html'}: open it in a browser.")


def _check(output: Path) -> None:
    """Check that a folder can be made and written before any work is done.

    Raises:
        UserError: it cannot.
    """
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"`output` {output}: cannot be made or written.")


def _write(output: Path, page: str, pictures: dict[str, bytes], flagged: pd.DataFrame) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name in _NAMES - set(pictures):  # of an earlier page
        (output / f"{name}.png").unlink(missing_ok=True)
    for name, png in pictures.items():
        atomic_write(output / f"{name}.png", png)
    atomic_write(output / "flagged_patches.csv", flagged.to_csv(index=False, lineterminator="\n"))
    atomic_write(output / "explore.html", page)


def _load_network(options: dict[str, Any], ckpt_path: LoadedRun | Path | str | None) -> tuple[PCamClassifier, str]:
    """Return the network whose features are shown, and its name."""
    if ckpt_path is not None:
        loaded = LoadedRun.open(ckpt_path)
        return loaded.classifier("none"), str(loaded.path)
    model = PCamClassifier(**options["model"])
    load_initial_weights(model, demo=is_demo_folder(options["data"]["root"]))
    start = "random" if model.init_weights == "none" else model.init_weights
    return model, f"{model.hparams['backbone']}, {start} weights"


def _titles(rows: pd.DataFrame) -> list[str]:
    return [f"{patch_id[:12]}\n{group}" for patch_id, group in zip(rows["id"], rows["group"], strict=True)]


def _draw_patches(overview: DatasetOverview) -> dict[str, Figure]:
    """Draw patches of all, and of each class."""
    drawn = {"patches": overview.draw(_GRID)}
    for group in CLASSES:
        if (overview.rows["group"] == group).any():
            drawn[f"patches_{group}"] = overview.draw(_GRID, group)
    return {name: patch_grids.patch_grid(overview.images(rows), _titles(rows), 5) for name, rows in drawn.items()}


def _draw_augmented(
    overview: DatasetOverview, count: int, augmentation: Augmentation, preprocess: Preprocess
) -> dict[str, Figure]:
    """Draw some patches, each above what training would make of it."""
    rows = overview.draw(count)
    images = overview.images(rows)
    augmented = augment_patches(images, augmentation, preprocess)
    return {"augmented": patch_grids.augmented_grid(images, augmented, [patch_id[:12] for patch_id in rows["id"]])}


def _draw_charts(overview: DatasetOverview) -> dict[str, Figure]:
    """Draw classes, colors, brightness and slides."""
    rows = overview.rows
    sample = overview.draw(_SAMPLE)
    found = {
        "classes": plots.class_balance(overview.counts()),
        "pixels": plots.pixel_histograms(overview.images(sample), sample["group"].to_numpy()),
        "brightness": plots.brightness(rows["brightness"].to_numpy(), rows["group"].to_numpy()),
    }
    if "slide" in rows:
        found["slides"] = plots.slide_sizes(rows["slide"].to_numpy(), rows["label"].to_numpy())
    return found


def _draw_flagged(overview: DatasetOverview, flagged: pd.DataFrame) -> dict[str, Figure]:
    """Draw some patches of each kind of flag."""
    found = {}
    for kind, rows in flagged.groupby("kind"):
        shown = rows.iloc[:_FLAGGED]
        titles = [
            f"{patch_id[:12]}\n{f'as {of[:12]}' if of and of != patch_id else part}"
            for part, patch_id, of in zip(shown["part"], shown["id"], shown["of"], strict=True)
        ]
        found[f"flagged_{_slug(str(kind))}"] = patch_grids.patch_grid(overview.images(shown), titles)
    return found


def _draw_features(overview: DatasetOverview, model: PCamClassifier, points: int, network: str) -> dict[str, Figure]:
    """Draw t-SNE of what the network makes of some patches, by class, and by slide where slides are known."""
    rows = overview.draw(points)
    if len(rows) < 8:
        return {}
    rank_zero_info(f"t-SNE of {len(rows):,} patches' features: {network}.")
    found = features(model, torch.from_numpy(overview.images(rows)))
    embedded = tsne(found)
    name = network if len(network) <= _WIDE else f"...{network[-_WIDE:]}"  # of a checkpoint the path's end
    title = f"t-SNE of features by {{}}\n{name}"
    drawn = {"tsne_class": plots.embedding(embedded, rows["group"].to_numpy(), title.format("class"))}
    if "slide" in rows:
        drawn["tsne_slide"] = plots.embedding(embedded, rows["slide"].to_numpy(), title.format("slide"))
    return drawn
