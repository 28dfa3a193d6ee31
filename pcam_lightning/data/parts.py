"""The labeled part and the test part of a data folder, packed and split."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from pcam_lightning.data.batches import Patches
from pcam_lightning.data.packed_store import PackedStore
from pcam_lightning.data.quality import is_blank
from pcam_lightning.data.splits import in_several_groups, join_groups, validation_mask
from pcam_lightning.utils.errors import rank_zero_info


class LabeledPart(NamedTuple):
    """The labeled patches of a data folder, packed and split; see the properties of PCamDataModule."""

    table: pd.DataFrame
    val_mask: np.ndarray
    always_train: np.ndarray
    store: PackedStore
    train: Patches
    val: Patches


class TestPart(NamedTuple):
    """The patches of test/, packed."""

    table: pd.DataFrame
    store: PackedStore
    patches: Patches


def draw_split(
    table: pd.DataFrame,
    store: PackedStore,
    rows: np.ndarray,
    val_fraction: float,
    seed: int,
    folds: int | None,
    fold: int,
    *,
    by_slide: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a split that keeps exact duplicates together, and slides where asked.

    Args:
        table: one row a patch, with `id`, `label`, `pixel_sha1` and, for slides, `slide`.
        store: packed images of the table.
        rows: row of the store for each row of the table, shape (N,).
        val_fraction: see `validation_mask`, as `seed`, `folds` and `fold`.
        seed: of the draw.
        folds: number of folds, or None.
        fold: the one to hold out.
        by_slide: whether whole slides are held out.

    Returns:
        Masks of the patches that validate, and of those that no split holds out, both shape (N,).

    Raises:
        UserError: a class has no patch on one of the two sides.
    """
    group, blank = table["pixel_sha1"].to_numpy(), np.zeros(len(table), dtype=bool)
    if by_slide:
        # Bare glass has copies in many slides, which are not alike for that: they would become one group.
        blank = in_several_groups(table["slide"].to_numpy(), group)
        if blank.any():
            blank[blank] = is_blank(store.images[rows[blank]])
        group = join_groups(table["slide"].to_numpy(), np.where(blank, table["id"], group))
    mask = validation_mask(table, group, val_fraction, seed, folds, fold)
    if blank.any() and (0 < val_fraction < 1 or folds):
        mask &= ~blank
        rank_zero_info(
            f"{int(blank.sum()):,} blank patches have exact copies in several slides; none of them validates."
        )
    return mask, blank
