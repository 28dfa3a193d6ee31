"""Commands beside the stages: functions with options of their own, and studies that take those of fit."""

from pathlib import Path

from pcam_lightning.ablate import ABLATE
from pcam_lightning.compare import compare
from pcam_lightning.crossval import CROSSVAL
from pcam_lightning.curves import curves
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.evaluate import evaluate
from pcam_lightning.explain import explain
from pcam_lightning.explore import EXPLORE
from pcam_lightning.layout import parts
from pcam_lightning.messages import say
from pcam_lightning.parser import Studies, Tools
from pcam_lightning.slides import slides
from pcam_lightning.synthetic import synthesize


def pack(root: Path = Path("data"), cache_dir: Path | None = None, verify: bool = False) -> None:
    """Pack the images of a data folder, as the first fit and the first predict would; say what is there.

    Args:
        root: data folder in Kaggle's layout; one that has only test/ is packed too.
        cache_dir: folder for the packed images; by default .pcam_cache in the data folder.
        verify: hash all packed pixels and image files, pack again where they differ, and stop where pixels are not what
            the ids say (Kaggle's ids are the SHA-1 of the pixels).
    """
    data = PCamDataModule(root, val_fraction=0, cache_dir=cache_dir, verify=verify)
    for part in parts(root):
        data.setup({"train": "fit", "test": "predict"}[part])
        store = data.train_store if part == "train" else data.test_store
        assert store is not None
        distinct = len(set(store.pixel_sha1))
        say(f"{part}: {len(store.ids):,} patches, {distinct:,} distinct, in {store.path}.")


TOOLS: Tools = {
    "evaluate": evaluate,
    "compare": compare,
    "curves": curves,
    "explain": explain,
    "slides": slides,
    "pack": pack,
    "synthesize": synthesize,
}
STUDIES: Studies = {"crossval": CROSSVAL, "ablate": ABLATE, "explore": EXPLORE}
