"""PCamDataModule: a data folder -> loaders of uint8 batches."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch

from pcam_lightning.data.batches import BatchSampler, JoinedPatches, Patches
from pcam_lightning.data.loader import ThreadedLoader
from pcam_lightning.data.packed_store import PackedStore, open_store
from pcam_lightning.data.parts import (
    ExtraPart,
    LabeledPart,
    SplitOptions,
    TestPart,
    check_classes,
    choose_split,
    open_extra,
    report_contradictions,
)
from pcam_lightning.data.resize import make_resize
from pcam_lightning.data.sources import open_source
from pcam_lightning.utils.errors import UserError, check_number, rank_zero_info

if TYPE_CHECKING:
    PathOrText = Path | str
else:  # the command line's parser makes a path of any text; it would take a union of both for that of `ckpt_path`
    PathOrText = Path

# Options of PCamDataModule that say how the files of its data folder are read.
READ_OPTIONS = ("columns", "resize", "mpp")
# Those that say which patches validate.
SPLIT_OPTIONS = ("val_fraction", "split_seed", "split_file", "slides", "unknown_slides", "holdout", "folds", "fold")


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
        folds: hold out one of so many folds instead of val_fraction; by whole slides where `slides` is given, for
            which `fit` takes a patch_id_wsi_full.csv or patch_id_wsi.csv that lies in the data folder.
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
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("split_seed", split_seed, 0),
            ("folds", folds, 2),
            ("fold", fold, 0),
        ):
            check_number(f"data.{name}", value, least, whole=True)
        check_number("data.val_fraction", val_fraction)
        if not 0 <= val_fraction <= 1:
            raise UserError(f"`data.val_fraction` {val_fraction}: should be from 0 to 1, such as 0.2.")
        if split_file is not None and folds is not None:
            raise UserError(f"`data.split_file` {split_file}: is a split already; leave `data.folds` out.")
        if split_file is not None and holdout is not None:
            raise UserError(f"`data.split_file` {split_file}: is a split already; leave `data.holdout` out.")
        if not 0 <= fold < (folds or 1):
            reason = f"should be from 0 to {folds - 1}." if folds else "goes with `data.folds`, such as 5."
            raise UserError(f"`data.fold` {fold}: {reason}")
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
        self.start_epoch = 0  # of a resumed fit, set when its checkpoint is loaded
        self.split_kind = ""  # how the validation part was chosen, set when it is
        self._resize = make_resize(resize, mpp)
        self._labeled: LabeledPart | None = None
        self._extra: ExtraPart | None = None
        self._test: TestPart | None = None
        self._seed = 0

    def setup(self, stage: str | None = None) -> None:
        """Read, pack and split what a stage needs; a second call for the same stage does nothing.

        Every process of several calls this; the store sees to it that one packs and the others wait.

        Args:
            stage: fit, validate, test or predict; fit by default.

        Raises:
            UserError: see `sources`, `packed_store` and `splits`.
        """
        stage = stage or "fit"
        if stage in ("fit", "validate") and self._labeled is None:
            self._setup_labeled()
        if stage == "fit" and self.extra_train is not None and self._extra is None:
            self._setup_extra(self.extra_train)
        if stage in ("test", "predict") and (
            self._test is None or (stage == "test" and "label" not in self._test.table)
        ):
            self._setup_test(answers=stage == "test")

    def _setup_labeled(self) -> None:
        self._seed = torch.initial_seed()  # what seed_everything was given
        source = open_source(self.root, "train", resize=self._resize, columns=self.columns)
        table = source.read_train(self.slides, self.unknown_slides)
        self._report_resize(table, source.root)
        check_classes(table, self.root)
        store = open_store(table, source, "train", self.cache_dir, self.verify)
        rows = store.rows(table["id"])
        table["pixel_sha1"] = store.pixel_sha1[rows]
        report_contradictions(table, self.root)
        options = SplitOptions(
            self.val_fraction,
            self.split_seed,
            self.split_file,
            self.holdout,
            self.folds,
            self.fold,
            self.slides is not None,
        )
        split = choose_split(table, store, rows, options, source.own_split)
        mask, self.split_kind = split.val_mask, split.kind
        labels = table["label"].to_numpy(dtype=np.float32)
        first = self._add_ids(store)
        weights = table["sample_weight"].to_numpy()[~mask] if "sample_weight" in table else None
        train = Patches(store, rows[~mask], labels[~mask], first, weights)
        val = Patches(store, rows[mask], labels[mask], first)
        self._labeled = LabeledPart(table, mask, split.always_train, store, train, val)

    def _setup_extra(self, root: Path) -> None:
        part = self.labeled_part("extra_train")
        if os.path.realpath(root) == os.path.realpath(self.root):
            raise UserError(f"`data.extra_train` {root}: is `data.root` itself; leave it out.")
        self._extra = open_extra(root, part, self.cache_dir, self.verify, self.columns, self.holdout)
        table, store = self._extra
        labels = table["label"].to_numpy(dtype=np.float32)
        weights = table["sample_weight"].to_numpy() if "sample_weight" in table else None
        patches = Patches(store, store.rows(table["id"]), labels, self._add_ids(store), weights)
        self._labeled = part._replace(train=JoinedPatches([part.train, patches]))

    def _setup_test(self, *, answers: bool) -> None:
        source = open_source(self.root, "test", resize=self._resize, columns=self.columns)
        table = source.read_test(answers=answers)
        self._report_resize(table, source.root)
        store = open_store(table, source, "test", self.cache_dir, self.verify)
        labels = table["label"].to_numpy(dtype=np.float32) if answers else None
        rows = store.rows(table["id"])
        table["pixel_sha1"] = store.pixel_sha1[rows]
        self._test = TestPart(table, store, Patches(store, rows, labels, self._add_ids(store)))

    def _report_resize(self, table: pd.DataFrame, root: Path) -> None:
        if self._resize is not None:
            rank_zero_info(self._resize.describe(root, table["path"].tolist()))

    def _add_ids(self, store: PackedStore) -> int:
        """Append a store's ids; return the row of the first of them in `ids`."""
        first = len(self.ids)
        self.ids = np.concatenate([self.ids, store.ids])
        return first

    def labeled_part(self, use: str) -> "LabeledPart":
        """Return the labeled part.

        Raises:
            UserError: `setup("fit")` has not been called, which has to come before `use`.
        """
        if self._labeled is None:
            raise UserError(f'PCamDataModule: call setup("fit") before {use}.')
        return self._labeled

    def test_part(self, use: str, stage: str = "predict") -> "TestPart":
        """Return test/.

        Raises:
            UserError: `setup` has not been called for the stage, which has to come before `use`.
        """
        if self._test is None:
            raise UserError(f'PCamDataModule: call setup("{stage}") before {use}.')
        return self._test

    @property
    def table(self) -> pd.DataFrame:
        """The labeled part: what `PatchSource.read_train` returns, and `pixel_sha1`."""
        return self.labeled_part("table").table

    @property
    def val_mask(self) -> np.ndarray:
        """Which rows of the table validate, bool, shape (N,)."""
        return self.labeled_part("val_mask").val_mask

    @property
    def always_train(self) -> np.ndarray:
        """Which rows of the table no split holds out, bool, shape (N,): blank patches that slides share."""
        return self.labeled_part("always_train").always_train

    @property
    def train_table(self) -> pd.DataFrame:
        """The patches that train: rows of `table`, and after `setup("fit")` those of `extra_train`."""
        part = self.labeled_part("train_table")
        own = part.table[~part.val_mask]
        return own if self._extra is None else pd.concat([own, self._extra.table], ignore_index=True)

    @property
    def extra_store(self) -> PackedStore | None:
        """Packed images of `extra_train`; None without it, or where only validation is set up."""
        return None if self._extra is None else self._extra.store

    @property
    def train_store(self) -> PackedStore:
        """Packed images of the labeled part."""
        return self.labeled_part("train_store").store

    @property
    def test_table(self) -> pd.DataFrame:
        """The patches of test/ in the order of the submission, with `pixel_sha1`."""
        return self.test_part("test_table").table

    @property
    def test_store(self) -> PackedStore:
        """Packed images of test/."""
        return self.test_part("test_store").store

    @property
    def knows_split(self) -> bool:
        """Whether the labeled part is set up."""
        return self._labeled is not None

    def sample(self, count: int) -> torch.Tensor:
        """Return up to so many patches of the training part, drawn by the split's seed, uint8 (N, 96, 96, 3)."""
        train = self.labeled_part("sample()").train
        chosen = np.random.default_rng(self.split_seed).permutation(len(train))[:count]
        return train[np.sort(chosen)]["image"]

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
                max(self.start_epoch, trainer.current_epoch) if trainer and shuffle else 0,
            ),
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )

    def train_dataloader(self) -> ThreadedLoader:
        """Return shuffled batches of the training part; the order follows from the seed and the epoch."""
        return self._loader(self.labeled_part("its data loader").train, shuffle=True)

    def val_dataloader(self) -> ThreadedLoader | list[ThreadedLoader]:
        """Return the validation part in the table's order; an empty list where nothing is held out."""
        val = self.labeled_part("its data loader").val
        return self._loader(val) if len(val) else []

    def labeled_dataloader(self, rows: np.ndarray | None = None) -> ThreadedLoader:
        """Return labeled patches without their labels, by their rows of `train_store`; by default all."""
        part = self.labeled_part("its data loader")
        rows = np.arange(len(part.store.ids)) if rows is None else rows
        return self._loader(Patches(part.store, rows, None, part.val.first_row))

    def test_dataloader(self) -> ThreadedLoader:
        """Return the patches of test/ with their answers, in the order of the submission."""
        return self._loader(self.test_part("its data loader", "test").patches)

    def predict_dataloader(self) -> ThreadedLoader:
        """Return the patches of test/, in the order of the submission."""
        return self._loader(self.test_part("its data loader").patches)


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    """Return a path given as text or not, `~` expanded."""
    return None if value is None else Path(value).expanduser()
