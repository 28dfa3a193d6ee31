"""The parts of a data folder: read, checked and packed."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pcam_lightning.data.batches import Patches
from pcam_lightning.data.image_files import ImageFolder
from pcam_lightning.data.leakage import keep_apart, unnamed_groups
from pcam_lightning.data.packed_store import PackedStore, open_store
from pcam_lightning.data.sources import PatchSource, open_source
from pcam_lightning.data.splits import describe
from pcam_lightning.data.table_file import TableFile
from pcam_lightning.data.validation_part import SplitOptions
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn


class Part(NamedTuple):
    """Patches of a data folder: their table, with `pixel_sha1`, and their packed images."""

    table: pd.DataFrame
    store: PackedStore

    def patches(
        self, first_row: int, mask: np.ndarray | None = None, *, labels: bool = True, weights: bool = False
    ) -> Patches:
        """Return patches as batches are made of them.

        Args:
            first_row: row of the store's first id in `PCamDataModule.ids`.
            mask: which rows of the table, shape (N,); by default all.
            labels: whether their labels are known.
            weights: whether `sample_weight`, where the table has it, is a factor of the loss.
        """
        table = self.table if mask is None else self.table[mask]
        label = table["label"].to_numpy(dtype=np.float32) if labels else None
        weight = table["sample_weight"].to_numpy() if weights and "sample_weight" in table else None
        return Patches(self.store, self.store.rows(table["id"]), label, first_row, weight)


def open_labeled(source: PatchSource, root: Path, options: SplitOptions, cache_dir: Path | None, verify: bool) -> Part:
    """Read, check and pack the labeled patches of a data folder.

    Args:
        source: its layout.
        root: as the user named it, for messages.
        options: those that say how slides are read.
        cache_dir: see `open_store`, as `verify`.
        verify: whether all pixels are hashed.

    Raises:
        UserError: see `sources` and `packed_store`; or all are of one class.
    """
    table = source.read_train(options.slides, options.unknown_slides)
    _check_classes(table, root)
    part = _pack(table, source, "train", cache_dir, verify)
    _report_contradictions(part.table, root)
    return part


def open_test(source: PatchSource, cache_dir: Path | None, verify: bool, *, answers: bool) -> Part:
    """Read and pack the patches to predict, with `answers` those whose labels are known; see `open_labeled`."""
    return _pack(source.read_test(answers=answers), source, "test", cache_dir, verify)


def _pack(table: pd.DataFrame, source: PatchSource, part: str, cache_dir: Path | None, verify: bool) -> Part:
    if isinstance(source, ImageFolder) and source.resize is not None:
        rank_zero_info(source.resize.describe(source.root, table["path"].tolist()))
    store = open_store(table, source, part, cache_dir, verify)
    table["pixel_sha1"] = store.pixel_sha1[store.rows(table["id"])]
    return Part(table, store)


def open_extra(
    root: Path,
    table: pd.DataFrame,
    val_mask: np.ndarray,
    holdout: str | None,
    columns: Mapping[str, str] | None,
    cache_dir: Path | None,
    verify: bool,
) -> Part:
    """Open another data folder whose labeled patches train too, without those that validate or may show what does.

    Args:
        root: the folder.
        table: the labeled patches of `data.root`.
        val_mask: which of them validate, and are kept apart from these, shape (N,).
        holdout: column whose groups were held out whole.
        columns: of a CSV of patches, see `open_source`.
        cache_dir: see `open_store`, as `verify`.
        verify: whether all pixels are hashed.

    Raises:
        UserError: see `sources` and `packed_store`; or none of the patches can train.
    """
    if not root.exists():
        raise UserError(f"`data.extra_train` {root}: no such folder or CSV.")
    source = open_source(root, "train", columns=columns if TableFile.detect(root) else None)
    extra, store = _pack(source.read_train(), source, "train", cache_dir, verify)
    apart = keep_apart(extra, table, val_mask, holdout)
    kept = extra[apart].reset_index(drop=True)
    if not len(kept):
        raise UserError(f"`data.extra_train` {root}: all of its {len(extra):,} patches, or their groups, validate.")
    left_out = "" if apart.all() else f"; {int((~apart).sum()):,} left out, since they or their groups validate"
    rank_zero_info(f"extra training data: {root}: {describe(kept, np.ones(len(kept), dtype=bool))}{left_out}.")
    level, unnamed = unnamed_groups(kept, table, val_mask, holdout)
    if unnamed:
        rank_zero_warn(
            f"val/auroc may be optimistic: {root} does not name the {level} of {unnamed:,} of its {len(kept):,} "
            "patches, which may be one that validates."
        )
    return Part(kept, store)


def _report_contradictions(table: pd.DataFrame, root: Path) -> None:
    """Warn of patches that have an exact copy with the other label."""
    distinct = table[["pixel_sha1", "label"]].drop_duplicates()
    both = distinct["pixel_sha1"][distinct["pixel_sha1"].duplicated()]
    if count := int(table["pixel_sha1"].isin(both).sum()):
        rank_zero_warn(
            f"{root}: {count:,} of {len(table):,} patches have an exact copy with the other label; explore lists them."
        )


def _check_classes(table: pd.DataFrame, root: Path) -> None:
    """Check that there are labeled patches of both classes."""
    if len(present := set(table["label"])) < 2:
        raise UserError(
            f"{root}: every training label is {present.pop()}; training needs patches of both classes, 0 for normal "
            "and 1 for tumor."
        )
