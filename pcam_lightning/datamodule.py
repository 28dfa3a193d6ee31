"""PCamDataModule: table + store + split -> four loaders of uint8 batches."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pcam_lightning.messages import UserError, check_number, say, warn
from pcam_lightning.quality import is_blank
from pcam_lightning.split import hold_out, in_several_groups, join_groups, read_split
from pcam_lightning.store import Store, open_store
from pcam_lightning.table import read_test, read_train

if TYPE_CHECKING:
    PathOrText = Path | str
else:  # the command line's parser makes a path of any text; it would take a union of both for that of --ckpt_path
    PathOrText = Path

# Options of PCamDataModule that say which patches validate.
SPLIT_OPTIONS = ("val_fraction", "split_seed", "split_file", "slides", "unknown_slides", "folds", "fold")


class Batch(TypedDict):
    """What every loader yields.

    `image` uint8 (B, 96, 96, 3), `row` int64 (B,) of `PCamDataModule.ids`, and where labels are known `label` float32
    (B,).
    """

    image: torch.Tensor
    row: torch.Tensor
    label: torch.Tensor


class Patches(Dataset[Batch]):
    """Patches of a packed store; an index is a whole batch of them.

    Args:
        store: the packed images. They stay mapped even where another process packs anew meanwhile and takes them away.
        rows: row of the store for each patch, shape (N,).
        labels: label of each patch, shape (N,); None where unknown.
        first_row: row of the store's first id in `PCamDataModule.ids`.
    """

    def __init__(self, store: Store, rows: np.ndarray, labels: np.ndarray | None, first_row: int) -> None:
        self.store = store
        self.rows = rows
        self.labels = labels
        self.first_row = first_row

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.rows)

    def __getitem__(self, batch: np.ndarray) -> Batch:
        """Gather the patches at the given indices, int64 (B,), in one sweep over the memory map."""
        rows = self.rows[batch]
        gathered: Batch = {  # type: ignore[typeddict-item]
            "image": torch.from_numpy(np.take(self.store.images, rows, axis=0)),
            "row": torch.from_numpy(rows + self.first_row),
        }
        if self.labels is not None:
            gathered["label"] = torch.from_numpy(self.labels[batch])
        return gathered

    def ids(self, batch: np.ndarray) -> np.ndarray:
        """Return the ids of the patches at the given indices, text, shape (B,)."""
        ids: np.ndarray = self.store.ids[self.rows[batch]]
        return ids


class BatchSampler(Sampler[np.ndarray]):
    """Yields the places of one batch after another, for this process among several.

    Args:
        count: number of patches.
        batch_size: patches a batch.
        seed: of the shuffle, which follows from (seed, epoch) alone; None for no shuffle.
        rank: of this process.
        world_size: number of processes. With a shuffle, all get the same number of whole batches, for which a few
            patches stand twice; without, each patch is seen by exactly one, and the last batch may be smaller.
        epoch: the first one that is drawn. Loader workers prefetch its batches before `set_epoch` is called.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int | None, rank: int = 0, world_size: int = 1, epoch: int = 0
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; Lightning calls this before each."""
        self.epoch = epoch

    def _share(self) -> np.ndarray:
        if self.seed is None:
            return np.arange(self.count)[self.rank :: self.world_size]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        # A last batch of another shape would cost a compiled network another compilation; one patch alone could not
        # be normalised by its batch at all. Fewer patches than a batch stay as few.
        whole = self.world_size * min(self.batch_size, -(-self.count // self.world_size))
        return np.resize(order, -(-self.count // whole) * whole)[self.rank :: self.world_size]

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._share()) // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield int64 arrays of places."""
        share = self._share()
        for start in range(0, len(share), self.batch_size):
            yield share[start : start + self.batch_size]


class PCamDataModule(L.LightningDataModule):
    """Patches of a folder in Kaggle's layout, packed once and read as whole batches.

    Args:
        root: data folder, with train/, train_labels.csv, test/ and sample_submission.csv as Kaggle has them. By
            default `data`; where that does not exist, `fit` rehearses on drawn tissue.
        batch_size: patches a batch, on each device.
        val_fraction: share of each class held out for validation; 0 trains on everything.
        split_seed: seed of the split.
        slides: CSV with id,wsi: whole slides are held out, so that val/auroc is of slides never seen in training.
        unknown_slides: what to do with patches that the slides file does not name: stop, or take them for one slide.
        folds: hold out one of so many folds instead of val_fraction; by whole slides where `slides` is given, for
            which the command line takes a patch_id_wsi.csv that lies in the data folder.
        fold: which one, counted from 0.
        split_file: split.csv of an older run, used instead of a new split; `slides` then only tell whose patches
            they are.
        cache_dir: folder for the packed images, 27.6 kB a patch; by default .pcam_cache in the data folder.
        verify: hash all packed pixels and image files, pack again where they differ, and stop where pixels are not what
            the ids say (Kaggle's ids are the SHA-1 of the pixels).
        num_workers: processes that gather batches. With 0 the training process does, one copy from memory a batch; 2
            or more hide a slow disk.
    """

    def __init__(
        self,
        root: PathOrText | None = None,
        batch_size: int = 512,
        val_fraction: float = 0.2,
        split_seed: int = 42,
        slides: PathOrText | None = None,
        unknown_slides: Literal["error", "group"] = "error",
        folds: int | None = None,
        fold: int = 0,
        split_file: PathOrText | None = None,
        cache_dir: PathOrText | None = None,
        verify: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("split_seed", split_seed, 0),
            ("folds", folds, 2),
            ("fold", fold, 0),
        ):
            check_number(f"--data.{name}", value, least, whole=True)
        check_number("--data.val_fraction", val_fraction)
        if not 0 <= val_fraction < 1:
            raise UserError(f"--data.val_fraction {val_fraction}: should be at least 0 and less than 1, such as 0.2.")
        if split_file is not None and folds is not None:
            raise UserError(f"--data.split_file {split_file}: is a split already; leave --data.folds out.")
        if not 0 <= fold < (folds or 1):
            reason = f"should be from 0 to {folds - 1}." if folds else "goes with --data.folds, such as 5."
            raise UserError(f"--data.fold {fold}: {reason}")
        self.root = _path(root) or Path("data")
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.slides = _path(slides)
        self.unknown_slides = unknown_slides
        self.folds = folds
        self.fold = fold
        self.split_file = _path(split_file)
        self.cache_dir = _path(cache_dir)
        self.verify = verify
        self.num_workers = num_workers
        self.table: pd.DataFrame | None = None  # of the labeled part, with `pixel_sha1`
        self.val_mask: np.ndarray | None = None  # over the table's rows
        self.test_table: pd.DataFrame | None = None  # of test/, in the order of the submission, with `pixel_sha1`
        self.always_train: np.ndarray | None = None  # over the table's rows: blank patches that no split holds out
        self.train_store: Store | None = None  # packed images of the labeled part
        self.test_store: Store | None = None  # packed images of test/
        self.ids = np.empty(0, dtype="U1")  # of all parts that were set up; a batch's `row` indexes it
        self.start_epoch = 0  # of a resumed fit, set when its checkpoint is loaded
        self._train: Patches | None = None
        self._val: Patches | None = None
        self._test: Patches | None = None
        self._seed = 0

    def setup(self, stage: str | None = None) -> None:
        """Read, pack and split what a stage needs; a second call for the same stage does nothing.

        Every process of several calls this; the store sees to it that one packs and the others wait.

        Args:
            stage: fit, validate, test or predict; fit by default.

        Raises:
            UserError: see `table`, `store` and `split`.
        """
        stage = stage or "fit"
        if stage in ("fit", "validate") and self.table is None:
            self._setup_train()
        if stage in ("test", "predict") and (
            self.test_table is None or (stage == "test" and "label" not in self.test_table)
        ):
            self._setup_test(answers=stage == "test")

    def _setup_train(self) -> None:
        self._seed = torch.initial_seed()  # what seed_everything was given
        table = read_train(self.root, self.slides, self.unknown_slides)
        if "val" in table and self.slides is not None:
            raise UserError(f"{self.root}: PCam's own files name their slides; leave --data.slides out.")
        store = open_store(table, self.root, "train", self.cache_dir, self.verify)
        rows = store.rows(table["id"])
        table["pixel_sha1"] = store.pixel_sha1[rows]
        if self.split_file is not None:
            mask = read_split(self.split_file, table)
        elif "val" in table and self.folds is None:
            mask = table["val"].to_numpy() if self.val_fraction else np.zeros(len(table), dtype=bool)
        else:
            group, blank = table["pixel_sha1"].to_numpy(), np.zeros(len(table), dtype=bool)
            if self.slides is not None or ("val" in table and "slide" in table):
                # Bare glass has copies in many slides, which are not alike for that: they would become one group.
                blank = in_several_groups(table["slide"].to_numpy(), group)
                if blank.any():
                    blank[blank] = is_blank(store.images[rows[blank]])
                group = join_groups(table["slide"].to_numpy(), np.where(blank, table["id"], group))
            mask = hold_out(table, group, self.val_fraction, self.split_seed, self.folds, self.fold)
            if blank.any() and (self.val_fraction or self.folds):
                mask &= ~blank
                say(f"{int(blank.sum()):,} blank patches have exact copies in several slides; none of them validates.")
            self.always_train = blank
        if copies := int(table.loc[mask, "pixel_sha1"].isin(set(table.loc[~mask, "pixel_sha1"])).sum()):
            warn(
                f"val/auroc will be optimistic: {copies:,} of {int(mask.sum()):,} validation patches have an exact "
                "copy in the training part."
            )
        labels = table["label"].to_numpy(dtype=np.float32)
        first = self._add_ids(store)
        self._train = Patches(store, rows[~mask], labels[~mask], first)
        self._val = Patches(store, rows[mask], labels[mask], first)
        self.table, self.val_mask, self.train_store = table, mask, store

    def _setup_test(self, *, answers: bool) -> None:
        table = read_test(self.root, answers=answers)
        store = open_store(table, self.root, "test", self.cache_dir, self.verify)
        labels = table["label"].to_numpy(dtype=np.float32) if answers else None
        rows = store.rows(table["id"])
        table["pixel_sha1"] = store.pixel_sha1[rows]
        self._test = Patches(store, rows, labels, self._add_ids(store))
        self.test_table, self.test_store = table, store

    def _add_ids(self, store: Store) -> int:
        """Append a store's ids; return the row of the first of them in `ids`."""
        first = len(self.ids)
        self.ids = np.concatenate([self.ids, store.ids])
        return first

    def sample(self, count: int) -> torch.Tensor:
        """Return up to so many patches of the training part, drawn by the split's seed, uint8 (N, 96, 96, 3)."""
        if self._train is None:
            raise UserError('PCamDataModule: call setup("fit") before sample().')
        chosen = np.random.default_rng(self.split_seed).permutation(len(self._train))[:count]
        return self._train[np.sort(chosen)]["image"]

    def _loader(self, patches: Patches | None, stage: str, *, shuffle: bool = False) -> DataLoader[Batch]:
        if patches is None:
            raise UserError(f'PCamDataModule: call setup("{stage}") before its data loader.')
        trainer = self.trainer
        if trainer and len(patches) < trainer.world_size:
            raise UserError(
                f"{self.root}: {len(patches)} patches for {trainer.world_size} processes; use fewer --trainer.devices."
            )
        return DataLoader(
            patches,
            sampler=BatchSampler(
                len(patches),
                self.batch_size,
                self._seed if shuffle else None,
                trainer.global_rank if trainer else 0,
                trainer.world_size if trainer else 1,
                max(self.start_epoch, trainer.current_epoch) if trainer and shuffle else 0,
            ),
            batch_size=None,  # an item is a batch already
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled batches of the training part; the order follows from the seed and the epoch."""
        return self._loader(self._train, "fit", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the validation part in the table's order; an empty list where nothing is held out."""
        return [] if self._val is not None and not len(self._val) else self._loader(self._val, "validate")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the patches of test/ with their answers, in the order of the submission."""
        return self._loader(self._test, "test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the patches of test/, in the order of the submission."""
        return self._loader(self._test, "predict")


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    """Return a path given as text or not, `~` expanded."""
    return None if value is None else Path(value).expanduser()
