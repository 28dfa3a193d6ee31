"""Which patches train and which validate: pure functions of a table, and the file that records the answer."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, shorten, warn
from pcam_lightning.table import UNKNOWN_SLIDE


def split_groups(table: pd.DataFrame, group: np.ndarray, shares: list[float], seed: int) -> np.ndarray:
    """Deal whole groups of patches to parts, each with its share of each class as nearly as whole groups allow.

    Groups are taken from large to small, in a random order among those of about one size, each to the part where the
    counts of both classes fit best afterwards (least sum of squares over their targets). Single patches come last and
    fill up what is left: where all are single, the shares are exact but for whole patches. A part that is due a class
    and got none of it then gets the group that fits best, where another part can spare one. The draw depends on ids,
    labels and groups alone, not on the order of the rows.

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
    have = np.zeros_like(target)
    for one in drawn[size[drawn] > 1]:
        misfit = (counts[one] * (2 * (have - target) + counts[one]) / np.maximum(target, 1)).sum(axis=1)
        part[one] = misfit.argmin()
        have[part[one]] += counts[one]
    singles = drawn[size[drawn] == 1]
    need = np.maximum(target - have, 0).astype(np.int64)
    for kind in (0, 1):
        ones = singles[counts[singles, kind] == 1]
        part[ones] = np.repeat(np.arange(len(shares)), need[:, kind])[: len(ones)]
    _give_both_classes(part, counts, target)
    parts = np.empty(len(table), dtype=np.int64)
    parts[order] = part[number]
    return parts


def _give_both_classes(part: np.ndarray, counts: np.ndarray, target: np.ndarray) -> None:
    """Move a group into each part that is due a class and has none of it, where another part can spare one; in place.

    Of a few large groups the deal alone may leave such a part though it need not.
    """
    have = np.zeros_like(target)
    np.add.at(have, part, counts)
    for lacking, kind in np.argwhere(target >= 1):
        if have[lacking, kind]:
            continue
        can = [one for one in np.flatnonzero(counts[:, kind]) if (have[part[one]] - counts[one] >= 1).all()]
        choices = []
        for one in can:
            moved = have.copy()
            moved[part[one]] -= counts[one]
            moved[lacking] += counts[one]
            choices.append(moved)
        if can:
            best = int(np.argmin([((moved - target) ** 2 / np.maximum(target, 1)).sum() for moved in choices]))
            part[can[best]], have = lacking, choices[best]


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


def hold_out(
    table: pd.DataFrame, group: np.ndarray, val_fraction: float, seed: int, folds: int | None = None, fold: int = 0
) -> np.ndarray:
    """Mark the validation part: a share of each class, or one of several folds; groups stay whole.

    Args:
        table: one row a patch, with columns `id` and `label`.
        group: the group of each row, shape (N,).
        val_fraction: share to mark, in [0, 1); 0 marks none. Not used where there are folds.
        seed: of the draw; the folds of one seed have no patch in common.
        folds: number of folds, at least 2.
        fold: the one to mark, counted from 0.

    Returns:
        Mask over the rows, True for validation, shape (N,).

    Raises:
        UserError: a class has no patch on one of the two sides.
    """
    if folds is None and val_fraction == 0:
        return np.zeros(len(table), dtype=bool)
    shares = [val_fraction, 1 - val_fraction] if folds is None else [1 / folds] * folds
    part = split_groups(table, group, shares, seed)
    asked, other = f"--data.val_fraction {val_fraction}", "another share"
    if folds is not None:
        asked, other = f"--data.folds {folds}", "fewer folds"
    for each in range(len(shares)):  # a fold that cannot be is not found out after hours of the others
        if missing := {0, 1} - set(table.loc[part == each, "label"]):
            raise UserError(
                f"{asked}: {len(table):,} patches in {len(np.unique(group)):,} groups that stay whole (slides, "
                f"duplicates) leave none of label {min(missing)} for part {each + 1} of {len(shares)}; use more of "
                f"them, or {other}."
            )
    mask: np.ndarray = part == fold
    return mask


def describe(table: pd.DataFrame, mask: np.ndarray) -> str:
    """Tell how many patches a side has, its share of tumour and, where they are known, its slides."""
    rows = table[mask]
    share = f"{rows['label'].mean():.1%} tumour" if len(rows) else "none"
    slides = f", {rows['slide'].nunique():,} slides" if "slide" in rows else ""
    return f"{len(rows):,} patches ({share}{slides})"


class Leak(NamedTuple):
    """How slides stand on both sides of a split: why its score flatters, or may do so; nothing to tell where not."""

    told: str = ""
    sure: bool = True

    @property
    def verb(self) -> str:
        """What the score does."""
        return "flatters" if self.sure else "may flatter"


def find_leak(table: pd.DataFrame, mask: np.ndarray, *, by_file: bool) -> Leak:
    """Find out whether slides stand on both sides.

    Args:
        table: one row a patch, where slides are known with `slide`.
        mask: True for validation, shape (N,).
        by_file: the split was read from a file, which may have kept whole slides together.
    """
    if "slide" not in table:
        if "val" in table and (mask == table["val"]).all():  # PCam's own parts are of different slides
            return Leak()
        both = "stand on both sides"
        return Leak(f"patches of one slide may {both}", sure=False) if by_file else Leak(f"patches of one slide {both}")
    slide = table["slide"]
    # A patch that several slides have, such as bare glass, tells nothing of any of them.
    common = in_several_groups(slide.to_numpy(), table["pixel_sha1"].to_numpy()) if "pixel_sha1" in table else False
    known = (slide.notna() & (slide != UNKNOWN_SLIDE)).to_numpy()
    shared = int((slide[mask & known].isin(slide[~mask & known & ~np.asarray(common, dtype=bool)])).sum())
    unknown = int((~known).sum())
    if shared:
        return Leak(f"{shared:,} of {int(mask.sum()):,} validation patches are of slides that train it too")
    if unknown and mask.any():
        return Leak(f"{unknown:,} patches are of unknown slides, which may stand on both sides", sure=False)
    return Leak()


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
        raise UserError(f"{path}: no such file. --data.split_file takes the split.csv of an older run.")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        part = frame.set_index("id")["split"]
        if part.index.has_duplicates:
            raise ValueError(f"id {part.index[part.index.duplicated()][0]} stands twice")
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: not a split.csv ({error}); it has the columns id,split, and every id once.") from None
    if odd := sorted(set(part) - {"train", "val"}):
        raise UserError(f"{path}: split {shorten(odd[0])!r} is neither train nor val.")
    unknown, extra = set(table["id"]) - set(part.index), set(part.index) - set(table["id"])
    if unknown or extra:
        raise UserError(
            f"{path}: made for other patches: {len(unknown):,} of {len(table):,} patches are not in it, and "
            f"{len(extra):,} of its ids are not among the patches. Use that run's data folder, or no --data.split_file."
        )
    mask = (table["id"].map(part) == "val").to_numpy()
    if mask.any() and table.loc[mask, "label"].nunique() < 2:
        warn(f"{path}: its validation part has patches of one class only, of which there is no AUROC.")
    return mask


def write_split(path: Path, table: pd.DataFrame, mask: np.ndarray) -> None:
    """Write `split.csv`: id,split with train or val, in the table's order."""
    frame = pd.DataFrame({"id": table["id"], "split": np.where(mask, "val", "train")})
    write_whole(path, frame.to_csv(index=False, lineterminator="\n"))


def split_digest(table: pd.DataFrame, mask: np.ndarray) -> str:
    """Hash which ids stand on which side, whatever their order: SHA-256, hexadecimal."""
    lines = sorted(f"{patch_id},{side:d}\n" for patch_id, side in zip(table["id"], mask, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
