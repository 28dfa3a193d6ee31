"""explore: write explore.html, its images, and a list of flagged patches for a data folder."""

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
from pcam_lightning.evaluation.report_page import render_template
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

_GRID = 25  # patches per image, 5 x 5
_FLAGGED = 16  # patches shown of each kind
_SAMPLE = 4000  # patches in the pixel histograms: 37 million pixels
_WIDE = 36  # maximum length of a figure title


def _slug(kind: str) -> str:
    return kind.replace(" ", "_")


# Images that some pages lack.
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
    """Write a page about a data folder: classes, patches, augmentation, colors, slides, flagged patches and t-SNE.

    Writes `explore.html`, its images, and `flagged_patches.csv` (part,id,kind,of) to the output folder.

    Args:
        config: options of a run, which set the data, the augmentation and the network.
        output: output folder; an existing page is replaced.
        augmented: number of augmented patches to show.
        points: number of patches for t-SNE.
        ckpt_path: checkpoint of the network for t-SNE; by default, the initial network of training.
        next_command: command shown in the page as the next step.

    Raises:
        UserError: the data or the checkpoint are invalid, or the folder cannot be written.
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
        model.preprocess.fit(torch.from_numpy(overview.images(overview.sample(FIT_PATCHES))))
    flagged = find_flagged(overview.patches)
    figures = {
        **_plot_patches(overview),
        **_plot_augmented(overview, augmented, Augmentation(**options["model"]["augment"]), model.preprocess),
        **_plot_charts(overview),
        **_plot_flagged(overview, flagged),
        **_plot_features(overview, model, points, network),
    }
    pictures = {name: as_png(figure) for name, figure in figures.items()}
    counts = {kind: int((flagged["kind"] == kind).sum()) for kind in KINDS}
    page = render_template(
        "explore.html",
        root=root,
        version=__version__,
        parts={part: int(count) for part, count in overview.patches["part"].value_counts(sort=False).items()},
        main=f"Sample of {next(iter(overview.stores))}",
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
    rank_zero_info(f"{output / 'flagged_patches.csv'}: {message or 'no flagged patches'}.")
    rank_zero_info(f"{output / 'explore.html'}: open it in a browser.")


def _check(output: Path) -> None:
    """Check that a folder can be created and written.

    Raises:
        UserError: the folder cannot be created or written.
    """
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"`output` {output}: cannot be created or written.")


def _write(output: Path, page: str, pictures: dict[str, bytes], flagged: pd.DataFrame) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name in _NAMES - set(pictures):  # left by an earlier page
        (output / f"{name}.png").unlink(missing_ok=True)
    for name, png in pictures.items():
        atomic_write(output / f"{name}.png", png)
    atomic_write(output / "flagged_patches.csv", flagged.to_csv(index=False, lineterminator="\n"))
    atomic_write(output / "explore.html", page)


def _load_network(options: dict[str, Any], ckpt_path: LoadedRun | Path | str | None) -> tuple[PCamClassifier, str]:
    """Return the network for t-SNE and its name."""
    if ckpt_path is not None:
        loaded = LoadedRun.open(ckpt_path)
        return loaded.classifier("none"), str(loaded.path)
    model = PCamClassifier(**options["model"])
    load_initial_weights(model, demo=is_demo_folder(options["data"]["root"]))
    start = "random" if model.init_weights == "none" else model.init_weights
    return model, f"{model.hparams['backbone']}, {start} weights"


def _titles(rows: pd.DataFrame) -> list[str]:
    return [f"{patch_id[:12]}\n{group}" for patch_id, group in zip(rows["id"], rows["group"], strict=True)]


def _plot_patches(overview: DatasetOverview) -> dict[str, Figure]:
    """Plot random patches of all groups and of each class."""
    samples = {"patches": overview.sample(_GRID)}
    for group in CLASSES:
        if (overview.rows["group"] == group).any():
            samples[f"patches_{group}"] = overview.sample(_GRID, group)
    return {name: patch_grids.patch_grid(overview.images(rows), _titles(rows), 5) for name, rows in samples.items()}


def _plot_augmented(
    overview: DatasetOverview, count: int, augmentation: Augmentation, preprocess: Preprocess
) -> dict[str, Figure]:
    """Plot random patches beside augmented copies."""
    rows = overview.sample(count)
    images = overview.images(rows)
    augmented = augment_patches(images, augmentation, preprocess)
    return {"augmented": patch_grids.augmented_grid(images, augmented, [patch_id[:12] for patch_id in rows["id"]])}


def _plot_charts(overview: DatasetOverview) -> dict[str, Figure]:
    """Plot classes, colors, brightness and slides."""
    rows = overview.rows
    sample = overview.sample(_SAMPLE)
    found = {
        "classes": plots.class_balance(overview.counts()),
        "pixels": plots.pixel_histograms(overview.images(sample), sample["group"].to_numpy()),
        "brightness": plots.brightness(rows["brightness"].to_numpy(), rows["group"].to_numpy()),
    }
    if "slide" in rows:
        found["slides"] = plots.slide_sizes(rows["slide"].to_numpy(), rows["label"].to_numpy())
    return found


def _plot_flagged(overview: DatasetOverview, flagged: pd.DataFrame) -> dict[str, Figure]:
    """Plot the first flagged patches of each kind."""
    found = {}
    for kind, rows in flagged.groupby("kind"):
        shown = rows.iloc[:_FLAGGED]
        titles = [
            f"{patch_id[:12]}\n{f'as {of[:12]}' if of and of != patch_id else part}"
            for part, patch_id, of in zip(shown["part"], shown["id"], shown["of"], strict=True)
        ]
        found[f"flagged_{_slug(str(kind))}"] = patch_grids.patch_grid(overview.images(shown), titles)
    return found


def _plot_features(overview: DatasetOverview, model: PCamClassifier, points: int, network: str) -> dict[str, Figure]:
    """Plot t-SNE of the features of random patches, by class and, if known, by slide."""
    rows = overview.sample(points)
    if len(rows) < 8:
        return {}
    rank_zero_info(f"t-SNE of the features of {len(rows):,} patches: {network}.")
    found = features(model, torch.from_numpy(overview.images(rows)))
    embedded = tsne(found)
    name = network if len(network) <= _WIDE else f"...{network[-_WIDE:]}"  # end of a checkpoint path
    title = f"t-SNE of features by {{}}\n{name}"
    figures = {"tsne_class": plots.embedding(embedded, rows["group"].to_numpy(), title.format("class"))}
    if "slide" in rows:
        figures["tsne_slide"] = plots.embedding(embedded, rows["slide"].to_numpy(), title.format("slide"))
    return figures
