"""Which patches train and which validate: pure functions of a table, and the file that records the answer."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, warn


def stratified_split(table: pd.DataFrame, val_fraction: float, seed: int) -> np.ndarray:
    """Mark a share of each class for validation; exact duplicates stay on one side.

    The draw depends on ids, labels and pixels alone: the order of the rows does not matter. Groups of duplicates
    and single patches are taken in a random order as long as they fit; single patches fill up what is left.

    Args:
        table: one row a patch, with columns `id`, `label` and `pixel_sha1` (the same for exact duplicates).
        val_fraction: share of each class to mark, in [0, 1); rounded down to whole patches. 0 marks none.
        seed: of the draw.

    Returns:
        Mask over the rows, True for validation, shape (N,).

    Raises:
        UserError: the fraction is out of range, or a class has no patch on one of the two sides.
    """
    check_fraction(val_fraction)
    if val_fraction == 0:
        return np.zeros(len(table), dtype=bool)
    by_id = table.reset_index(drop=True).sort_values("id")
    counts = by_id["label"].value_counts()
    target = {label: int(val_fraction * count) for label, count in counts.items()}
    for label, count in counts.items():
        if target[label] == 0:
            raise UserError(
                f"--data.val_fraction {val_fraction}: {count} patches of label {label} leave none for validation; "
                "use more patches, a larger fraction, or 0 to train on everything."
            )
    positions, labels = by_id.index.to_numpy(), by_id["label"].to_numpy()
    # Groups are numbered by their first id, so that the draw does not depend on the hash function.
    group = pd.factorize(by_id["pixel_sha1"])[0]
    members = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(group))])
    left = dict(target)
    mask = np.zeros(len(table), dtype=bool)
    for drawn in np.random.default_rng(seed).permutation(len(starts) - 1):
        rows = members[starts[drawn] : starts[drawn + 1]]
        needs = {label: int((labels[rows] == label).sum()) for label in left} if len(rows) > 1 else {labels[rows[0]]: 1}
        if all(left[label] >= need for label, need in needs.items()):
            mask[positions[rows]] = True
            for label, need in needs.items():
                left[label] -= need
    if any(left.values()):
        off = ", ".join(
            f"{count} short of {target[label]:,} in label {label}" for label, count in left.items() if count
        )
        warn(f"exact duplicates keep the validation part from its size: {off}.")
        if table.loc[mask, "label"].nunique() < 2:
            raise UserError("too many exact duplicates: nothing of a class can be held out; try another split_seed.")
    return mask


def check_fraction(val_fraction: float) -> None:
    """Raise UserError where the share for validation is not in [0, 1)."""
    if not 0 <= val_fraction < 1:
        raise UserError(f"--data.val_fraction {val_fraction}: should be at least 0 and less than 1, such as 0.2.")


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
        raise UserError(f"{path}: split {odd[0]!r} is neither train nor val.")
    unknown, extra = set(table["id"]) - set(part.index), set(part.index) - set(table["id"])
    if unknown or extra:
        raise UserError(
            f"{path}: made for other patches: {len(unknown):,} of {len(table):,} patches are not in it, and "
            f"{len(extra):,} of its ids are not among the patches. Use that run's data folder, or no --data.split_file."
        )
    mask = (table["id"].map(part) == "val").to_numpy()
    sides = pd.Series(mask).groupby(table["pixel_sha1"].to_numpy()).nunique()
    if straddling := int((sides > 1).sum()):
        warn(f"{path}: {straddling:,} groups of exact duplicates stand on both sides of this split.")
    if mask.any() and table.loc[mask, "label"].nunique() < 2:
        raise UserError(f"{path}: its validation part has patches of one class only; AUROC needs both.")
    return mask


def write_split(path: Path, table: pd.DataFrame, mask: np.ndarray) -> None:
    """Write `split.csv`: id,split with train or val, in the table's order."""
    frame = pd.DataFrame({"id": table["id"], "split": np.where(mask, "val", "train")})
    write_whole(path, frame.to_csv(index=False, lineterminator="\n"))


def split_digest(table: pd.DataFrame, mask: np.ndarray) -> str:
    """Hash which ids stand on which side, whatever their order: SHA-256, hexadecimal."""
    lines = sorted(f"{patch_id},{side:d}\n" for patch_id, side in zip(table["id"], mask, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
