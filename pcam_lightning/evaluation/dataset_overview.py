"""Quality of all patches of a data folder, and random samples, for the explore page and the notebooks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.packed_store import PackedStore
from pcam_lightning.data.quality import measure_quality
from pcam_lightning.data.sources import parts
from pcam_lightning.plotting.style import CLASSES
from pcam_lightning.transforms.augment import Augmentation, augment
from pcam_lightning.transforms.preprocess import Preprocess


@dataclass(frozen=True)
class DatasetOverview:
    """Contents of a data folder.

    Attributes:
        stores: packed images of train, test or both, by name.
        patches: all patches: `part` (train or test), `id`, `group` (normal, tumor or unlabeled), the columns of
            `measure_quality` and, if known, `label` and `slide`.
        rows: the patches of train, or of test without train.
        rng: random generator for samples.
    """

    stores: dict[str, PackedStore]
    patches: pd.DataFrame
    rows: pd.DataFrame
    rng: np.random.Generator

    def counts(self) -> dict[str, int]:
        """Return the number of patches of each group."""
        counts = self.patches["group"].value_counts()
        return {group: int(counts[group]) for group in (*CLASSES, "unlabeled") if group in counts}

    def sample(self, count: int, group: str | None = None) -> pd.DataFrame:
        """Sample up to `count` of the rows, from one group or from all."""
        rows = self.rows if group is None else self.rows[self.rows["group"] == group]
        return rows.iloc[np.sort(self.rng.permutation(len(rows))[:count])]

    def images(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the pixels of rows of train or test, uint8 (N, 96, 96, 3)."""
        pixels = np.empty((len(rows), 96, 96, 3), dtype=np.uint8)
        for part, store in self.stores.items():
            chosen = (rows["part"] == part).to_numpy()
            pixels[chosen] = store.images[store.rows(rows["id"][chosen])]
        return pixels


def read_overview(
    root: Path,
    slides: Path | None = None,
    unknown_slides: Literal["error", "as_one_slide"] = "error",
    cache_dir: Path | None = None,
    seed: int = 42,
    columns: dict[str, str] | None = None,
    resize: Literal["crop", "scale"] | None = None,
    mpp: float | None = None,
) -> DatasetOverview:
    """Read, pack and measure all patches of a data folder.

    Args:
        root: data folder in any supported layout; train or test may be missing.
        slides: CSV file with id,wsi; by default the one in the folder.
        unknown_slides: see `PCamDataModule`.
        cache_dir: see `PCamDataModule`.
        seed: random seed for samples.
        columns: see `PCamDataModule`.
        resize: see `PCamDataModule`.
        mpp: see `PCamDataModule`.

    Raises:
        UserError: the data or the slides file are missing or malformed.
    """
    stores, tables = {}, []
    for part in parts(root, columns):
        data = PCamDataModule(
            root,
            val_fraction=0,
            slides=slides,
            unknown_slides=unknown_slides,
            cache_dir=cache_dir,
            columns=columns,
            resize=resize,
            mpp=mpp,
        )
        data.setup({"train": "fit", "test": "predict"}[part])
        table, store = (data.table, data.train_store) if part == "train" else (data.test_table, data.test_store)
        assert table is not None
        assert store is not None
        known = table[[name for name in ("id", "label", "slide") if name in table]]
        group = np.array(list(CLASSES))[known["label"]] if "label" in known else "unlabeled"
        tables.append(known.assign(part=part, group=group).merge(measure_quality(store), on="id"))
        stores[part] = store
    patches = pd.concat(tables, ignore_index=True)
    rows = patches[patches["part"] == next(iter(stores))].dropna(axis="columns", how="all")
    return DatasetOverview(stores, patches, rows, np.random.default_rng(seed))


def augment_patches(images: np.ndarray, how: Augmentation, preprocess: Preprocess) -> torch.Tensor:
    """Augment patches like a training step, before crop, resize and standardization.

    Args:
        images: patches, uint8 (N, 96, 96, 3).
        how: options of the augmentation.
        preprocess: preprocessing of the network, for stain normalization.

    Returns:
        Augmented patches, float32 (N, 3, 96, 96) in [0, 1]; deterministic.
    """
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return augment(torch.from_numpy(images), torch.zeros(len(images)), how, preprocess.stain)[0]
