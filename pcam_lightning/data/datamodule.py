"""PCamDataModule: a data folder -> loaders of uint8 batches."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch

from pcam_lightning.data.batches import BatchSampler, JoinedPatches, Patches
from pcam_lightning.data.loader import ThreadedLoader
from pcam_lightning.data.packed_store import PackedStore
from pcam_lightning.data.parts import open_extra, open_labeled, open_test
from pcam_lightning.data.resize import make_resize
from pcam_lightning.data.sources import PatchSource, open_source
from pcam_lightning.data.validation_part import SplitOptions, choose_split
from pcam_lightning.utils.errors import UserError, check_number

if TYPE_CHECKING:
    PathOrText = Path | str
else:  # the command line's parser makes a path of any text; it would take a union of both for that of `ckpt_path`
    PathOrText = Path

READ_OPTIONS = ("columns", "resize", "mpp")  # of PCamDataModule, that say how the files of its folder are read
SPLIT_OPTIONS = SplitOptions._fields  # those that say which patches validate


class PCamDataModule(L.LightningDataModule):
    """Patches of a data folder, packed once and read as whole batches.

    Args:
        root: data folder as Kaggle's, with train/, train_labels.csv, test/ and sample_submission.csv; with class
            folders; of Camelyon17-WILDS; with PCam's .h5 files; or a CSV of patches. By default `data`; where that does
            not exist, `fit` is a demo run on synthetic tissue.
        batch_size: patches a batch, on each device.
        val_fraction: share of each class held out for validation; 0 trains on everything, 1 validates on everything.
            Data that come with a validation part keep that one, unless it is 0 or 1.
        split_seed: seed of the split.
        slides: CSV with id,wsi: whole slides are held out, so that val/auroc is of slides never seen in training.
        unknown_slides: what to do with patches that the slides file does not name: stop, or take them for one slide.
        holdout: column of the data whose groups are held out whole, such as slide, patient or center. By default slide,
            where `slides` is given. With as many `folds` as groups, each is a fold of its own, by name.
        folds: hold out one of so many folds instead of val_fraction; by whole slides where the data name them, or
            `slides`, which may be a patch_id_wsi_full.csv or patch_id_wsi.csv that lies in the data folder.
        fold: which one, counted from 0.
        split_file: split.csv of an older run, used instead of a new split; `slides` then only names the slide of each
            patch.
        extra_train: another data folder, such as mine-negatives writes, whose labeled patches are added to the training
            part. Those that validate, by pixels or, where both folders name them, by slide, patient, center or
            `holdout`, are left out.
        cache_dir: folder for the packed images, 27.6 kB a patch; by default .pcam_cache in the data folder.
        columns: of a CSV of patches: what its columns path, label, id, slide, patient, center, split and sample_weight
            (a factor of the training loss) are called, where that is none of the usual names, such as
            `label: malignant`.
        resize: take images of another size, or JPEG: crop cuts 96 x 96 pixels at the center, scale resamples the 93 um
            at the center to 96 x 96 pixels. Needs `mpp`. Does not count for `extra_train`.
        mpp: um per pixel of the images that are resized, such as 0.5 of a scan at 20x.
        verify: hash all packed pixels and image files, pack again where they differ, and stop where pixels are not what
            the ids say (Kaggle's ids are the SHA-1 of the pixels).
        num_workers: threads that gather batches. With 0 the training loop does, one copy from memory a batch; 2 or more
            hide a slow disk.
    """

    # Set by `setup`, see `__getattr__`.
    source: PatchSource  # the layout of the labeled part
    table: pd.DataFrame  # the labeled part: what `PatchSource.read_train` returns, and `pixel_sha1`
    val_mask: np.ndarray  # which rows of the table validate, bool, (N,)
    always_train: np.ndarray  # which rows no split holds out, bool, (N,): blank patches that slides share
    split_kind: str  # how the validation part was chosen
    train_table: pd.DataFrame  # rows of `table` that train, and after `setup("fit")` the patches of `extra_train`
    train_store: PackedStore  # packed images of the labeled part
    extra_store: PackedStore | None  # those of `extra_train`; None without it, or where only validation is set up
    test_table: pd.DataFrame  # the patches of test/ in the order of the submission, with `pixel_sha1`
    test_store: PackedStore  # their packed images
    _train: Patches | JoinedPatches
    _val: Patches
    _test: Patches

    def __init__(
        self,
        root: PathOrText | None = None,
        batch_size: int = 512,
        val_fraction: float = 0.2,
        split_seed: int = 42,
        slides: PathOrText | None = None,
        unknown_slides: Literal["error", "as_one_slide"] = "error",
        holdout: str | None = None,
        folds: int | None = None,
        fold: int = 0,
        split_file: PathOrText | None = None,
        extra_train: PathOrText | None = None,
        cache_dir: PathOrText | None = None,
        columns: dict[str, str] | None = None,
        resize: Literal["crop", "scale"] | None = None,
        mpp: float | None = None,
        verify: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_number("data.batch_size", batch_size, 1, whole=True)
        check_number("data.num_workers", num_workers, 0, whole=True)
        self.root = _path(root) or Path("data")
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.slides = _path(slides)
        self.unknown_slides = unknown_slides
        self.holdout = holdout
        self.folds = folds
        self.fold = fold
        self.split_file = _path(split_file)
        self.extra_train = _path(extra_train)
        self.cache_dir = _path(cache_dir)
        self.columns = columns
        self.resize = resize
        self.mpp = mpp
        self.verify = verify
        self.num_workers = num_workers
        self.ids = np.empty(0, dtype="U1")  # of all parts that were set up; a batch's `row` indexes it
        self.extra_store = None
        self._resize = make_resize(resize, mpp)
        self._seed = 0
        self._split_options().check()

    def _split_options(self) -> SplitOptions:
        return SplitOptions(*(getattr(self, name) for name in SPLIT_OPTIONS))

    def __getattr__(self, name: str) -> Any:
        """Say which call of `setup` sets an attribute that is not there yet."""
        if name not in PCamDataModule.__annotations__:
            raise AttributeError(f"PCamDataModule has no attribute {name!r}")
        stage, use = "predict" if "test" in name else "fit", "its data loader" if name.startswith("_") else name
        raise UserError(f'PCamDataModule: call setup("{stage}") before {use}.')

    def setup(self, stage: str | None = None) -> None:
        """Read, pack and split what a stage needs; a second call for the same stage does nothing.

        Every process of several calls this; the store sees to it that one packs and the others wait.

        Args:
            stage: fit, validate, test or predict; fit by default.

        Raises:
            UserError: see `sources`, `packed_store` and `splits`.
        """
        stage, done = stage or "fit", vars(self)
        if stage in ("fit", "validate") and "table" not in done:
            self._setup_labeled()
        if stage == "fit" and self.extra_train is not None and self.extra_store is None:
            self._setup_extra(self.extra_train)
        if stage in ("test", "predict") and (
            "test_table" not in done or (stage == "test" and "label" not in self.test_table)
        ):
            self._setup_test(answers=stage == "test")

    def _setup_labeled(self) -> None:
        self._seed = torch.initial_seed()  # what seed_everything was given
        self.source = open_source(self.root, "train", resize=self._resize, columns=self.columns)
        options = self._split_options().with_slides_for_folds(self.root, self.source)
        self.slides, self.holdout = options.slides, options.holdout
        part = open_labeled(self.source, self.root, options, self.cache_dir, self.verify)
        self.val_mask, self.always_train, self.split_kind = choose_split(*part, options, self.source.own_split)
        first = self._add_ids(part.store)
        self._train = part.patches(first, ~self.val_mask, weights=True)
        self._val = part.patches(first, self.val_mask)
        self.table, self.train_store = part
        self.train_table = self.table[~self.val_mask]

    def _setup_extra(self, root: Path) -> None:
        if os.path.realpath(root) == os.path.realpath(self.root):
            raise UserError(f"`data.extra_train` {root}: is `data.root` itself; leave it out.")
        part = open_extra(root, self.table, self.val_mask, self.holdout, self.columns, self.cache_dir, self.verify)
        self._train = JoinedPatches([self._train, part.patches(self._add_ids(part.store), weights=True)])
        self.train_table = pd.concat([self.train_table, part.table], ignore_index=True)
        self.extra_store = part.store

    def _setup_test(self, *, answers: bool) -> None:
        source = open_source(self.root, "test", resize=self._resize, columns=self.columns)
        part = open_test(source, self.cache_dir, self.verify, answers=answers)
        self._test = part.patches(self._add_ids(part.store), labels=answers)
        self.test_table, self.test_store = part

    def _add_ids(self, store: PackedStore) -> int:
        """Append a store's ids; return the row of the first of them in `ids`."""
        first = len(self.ids)
        self.ids = np.concatenate([self.ids, store.ids])
        return first

    def sample(self, count: int) -> torch.Tensor:
        """Return up to so many patches of the training part, drawn by the split's seed, uint8 (N, 96, 96, 3)."""
        chosen = np.random.default_rng(self.split_seed).permutation(len(self._train))[:count]
        return self._train[np.sort(chosen)]["image"]

    def _loader(self, patches: Patches | JoinedPatches, *, shuffle: bool = False) -> ThreadedLoader:
        trainer = self.trainer
        if trainer and len(patches) < trainer.world_size:
            raise UserError(
                f"{self.root}: {len(patches)} patches for {trainer.world_size} processes; use fewer `trainer.devices`."
            )
        return ThreadedLoader(
            patches,
            self.num_workers,
            sampler=BatchSampler(
                len(patches),
                self.batch_size,
                self._seed if shuffle else None,
                trainer.global_rank if trainer else 0,
                trainer.world_size if trainer else 1,
            ),
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )

    def train_dataloader(self) -> ThreadedLoader:
        """Return shuffled batches of the training part; the order follows from the seed and the epoch."""
        return self._loader(self._train, shuffle=True)

    def val_dataloader(self) -> ThreadedLoader | list[ThreadedLoader]:
        """Return the validation part in the table's order; an empty list where nothing is held out."""
        return self._loader(self._val) if len(self._val) else []

    def labeled_dataloader(self, rows: np.ndarray | None = None) -> ThreadedLoader:
        """Return labeled patches without their labels, by their rows of `train_store`; by default all."""
        store = self._val.store
        rows = np.arange(len(store.ids)) if rows is None else rows
        return self._loader(Patches(store, rows, None, self._val.first_row))

    def test_dataloader(self) -> ThreadedLoader:
        """Return the patches of test/ with their answers, in the order of the submission."""
        if vars(self).get("_test") is None or self._test.labels is None:
            raise UserError('PCamDataModule: call setup("test") before its data loader.')
        return self._loader(self._test)

    def predict_dataloader(self) -> ThreadedLoader:
        """Return the patches of test/, in the order of the submission."""
        return self._loader(self._test)


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    """Return a path given as text or not, `~` expanded."""
    return None if value is None else Path(value).expanduser()
