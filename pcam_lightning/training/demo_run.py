"""The demo run: where there are no data, the whole recipe runs on synthetic tissue."""

from pathlib import Path

import filelock
from jsonargparse import Namespace

from pcam_lightning import __version__
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.pretrained import WeightsUnavailable
from pcam_lightning.synthetic.kaggle_folder import MARK, synthesize
from pcam_lightning.utils.atomic_io import cache_folder
from pcam_lightning.utils.errors import rank_zero_info, rank_zero_warn

TRAIN, TEST = 1500, 500  # patches; 15 epochs of ResNet-18 take under four minutes on two slow CPU cores
BATCH = 64  # 1,200 training patches make 18 steps an epoch with it, and 2 with the recipe's 512
NOT_REAL = "Its scores say nothing about real patches."


def demo_folder() -> Path:
    """Return the folder of the synthetic tissue, where `predict` finds it again; it may not be there yet."""
    return (cache_folder() / f"demo-{__version__}").absolute()


def is_demo_folder(root: Path | str) -> bool:
    """Return whether a data folder is the demo run's own."""
    return Path(root) == demo_folder()


def is_synthetic(root: Path | str) -> bool:
    """Return whether a data folder holds synthetic tissue: the demo run's, or what `synthesize` drew."""
    folder = Path(root).parent if Path(root).is_file() else Path(root)
    return is_demo_folder(root) or (folder / MARK).is_file()


def use_demo_data(data: Namespace, name: str, *, trains: bool) -> None:
    """Set the data options to synthetic tissue, with a message.

    Args:
        data: options of `PCamDataModule`; `root` and `batch_size` may change.
        name: of what is run.
        trains: whether a network is trained.
    """
    data.root = demo_folder()
    if not trains:
        rank_zero_info(
            f"NO DATA: no folder data/ here and no `data.root`, so this is synthetic tissue, in {data.root}."
        )
        return
    rank_zero_info(
        f"NO DATA: no folder data/ here and no `data.root`, so this is a demo run of {name} on synthetic "
        f"tissue in {data.root}. {NOT_REAL}"
    )
    if data.batch_size > BATCH:
        rank_zero_info(f"Demo run: batch size {BATCH} instead of {data.batch_size}, for enough steps.")
        data.batch_size = BATCH


def draw_demo_data() -> None:
    """Draw the tissue, unless it is there; of several processes one draws and the others wait."""
    root = demo_folder()
    if root.is_dir():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root.with_name(f"{root.name}.lock")):
        if not root.is_dir():
            synthesize(root, train=TRAIN, test=TEST)


def load_initial_weights(model: PCamClassifier, *, demo: bool) -> None:
    """Load the weights that a network starts from; in a demo run alone, random ones where ImageNet's cannot be had.

    Raises:
        UserError: see `backbone.load_weights`.
    """
    try:
        model.load_pretrained()
    except WeightsUnavailable as error:
        if not demo:
            raise
        rank_zero_warn(f"{error} In this demo run alone the network starts from random weights instead.")
        model.weights = "none"
        model.load_pretrained()
