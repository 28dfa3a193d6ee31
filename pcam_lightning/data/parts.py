"""The labeled part and the test part of a data folder, packed and split."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pcam_lightning.data.batches import JoinedPatches, Patches
from pcam_lightning.data.leakage import keep_apart, known_groups, unnamed_groups
from pcam_lightning.data.packed_store import PackedStore, open_store
from pcam_lightning.data.quality import is_blank
from pcam_lightning.data.slide_map import UNKNOWN_SLIDE
from pcam_lightning.data.sources import open_source
from pcam_lightning.data.splits import describe, in_several_groups, join_groups, read_split, validation_mask
from pcam_lightning.data.table_file import LEVELS, TableFile
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn

_MOST_NAMED = 10  # groups that a message lists
NO_GROUPS = ("id", "label", "path", "val", "pixel_sha1", "sample_weight")  # columns of a table that name no groups


class LabeledPart(NamedTuple):
    """The labeled patches of a data folder, packed and split; see the properties of PCamDataModule."""

    table: pd.DataFrame
    val_mask: np.ndarray
    always_train: np.ndarray
    store: PackedStore
    train: Patches | JoinedPatches
    val: Patches


class ExtraPart(NamedTuple):
    """Patches of another data folder that train too, those left out that the validation part has or may show."""

    table: pd.DataFrame
    store: PackedStore


class TestPart(NamedTuple):
    """The patches of test/, packed."""

    table: pd.DataFrame
    store: PackedStore
    patches: Patches


def _one_group(table: pd.DataFrame, names: np.ndarray, level: str, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Mark the patches of one group, and those with exact copies in several groups, which never validate; (N,) both.

    Raises:
        UserError: one of the groups, or what is left without it, is of one class only.
    """
    common = in_several_groups(names, table["pixel_sha1"].to_numpy())
    groups = sorted(set(names))
    for name in groups:  # a fold that cannot be is not found out after hours of the others
        mask = (names == name) & ~common
        for side, rows in (("validation", table[mask]), ("training", table[~mask])):
            if rows["label"].nunique() < 2:
                raise UserError(
                    f"`data.folds` {len(groups)}: with {level} {name} held out, the {side} part has one class "
                    "only; use fewer folds."
                )
    if common.any():
        rank_zero_info(f"{int(common.sum()):,} patches have exact copies in several groups; none of them validates.")
    rank_zero_info(f"{level} {groups[fold]} validates.")
    return (names == groups[fold]) & ~common, common


def open_extra(
    root: Path,
    part: LabeledPart,
    cache_dir: Path | None,
    verify: bool,
    columns: Mapping[str, str] | None,
    holdout: str | None,
) -> ExtraPart:
    """Open another data folder whose labeled patches train too; report how many.

    Args:
        root: the folder.
        part: whose validation part they are kept apart from.
        cache_dir: see `open_store`, as `verify`.
        verify: whether all pixels are hashed.
        columns: of a CSV of patches, see `open_source`.
        holdout: column whose groups were held out whole.

    Raises:
        UserError: see `sources` and `packed_store`; or none of the patches can train.
    """
    if not root.exists():
        raise UserError(f"`data.extra_train` {root}: no such folder or CSV.")
    source = open_source(root, "train", columns=columns if TableFile.detect(root) else None)
    table = source.read_train()
    store = open_store(table, source, "train", cache_dir, verify)
    table["pixel_sha1"] = store.pixel_sha1[store.rows(table["id"])]
    apart = keep_apart(table, part.table, part.val_mask, holdout)
    kept = table[apart].reset_index(drop=True)
    if not len(kept):
        raise UserError(f"`data.extra_train` {root}: all of its {len(table):,} patches, or their groups, validate.")
    left_out = "" if apart.all() else f"; {int((~apart).sum()):,} left out, since they or their groups validate"
    rank_zero_info(f"extra training data: {root}: {describe(kept, np.ones(len(kept), dtype=bool))}{left_out}.")
    level, unnamed = unnamed_groups(kept, part.table, part.val_mask, holdout)
    if unnamed:
        rank_zero_warn(
            f"val/auroc may be optimistic: {root} does not name the {level} of {unnamed:,} of its {len(kept):,} "
            "patches, which may be one that validates."
        )
    return ExtraPart(kept, store)


class SplitOptions(NamedTuple):
    """The options of PCamDataModule that say which patches validate, and whether it is given a map of slides."""

    val_fraction: float
    seed: int
    file: Path | None
    holdout: str | None
    folds: int | None
    fold: int
    by_slide: bool


class Split(NamedTuple):
    """Which patches of a table validate.

    Attributes:
        val_mask: these, bool, shape (N,).
        always_train: those that no split holds out, the same.
        kind: how they were chosen.
    """

    val_mask: np.ndarray
    always_train: np.ndarray
    kind: str


def report_contradictions(table: pd.DataFrame, root: Path) -> None:
    """Warn of patches that have an exact copy with the other label.

    Args:
        table: one row a patch, with `label` and `pixel_sha1`.
        root: where they are from.
    """
    distinct = table[["pixel_sha1", "label"]].drop_duplicates()
    both = distinct["pixel_sha1"][distinct["pixel_sha1"].duplicated()]
    if count := int(table["pixel_sha1"].isin(both).sum()):
        rank_zero_warn(
            f"{root}: {count:,} of {len(table):,} patches have an exact copy with the other label; explore lists them."
        )


def check_classes(table: pd.DataFrame, root: Path) -> None:
    """Check that there are labeled patches of both classes.

    Raises:
        UserError: there are not.
    """
    if len(present := set(table["label"])) < 2:
        raise UserError(
            f"{root}: every training label is {present.pop()}; training needs patches of both classes, 0 for normal "
            "and 1 for tumor."
        )


def choose_split(
    table: pd.DataFrame, store: PackedStore, rows: np.ndarray, options: SplitOptions, own_split: str | None
) -> Split:
    """Take the split of a file, or that of the layout, or draw one; warn of copies on both sides.

    Args:
        table: one row a patch, with `id`, `label`, `pixel_sha1` and, with a split of the layout, `val`.
        store: packed images of the table.
        rows: row of the store for each row of the table, shape (N,).
        options: what the user wants.
        own_split: name of the split of the layout, which names the slides too; None without one.

    Raises:
        UserError: a class has no patch on one of the two sides, there are no such groups, or the file does not fit.
    """
    nothing = np.zeros(len(table), dtype=bool)
    if options.file is not None:
        split = Split(read_split(options.file, table), nothing, f"as in {options.file.name}")
    elif options.val_fraction == 1 and options.folds is None and options.holdout is None:
        split = Split(~nothing, nothing, "all patches validate")
        if own_split:
            rank_zero_info(
                f"All {len(table):,} patches validate (`data.val_fraction` 1); the split of the data ({own_split}) is "
                "not used."
            )
    elif own_split and options.folds is None and options.holdout is None:
        split = Split(table["val"].to_numpy() if options.val_fraction else nothing, nothing, own_split)
        for side, name in ((split.val_mask, "validation"), (~split.val_mask, "training")):
            if side.any() and len(present := set(table["label"][side])) < 2:
                raise UserError(
                    f"the {name} part ({own_split}) has patches of label {present.pop()} alone; add some of the other "
                    "class, or let `data.holdout` or `data.folds` split them again."
                )
    else:
        by_slide = options.by_slide or (own_split is not None and "slide" in table)
        level = options.holdout or ("slide" if by_slide else None)
        kind = "patches at random, stratified by label" if level is None else f"by {level}, held out whole"
        split = Split(*_draw_split(table, store, rows, options, level), kind)
        if own_split:
            rank_zero_info(f"The split of the data ({own_split}) is not used: its validation patches are split again.")
    mask = split.val_mask
    if copies := int(table.loc[mask, "pixel_sha1"].isin(set(table.loc[~mask, "pixel_sha1"])).sum()):
        rank_zero_warn(
            f"val/auroc will be optimistic: {copies:,} of {int(mask.sum()):,} validation patches have an exact copy in "
            "the training part."
        )
    return split


def _draw_split(
    table: pd.DataFrame, store: PackedStore, rows: np.ndarray, options: SplitOptions, level: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a split that keeps exact duplicates together, and groups such as slides where asked.

    Args:
        table: one row a patch, with `id`, `label`, `pixel_sha1` and the column `level`.
        store: packed images of the table.
        rows: row of the store for each row of the table, shape (N,).
        options: what the user wants.
        level: column whose groups are held out whole, such as slide; None for single patches.

    Returns:
        Masks of the patches that validate, and of those that no split holds out, both shape (N,).

    Raises:
        UserError: a class has no patch on one of the two sides, or there is no such column.
    """
    group, blank = table["pixel_sha1"].to_numpy(), np.zeros(len(table), dtype=bool)
    if level is not None:
        names = _group_names(table, level, options)
        # Bare glass has copies in many slides, which are not alike for that: they would become one group.
        blank = in_several_groups(names, group)
        if blank.any():
            blank[blank] = is_blank(store.images[rows[blank]])
        group = join_groups(names, np.where(blank, table["id"], group))
        if options.folds == len(set(names)):
            return _one_group(table, names, level, options.fold)
    mask = validation_mask(table, group, options.val_fraction, options.seed, options.folds, options.fold)
    if level not in (None, "slide") and mask.any() and len(chosen := sorted(set(names[mask]))) <= _MOST_NAMED:
        rank_zero_info(f"{level} {', '.join(chosen)} validate{'s' if len(chosen) == 1 else ''}.")
    if blank.any() and (0 < options.val_fraction < 1 or options.folds):
        mask &= ~blank
        rank_zero_info(
            f"{int(blank.sum()):,} blank patches have exact copies in several slides; none of them validates."
        )
    return mask, blank


def _group_names(table: pd.DataFrame, level: str, options: SplitOptions) -> np.ndarray:
    """Return the name of each patch's group, (N,); those that are not known are one more group.

    Raises:
        UserError: there is no such column, or there are too few groups in it.
    """
    if level not in table or level in NO_GROUPS:
        columns = ", ".join(str(name) for name in table if name not in NO_GROUPS) or "none"
        hint = f" In a CSV of patches `data.columns.{level}` names its column." if level in LEVELS else ""
        raise UserError(f"`data.holdout` {level}: no such groups; those that are known are {columns}.{hint}")
    known = known_groups(table, level)
    if (unknown := int(known.isna().sum())) and level != "slide":  # those are counted where the map is read
        rank_zero_warn(
            f"{unknown:,} of {len(table):,} patches have no {level}; they are split as one group, {UNKNOWN_SLIDE}, "
            "though they may be of any."
        )
    names: np.ndarray = known.fillna(UNKNOWN_SLIDE).astype(str).to_numpy()
    count = len(set(names))
    if count == 1 and (0 < options.val_fraction < 1 or options.folds):
        option = f"`data.holdout` {level}" if options.holdout else "`data.slides`"
        raise UserError(f"{option}: all patches are of {level} {names[0]}; none would be left to train on.")
    if options.folds is not None and options.folds > count:
        raise UserError(
            f"`data.folds` {options.folds}: there are {count} groups of {level} to train and validate on; with as many "
            "folds each is one, and there can be no more."
        )
    return names
