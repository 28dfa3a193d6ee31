"""What fit reports before the first step: its data, leaks between their parts, and patches that trained the weights."""

from pathlib import Path

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.kaggle import KaggleFolder
from pcam_lightning.data.leakage import SlideLeakage, find_slide_leakage
from pcam_lightning.data.slide_map import find_slides
from pcam_lightning.data.splits import describe
from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.utils.errors import rank_zero_info, rank_zero_warn
from pcam_lightning.utils.run_dir import run_of


def report_training_overlap(data: PCamDataModule, before: TrainingPatches, path: Path) -> None:
    """Count the validation patches that trained the weights which a new run starts from.

    Args:
        data: set up for `fit`.
        before: the patches that trained the weights.
        path: of the weights.
    """
    held_out = data.table[data.val_mask]
    if overlap := before.count(held_out):
        split = run_of(path).split
        hint = f" `data.split_file` {split} holds out the patches that its run did." if split.is_file() else ""
        rank_zero_warn(
            f"val/auroc will be optimistic: {overlap:,} of {len(held_out):,} validation patches trained the "
            f"weights that this run starts from, {path}.{hint}"
        )
    if before.caution:
        rank_zero_warn(f"val/auroc may be optimistic: the weights of {path} were {before.caution}.")


def report_data(data: PCamDataModule, split_file: Path | None, *, demo: bool) -> None:
    """Report both parts, and why val/auroc is optimistic or may be.

    Args:
        data: set up for `fit`.
        split_file: that the user gave; a resumed run has its own.
        demo: whether the data are synthetic, whose slides do not matter.
    """
    sides = (describe(data.table, ~data.val_mask), describe(data.table, data.val_mask))
    official = "val" in data.table and data.folds is None and split_file is None and data.holdout is None
    own_split = f", {data.source.own_split}" if official else ""
    rank_zero_info(f"data: {data.root}: {sides[0]} to train on, {sides[1]} to validate{own_split}.")
    leakage = find_slide_leakage(data.table, data.val_mask, by_file=split_file is not None, holdout=data.holdout)
    if data.val_mask.any() and not demo and leakage.message:
        will = "will be optimistic, by 0.027 to 0.037 on the data in README" if leakage.certain else "may be optimistic"
        rank_zero_info(f"val/auroc {will}: {leakage.message}. {_remedy(leakage, data, split_file)}")


def _remedy(leakage: SlideLeakage, data: PCamDataModule, split_file: Path | None) -> str:
    found = find_slides(data.root)
    if split_file is not None and leakage.certain:
        return f"Leave `data.split_file` out: {split_file} separates patches of one slide."
    if leakage.level == "slide" and data.slides is not None:
        return f"{data.slides} should name them all."
    if leakage.level == "slide" and found is not None:
        return f"`data.slides` {found} holds out whole slides."
    if leakage.level == data.holdout:
        return f"{data.root} should name them all."
    if leakage.level in data.table:
        return f"`data.holdout` {leakage.level} holds out whole {leakage.level}s."
    if isinstance(data.source, KaggleFolder):
        return (
            "`data.slides` FILE (id,wsi) holds out whole slides: Kaggle's users share a patch_id_wsi_full.csv, and "
            "the slides command makes one from PCam's own files."
        )
    return "A CSV of patches with a column slide, as `data.root`, and `data.holdout` slide hold out whole slides."
