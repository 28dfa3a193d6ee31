"""Slides, patients and other groups on both sides of a split, which make its score optimistic."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from pcam_lightning.data.slide_map import UNKNOWN_SLIDE
from pcam_lightning.data.splits import in_several_groups
from pcam_lightning.data.table_file import LEVELS


class SlideLeakage(NamedTuple):
    """Why the score of a split is optimistic, or may be: groups on both of its sides. Without a message it is not."""

    message: str = ""
    certain: bool = True
    level: str = "slide"

    @property
    def verb(self) -> str:
        """What the score does."""
        return "is optimistic" if self.certain else "may be optimistic"


def known_groups(table: pd.DataFrame, level: str) -> "pd.Series[str]":
    """Return the group of each patch, such as its slide; missing where a cell is empty or says `unknown`."""
    names = table[level]
    known: pd.Series[str] = names.where(names.notna() & ~names.isin(["", UNKNOWN_SLIDE])).astype(object)
    return known


def find_slide_leakage(
    table: pd.DataFrame, part: np.ndarray, *, by_file: bool = False, holdout: str | None = None
) -> SlideLeakage:
    """Find out whether slides, patients or the groups that were held out are on both sides.

    Centers count where they were held out; else other patients of the same hospital are no leak.

    Args:
        table: one row a patch with, where they are known, `slide`, `patient` and `center`.
        part: True for validation, shape (N,); or the fold that each patch was predicted in.
        by_file: the split was read from a file, which may have kept whole slides together.
        holdout: column whose groups were held out whole.
    """
    folds = part.dtype != bool
    where = "in several folds" if folds else "on both sides"
    checked = [level for level in dict.fromkeys(("slide", "patient", holdout or "slide")) if level in table]
    known = [level for level in dict.fromkeys((*checked, *LEVELS)) if level in table]
    shared = {level: _count_shared(table, level, part) for level in known}
    unknown = {level: int(known_groups(table, level).isna().sum()) for level in known}
    apart = {level for level in known if not shared[level] and (level in checked or not unknown[level])}
    own = not folds and "val" in table and bool((part == table["val"]).all())
    if "slide" not in table and not (apart or by_file or own):
        return SlideLeakage(f"patches of one slide are {where}")
    for level in checked:
        if shared[level]:
            whole = f"{len(table):,} patches" if folds else f"{int(part.sum()):,} validation patches"
            also = f"are {where}" if folds else "train it too"
            message = f"{shared[level]:,} of {whole} are of {_plural(level)} that {also}"
            return SlideLeakage(message, level != "patient", level)
    for level in checked:
        if unknown[level] and (folds or part.any()):
            message = f"{unknown[level]:,} patches are of unknown {_plural(level)}, which may be {where}"
            return SlideLeakage(message, certain=False, level=level)
    # PCam's own parts are of different slides.
    if apart & set(LEVELS) or (own and table["path"].str.contains(r"\.h5(?:\.gz)?$").all()):
        return SlideLeakage()
    return SlideLeakage(f"patches of one slide may be {where}", certain=False)


def _plural(level: str) -> str:
    return f"{level}s" if level in LEVELS else f"groups of {level}"


def _count_shared(table: pd.DataFrame, level: str, part: np.ndarray) -> int:
    """Count the validation patches, or those of all folds, whose group is known and in another part too."""
    groups = known_groups(table, level)
    sides = [True] if part.dtype == bool else np.unique(part)
    return sum(int(groups[part == side].isin(_groups_of(table, level, part != side)).sum()) for side in sides)


def _groups_of(table: pd.DataFrame, level: str, mask: np.ndarray) -> set[str]:
    """Return the known groups of some patches; one that several groups have, such as bare glass, counts for none."""
    groups = known_groups(table, level)
    if "pixel_sha1" in table:
        mask = mask & ~in_several_groups(groups.to_numpy(), table["pixel_sha1"].to_numpy())
    return set(groups[mask].dropna())


def held_out_groups(table: pd.DataFrame, val_mask: np.ndarray, level: str) -> set[str]:
    """Return the groups of a level all of whose patches validate; none where the level is not known."""
    if level not in table:
        return set()
    return set(known_groups(table, level)[val_mask].dropna()) - _groups_of(table, level, ~val_mask)


def keep_apart(
    extra: pd.DataFrame, table: pd.DataFrame, val_mask: np.ndarray, holdout: str | None = None
) -> np.ndarray:
    """Mark the extra training patches without a copy or a group in the validation part.

    Groups that are on both sides of the split already do not count. `tumor_001`, the name of a file, and
    `camelyon16_train_tumor_001`, as PCam calls it, are the same slide: one name may be the end of the other.

    Args:
        extra: one row a patch, with `pixel_sha1` and, where known, those of `LEVELS` and the column `holdout`.
        table: the same of the labeled part.
        val_mask: which rows of the table validate, shape (M,).
        holdout: column whose groups were held out whole.

    Returns:
        Mask over the rows of `extra`, shape (N,).
    """
    apart = ~extra["pixel_sha1"].isin(set(table.loc[val_mask, "pixel_sha1"])).to_numpy()
    for level in {*LEVELS, holdout or "slide"} & set(extra):
        held_out = held_out_groups(table, val_mask, level)
        if level == "slide":
            ends = {end for slide in held_out for end in _ends(slide)}
            held_out = {slide for slide in extra[level].dropna().unique() if slide in ends or held_out & _ends(slide)}
        apart &= ~extra[level].isin(held_out).to_numpy()
    return apart


def unnamed_groups(
    extra: pd.DataFrame, table: pd.DataFrame, val_mask: np.ndarray, holdout: str | None = None
) -> tuple[str, int]:
    """Count the extra patches that do not name their group, which `keep_apart` cannot check.

    Returns:
        The column, that which was held out or the lowest level, and the number; 0 where all groups are named.
    """
    for level in dict.fromkeys((holdout or "slide", *reversed(LEVELS))):
        if held_out_groups(table, val_mask, level):
            unnamed = int(known_groups(extra, level).isna().sum()) if level in extra else len(extra)
            if unnamed:
                return level, unnamed
    return "", 0


def _ends(name: str) -> set[str]:
    """Return a name, and what is left of it without its first words."""
    words = name.split("_")
    return {"_".join(words[first:]) for first in range(len(words))}
