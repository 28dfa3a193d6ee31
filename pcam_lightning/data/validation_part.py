"""The validation part: as the options, the layout or a file choose it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pcam_lightning.data.leakage import known_groups
from pcam_lightning.data.packed_store import PackedStore
from pcam_lightning.data.quality import is_blank
from pcam_lightning.data.slide_map import UNKNOWN_SLIDE, find_slides
from pcam_lightning.data.sources import PatchSource
from pcam_lightning.data.splits import in_several_groups, join_groups, read_split, validation_mask
from pcam_lightning.data.table_file import LEVELS
from pcam_lightning.utils.errors import UserError, check_number, rank_zero_info, rank_zero_warn

_MOST_NAMED = 10  # groups that a message lists
NO_GROUPS = ("id", "label", "path", "val", "pixel_sha1", "sample_weight")  # columns of a table that name no groups


class SplitOptions(NamedTuple):
    """The options of PCamDataModule that say which patches validate."""

    val_fraction: float = 0.2
    split_seed: int = 42
    split_file: Path | None = None
    slides: Path | None = None
    unknown_slides: str = "error"
    holdout: str | None = None
    folds: int | None = None
    fold: int = 0

    def check(self) -> None:
        """Check that they are in their ranges and go together.

        Raises:
            UserError: they do not.
        """
        for name, least in (("split_seed", 0), ("folds", 2), ("fold", 0)):
            check_number(f"data.{name}", getattr(self, name), least, whole=True)
        check_number("data.val_fraction", self.val_fraction)
        if not 0 <= self.val_fraction <= 1:
            raise UserError(f"`data.val_fraction` {self.val_fraction}: should be from 0 to 1, such as 0.2.")
        for name in ("folds", "holdout"):
            if self.split_file is not None and getattr(self, name) is not None:
                raise UserError(f"`data.split_file` {self.split_file}: is a split already; leave `data.{name}` out.")
        if not 0 <= self.fold < (self.folds or 1):
            reason = f"should be from 0 to {self.folds - 1}." if self.folds else "goes with `data.folds`, such as 5."
            raise UserError(f"`data.fold` {self.fold}: {reason}")

    def with_slides_for_folds(self, root: Path, source: PatchSource) -> "SplitOptions":
        """Let folds hold out whole slides where the layout names them, unless something else is chosen.

        Args:
            root: the data folder.
            source: its layout.
        """
        chosen = self.slides or self.split_file or self.holdout or source.own_split
        if self.folds is None or chosen or not source.knows_slides():
            return self
        slides = find_slides(root)
        rank_zero_info(f"folds are of whole slides, by {slides or root}.")
        return self._replace(slides=slides, holdout=None if slides else "slide")


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


def choose_split(table: pd.DataFrame, store: PackedStore, options: SplitOptions, own_split: str | None) -> Split:
    """Take the split of a file, or that of the layout, or draw one; warn of copies on both sides.

    Args:
        table: one row a patch, with `id`, `label`, `pixel_sha1` and, with a split of the layout, `val`.
        store: packed images of the table.
        options: what the user wants.
        own_split: name of the split of the layout, which names the slides too; None without one.

    Raises:
        UserError: a class has no patch on one of the two sides, there are no such groups, or the file does not fit.
    """
    nothing = np.zeros(len(table), dtype=bool)
    if options.split_file is not None:
        split = Split(read_split(options.split_file, table), nothing, f"as in {options.split_file.name}")
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
        by_slide = options.slides is not None or (own_split is not None and "slide" in table)
        level = options.holdout or ("slide" if by_slide else None)
        kind = "patches at random, stratified by label" if level is None else f"by {level}, held out whole"
        split = Split(*_draw_split(table, store, options, level), kind)
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
    table: pd.DataFrame, store: PackedStore, options: SplitOptions, level: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a split that keeps exact duplicates together, and groups of the column `level`, such as slide, where asked.

    Returns:
        Masks of the patches that validate, and of those that no split holds out, both shape (N,).
    """
    group, blank = table["pixel_sha1"].to_numpy(), np.zeros(len(table), dtype=bool)
    if level is not None:
        names = _group_names(table, level, options)
        # Bare glass has copies in many slides, which are not alike for that: they would become one group.
        blank = in_several_groups(names, group)
        if blank.any():
            blank[blank] = is_blank(store.images[store.rows(table["id"][blank])])
        group = join_groups(names, np.where(blank, table["id"], group))
        if options.folds == len(set(names)):
            return _one_group(table, names, level, options.fold)
    mask = validation_mask(table, group, options.val_fraction, options.split_seed, options.folds, options.fold)
    if level not in (None, "slide") and mask.any() and len(chosen := sorted(set(names[mask]))) <= _MOST_NAMED:
        rank_zero_info(f"{level} {', '.join(chosen)} validate{'s' if len(chosen) == 1 else ''}.")
    if blank.any() and (0 < options.val_fraction < 1 or options.folds):
        mask &= ~blank
        rank_zero_info(
            f"{int(blank.sum()):,} blank patches have exact copies in several slides; none of them validates."
        )
    return mask, blank


def _group_names(table: pd.DataFrame, level: str, options: SplitOptions) -> np.ndarray:
    """Return the name of each patch's group, (N,); those that are not known are one more group."""
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
