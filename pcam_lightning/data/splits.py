"""Which patches train and which validate: pure functions of a table, and the file that records the answer."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pcam_lightning.data.csv_tables import read_text
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_warn, shorten


def split_groups(table: pd.DataFrame, group: np.ndarray, shares: list[float], seed: int) -> np.ndarray:
    """Deal whole groups of patches to parts, each with its share of each class as nearly as whole groups allow.

    Groups are taken from large to small, in a random order among those of about one size, each to the part where the
    counts of both classes fit best afterwards (least sum of squares over their targets). Single patches come last and
    fill up what is left: where all are single, the shares are exact but for whole patches. A part that got none of a
    class then gets the group that fits best from another part: where all parts can have both classes, all do. The draw
    depends on ids, labels and groups alone, not on the order of the rows.

    Args:
        table: one row a patch, with columns `id` and `label`.
        group: the group of each row, shape (N,).
        shares: of each part, more than 0, 1 in all.
        seed: of the draw.

    Returns:
        The part of each row, int64, shape (N,).
    """
    order = np.argsort(table["id"].to_numpy())
    label = table["label"].to_numpy()[order].astype(np.int64)
    # Groups are numbered by their first id, so that the draw does not depend on what they are called.
    number = pd.factorize(group[order])[0]
    counts = np.zeros((number.max() + 1, 2), dtype=np.int64)
    np.add.at(counts, (number, label), 1)
    size = counts.sum(axis=1)
    edges = np.floor(np.outer(np.cumsum(shares), counts.sum(axis=0)) + 1e-6)
    edges[-1] = counts.sum(axis=0)
    target = np.diff(edges, axis=0, prepend=0)
    drawn = np.random.default_rng(seed).permutation(len(counts))
    drawn = drawn[np.argsort(-np.floor(np.log2(size[drawn])), kind="stable")]
    part = np.empty(len(counts), dtype=np.int64)
    dealt = np.zeros_like(target)
    for index in drawn[size[drawn] > 1]:
        misfit = (counts[index] * (2 * (dealt - target) + counts[index]) / np.maximum(target, 1)).sum(axis=1)
        part[index] = misfit.argmin()
        dealt[part[index]] += counts[index]
    singles = drawn[size[drawn] == 1]
    need = np.maximum(target - dealt, 0).astype(np.int64)
    for label_value in (0, 1):
        chosen = singles[counts[singles, label_value] == 1]
        part[chosen] = np.repeat(np.arange(len(shares)), need[:, label_value])[: len(chosen)]
    _give_both_classes(part, counts, target)
    parts = np.empty(len(table), dtype=np.int64)
    parts[order] = part[number]
    return parts


def _give_both_classes(part: np.ndarray, counts: np.ndarray, target: np.ndarray) -> None:
    """Move a group into each part that lacks a class, from a part that keeps all that it has; in place.

    Parts that are due a class come first, and take from parts that keep both classes: splits of existing runs depend on
    this. In the second pass all parts count. It leaves none without a class, unless one has to be: where there are
    as many groups with a class as parts and one part has none, another has two, of which it can spare one.
    """
    dealt = np.zeros_like(target)
    np.add.at(dealt, part, counts)
    passes = [(least, *each) for least in (1, 0) for each in np.argwhere(target >= least)]
    for least, lacking, label_value in passes:
        if dealt[lacking, label_value]:
            continue
        movable, choices = [], []
        for index in np.flatnonzero(counts[:, label_value]):
            left = dealt[part[index]] - counts[index]
            if (left >= (least or np.minimum(dealt[part[index]], 1))).all():
                moved = dealt.copy()
                moved[part[index]] = left
                moved[lacking] += counts[index]
                movable.append(index)
                choices.append(moved)
        if movable:
            best = int(np.argmin([((moved - target) ** 2 / np.maximum(target, 1)).sum() for moved in choices]))
            part[movable[best]], dealt = lacking, choices[best]


def join_groups(group: np.ndarray, pixel_sha1: np.ndarray) -> np.ndarray:
    """Make one group of all groups that have a patch in common: exact duplicates never part.

    Args:
        group: the group of each row, shape (N,).
        pixel_sha1: the same for exact duplicates, shape (N,).

    Returns:
        The joined group of each row, int64, shape (N,).
    """
    first, names = pd.factorize(group)
    second = pd.factorize(pixel_sha1)[0]
    edges = coo_matrix((np.ones(len(first), dtype=bool), (first, second + len(names))), shape=(2 * len(first),) * 2)
    joined: np.ndarray = connected_components(edges, directed=False)[1][first]
    return joined


def in_several_groups(group: np.ndarray, pixel_sha1: np.ndarray) -> np.ndarray:
    """Mark the patches that have an exact copy in another group.

    Args:
        group: the group of each row, shape (N,).
        pixel_sha1: the same for exact duplicates, shape (N,).

    Returns:
        Mask over the rows, shape (N,).
    """
    groups = pd.Series(group).groupby(pixel_sha1).transform("nunique")
    return (groups > 1).to_numpy(copy=True)


def validation_mask(
    table: pd.DataFrame, group: np.ndarray, val_fraction: float, seed: int, folds: int | None = None, fold: int = 0
) -> np.ndarray:
    """Mark the validation part: a share of each class, or one of several folds; groups stay whole.

    Args:
        table: one row a patch, with columns `id` and `label`.
        group: the group of each row, shape (N,).
        val_fraction: share to mark, in [0, 1]; 0 marks none, 1 all. Not used where there are folds.
        seed: of the draw; the folds of one seed have no patch in common.
        folds: number of folds, at least 2.
        fold: the one to mark, counted from 0.

    Returns:
        Mask over the rows, True for validation, shape (N,).

    Raises:
        UserError: a class has no patch on one of the two sides.
    """
    if folds is None and val_fraction in (0, 1):
        return np.full(len(table), bool(val_fraction))
    shares = [val_fraction, 1 - val_fraction] if folds is None else [1 / folds] * folds
    part = split_groups(table, group, shares, seed)
    option, remedy = f"`data.val_fraction` {val_fraction}", ""
    if folds is not None:
        option, remedy = f"`data.folds` {folds}", ", or fewer folds"
    for number in range(len(shares)):  # a fold that cannot be is not found out after hours of the others
        if missing := {0, 1} - set(table.loc[part == number, "label"]):
            raise UserError(
                f"{option}: {len(table):,} patches in {len(np.unique(group)):,} groups that stay whole (slides, "
                f"duplicates) leave none of label {min(missing)} for part {number + 1} of {len(shares)}; use more of "
                f"them{remedy}."
            )
    mask: np.ndarray = part == fold
    return mask


def describe(table: pd.DataFrame, mask: np.ndarray) -> str:
    """Tell how many patches a side has, its share of tumor and, where they are known, its slides."""
    rows = table[mask]
    share = f"{rows['label'].mean():.1%} tumor" if len(rows) else "none"
    count = rows["slide"].nunique() if "slide" in rows else 0
    slides = f", {count:,} slide{'s' if count != 1 else ''}" if "slide" in rows else ""
    return f"{len(rows):,} patches ({share}{slides})"


def read_split(path: Path, table: pd.DataFrame) -> np.ndarray:
    """Read an older run's split.

    Args:
        path: CSV with columns `id` and `split` (train | val), a row for each patch of the table in any order.
        table: one row a patch, with columns `id`, `label` and `pixel_sha1`.

    Returns:
        Mask over the rows, True for validation, shape (N,).

    Raises:
        UserError: the file is missing or malformed, or is the split of other patches.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file. `data.split_file` takes the split.csv of an older run.")
    try:
        frame = read_text(path, "It is not a split.csv, which has the columns id,split.")
        part = frame.set_index("id")["split"]
        if part.index.has_duplicates:
            raise ValueError(f"id {part.index[part.index.duplicated()][0]} stands twice")
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: not a split.csv ({error}); it has the columns id,split, and every id once.") from None
    if invalid := sorted(set(part) - {"train", "val"}):
        raise UserError(f"{path}: split {shorten(invalid[0])!r} is neither train nor val.")
    unknown, extra = set(table["id"]) - set(part.index), set(part.index) - set(table["id"])
    if unknown or extra:
        raise UserError(
            f"{path}: made for other patches: {len(unknown):,} of {len(table):,} patches are not in it, and "
            f"{len(extra):,} of its ids are not among the patches. Use that run's data folder, or no `data.split_file`."
        )
    mask = (table["id"].map(part) == "val").to_numpy()
    if mask.any() and table.loc[mask, "label"].nunique() < 2:
        rank_zero_warn(f"{path}: its validation part has patches of one class only, of which there is no AUROC.")
    return mask


def write_split(path: Path, table: pd.DataFrame, mask: np.ndarray) -> None:
    """Write `split.csv`: id,split with train or val, in the table's order."""
    frame = pd.DataFrame({"id": table["id"], "split": np.where(mask, "val", "train")})
    atomic_write(path, frame.to_csv(index=False, lineterminator="\n"))


def split_digest(table: pd.DataFrame, mask: np.ndarray) -> str:
    """Hash which ids stand on which side, whatever their order: SHA-256, hexadecimal."""
    lines = sorted(f"{patch_id},{side:d}\n" for patch_id, side in zip(table["id"], mask, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
