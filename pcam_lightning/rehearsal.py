"""The rehearsal: where there is no data, the whole recipe runs on drawn tissue."""

from pathlib import Path

import filelock
from jsonargparse import Namespace

from pcam_lightning import __version__
from pcam_lightning.backbone import WeightsUnavailable
from pcam_lightning.classifier import PCamClassifier
from pcam_lightning.files import cache_folder
from pcam_lightning.messages import say, warn
from pcam_lightning.synthetic import MARK, synthesize

BATCH = 64  # 2,000 drawn patches make 25 steps an epoch with it, and 4 with the recipe's 512
NOTHING_REAL = "Its scores say nothing about real patches."


def rehearsal_folder() -> Path:
    """Return the folder of the drawn tissue, where `predict` finds it again; it may not be there yet."""
    return (cache_folder() / f"rehearsal-{__version__}").absolute()


def is_rehearsal(root: Path | str) -> bool:
    """Tell whether a data folder is the rehearsal's own."""
    return Path(root) == rehearsal_folder()


def is_drawn(root: Path | str) -> bool:
    """Tell whether a data folder holds drawn tissue: the rehearsal's, or what `synthesize` drew."""
    return is_rehearsal(root) or (Path(root) / MARK).is_file()


def rehearse(data: Namespace, name: str, *, looks: bool) -> None:
    """Point the options of the data at drawn tissue, and say so.

    Args:
        data: options of `PCamDataModule`; `root` and `batch_size` may change.
        name: of what is rehearsed.
        looks: whether the command only looks at the data.
    """
    data.root = rehearsal_folder()
    if looks:
        say(f"NO DATA: no folder data/ here and no --data.root, so this is drawn tissue, in {data.root}.")
        return
    say(
        f"NO DATA: no folder data/ here and no --data.root, so this is a rehearsal of {name} on drawn tissue in "
        f"{data.root}. {NOTHING_REAL}"
    )
    if data.batch_size > BATCH:
        say(f"Rehearsal: batch size {BATCH} instead of {data.batch_size}, for enough steps.")
        data.batch_size = BATCH


def draw_rehearsal() -> None:
    """Draw the tissue, unless it is there; of several processes one draws and the others wait."""
    root = rehearsal_folder()
    if root.is_dir():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root.with_name(f"{root.name}.lock")):
        if not root.is_dir():
            synthesize(root)


def load_start(model: PCamClassifier, *, rehearses: bool) -> None:
    """Load the weights that a network starts from; in a rehearsal alone, random ones where ImageNet's cannot be had.

    Raises:
        UserError: see `backbone.load_weights`.
    """
    try:
        model.load_start()
    except WeightsUnavailable as error:
        if not rehearses:
            raise
        warn(f"{error} In this rehearsal alone the network starts from random weights instead.")
        model.weights = "none"
        model.load_start()
