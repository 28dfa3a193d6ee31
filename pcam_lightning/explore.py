"""explore: a data folder -> explore.html, its pictures, and a list of odd patches."""

import os
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jsonargparse.typing import PositiveInt
from matplotlib.figure import Figure

from pcam_lightning import __version__, figures, grids
from pcam_lightning.augment import Augmentation
from pcam_lightning.checkpoint import read_checkpoint
from pcam_lightning.classifier import MEASURED, PCamClassifier
from pcam_lightning.features import features, spread_out
from pcam_lightning.files import write_whole
from pcam_lightning.look import Look, augmented, look
from pcam_lightning.messages import UserError, say
from pcam_lightning.page import lay_out
from pcam_lightning.parser import Study
from pcam_lightning.quality import KINDS, find_odd
from pcam_lightning.rehearsal import draw_rehearsal, is_drawn, is_rehearsal, load_start
from pcam_lightning.stages import PROG, load_classifier
from pcam_lightning.style import CLASSES, as_address, as_png
from pcam_lightning.sweep import open_data

_GRID = 25  # patches of a picture, five by five
_ODD = 16  # patches shown of each kind
_SAMPLE = 4000  # patches of the histograms of pixels: 37 million pixels
_WIDE = 36  # letters of a figure's title


def _slug(kind: str) -> str:
    return kind.replace(" ", "_")


# Pictures that not every page has.
_NAMES = {*(f"patches_{group}" for group in CLASSES), "slides", "tsne_class", "tsne_slide"}
_NAMES |= {f"odd_{_slug(kind)}" for kind in KINDS}


def explore(config: dict[str, Any], runs: Path, **options: Any) -> None:
    """Look at a data folder: explore.html with classes, patches, augmentation, colours, slides, odd patches, t-SNE.

    Writes the page, each of its pictures, and `odd_patches.csv` (part,id,kind,of) into the output folder.

    Args:
        config: options of `fit`: data, augmentation and network are those that it would have, but for weights, which
            are random unless they are named.
        runs: not used; nothing is trained.
        options: `output`, the folder to write into; `augmented`, how many augmented patches are shown; `points`, how
            many patches t-SNE takes.
    """
    output: Path = options["output"]
    _check(output)
    root = str(config["data"]["root"])
    rehearses = is_rehearsal(root)
    if rehearses:
        draw_rehearsal()
    model, network = _load_network(config)
    data = open_data(config["data"])
    looked = look(data.root, data.slides, data.unknown_slides, data.cache_dir, data.split_seed)
    if model.preprocess.measures and not model.preprocess.measured:
        model.preprocess.measure(torch.from_numpy(looked.images(looked.draw(MEASURED))))
    odd = find_odd(looked.patches)
    how = Augmentation(**config["model"]["augment"])
    shown = looked.draw(options["augmented"])
    images = looked.images(shown)
    drawn = {
        **_draw_patches(looked),
        "augmented": grids.augmented_grid(
            images,
            augmented(images, how, model.preprocess),
            [patch_id[:12] for patch_id in shown["id"]],
        ),
        **_draw_charts(looked),
        **_draw_odd(looked, odd),
        **_draw_features(looked, model, options["points"], network),
    }
    pictures = {name: as_png(figure) for name, figure in drawn.items()}
    counts = {kind: int((odd["kind"] == kind).sum()) for kind in KINDS}
    page = lay_out(
        "explore.html",
        root=root,
        version=__version__,
        parts={part: int(count) for part, count in looked.patches["part"].value_counts(sort=False).items()},
        main=f"Some of {next(iter(looked.stores))}",
        groups=looked.counts(),
        slides=looked.rows["slide"].nunique() if "slide" in looked.rows else 0,
        kinds=[(kind, told, counts[kind], f"odd_{_slug(kind)}") for kind, told in KINDS.items()],
        most=_ODD,
        augmentation={name: value for name, value in config["model"]["augment"].items() if value},
        network=network,
        points=min(options["points"], len(looked.rows)),
        pictures={name: as_address(png) for name, png in pictures.items()},
        drawn=is_drawn(root),
        fit=f"{PROG} fit -c configs/base.yaml" + ("" if rehearses else f" --data.root {shlex.quote(root)}"),
    )
    output.mkdir(parents=True, exist_ok=True)
    for name in _NAMES - set(pictures):  # of an earlier page
        (output / f"{name}.png").unlink(missing_ok=True)
    for name, png in pictures.items():
        write_whole(output / f"{name}.png", png)
    write_whole(output / "odd_patches.csv", odd.to_csv(index=False, lineterminator="\n"))
    write_whole(output / "explore.html", page)
    told = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    say(f"{output / 'odd_patches.csv'}: {told or 'no odd patch'}.")
    say(f"{output / 'explore.html'}: open it in a browser.")


def _check(output: Path) -> None:
    """Refuse a folder that cannot be made or written before any work is done.

    Raises:
        UserError: it cannot.
    """
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--output {output}: cannot be made or written.")


def _load_network(config: dict[str, Any]) -> tuple[PCamClassifier, str]:
    """Return the network whose features are looked at, and what it is called."""
    if config["ckpt_path"] is not None:
        path = Path(config["ckpt_path"])
        return load_classifier(path, read_checkpoint(path), "none"), str(path)
    model = PCamClassifier(**config["model"])
    load_start(model, rehearses=is_rehearsal(config["data"]["root"]))
    start = "random" if model.started_from == "none" else model.started_from
    return model, f"{model.hparams['backbone']}, {start} weights"


def _titles(rows: pd.DataFrame) -> list[str]:
    return [f"{patch_id[:12]}\n{group}" for patch_id, group in zip(rows["id"], rows["group"], strict=True)]


def _draw_patches(looked: Look) -> dict[str, Figure]:
    """Draw patches of all, and of each class."""
    drawn = {"patches": looked.draw(_GRID)}
    for group in CLASSES:
        if (looked.rows["group"] == group).any():
            drawn[f"patches_{group}"] = looked.draw(_GRID, group)
    return {name: grids.patch_grid(looked.images(rows), _titles(rows), 5) for name, rows in drawn.items()}


def _draw_charts(looked: Look) -> dict[str, Figure]:
    """Draw classes, colours, brightness and slides."""
    rows = looked.rows
    sample = looked.draw(_SAMPLE)
    found = {
        "classes": figures.class_balance(looked.counts()),
        "pixels": figures.pixel_histograms(looked.images(sample), sample["group"].to_numpy()),
        "brightness": figures.brightness(rows["brightness"].to_numpy(), rows["group"].to_numpy()),
    }
    if "slide" in rows:
        found["slides"] = figures.slide_sizes(rows["slide"].to_numpy(), rows["label"].to_numpy())
    return found


def _draw_odd(looked: Look, odd: pd.DataFrame) -> dict[str, Figure]:
    """Draw some patches of each odd kind."""
    found = {}
    for kind, rows in odd.groupby("kind"):
        some = rows.iloc[:_ODD]
        titles = [
            f"{patch_id[:12]}\n{f'as {of[:12]}' if of and of != patch_id else part}"
            for part, patch_id, of in zip(some["part"], some["id"], some["of"], strict=True)
        ]
        found[f"odd_{_slug(str(kind))}"] = grids.patch_grid(looked.images(some), titles)
    return found


def _draw_features(looked: Look, model: PCamClassifier, points: int, network: str) -> dict[str, Figure]:
    """Draw t-SNE of what the network makes of some patches, by class, and by slide where slides are known."""
    rows = looked.draw(points)
    if len(rows) < 8:
        return {}
    say(f"t-SNE of {len(rows):,} patches' features: {network}.")
    found = features(model, torch.from_numpy(looked.images(rows)))
    places = spread_out(found)
    name = network if len(network) <= _WIDE else f"...{network[-_WIDE:]}"  # of a checkpoint the path's end
    title = f"t-SNE of features by {{}}\n{name}"
    drawn = {"tsne_class": figures.embedding(places, rows["group"].to_numpy(), title.format("class"))}
    if "slide" in rows:
        drawn["tsne_slide"] = figures.embedding(places, rows["slide"].to_numpy(), title.format("slide"))
    return drawn


EXPLORE = Study(
    explore,
    {
        "output": {"type": Path, "default": Path("explore"), "help": "Folder to write into; it replaces a page there."},
        "augmented": {"type": PositiveInt, "default": 10, "help": "Augmented patches shown, beside what they were."},
        "points": {"type": PositiveInt, "default": 2000, "help": "Patches that t-SNE takes."},
    },
    defaults={"model.weights": "none"},
    trains=False,
)
