"""A run, a cross-validation or a file of predictions -> labelled predictions, and how their score may flatter."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from pcam_lightning.checkpoint import read_checkpoint
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.messages import UserError, say
from pcam_lightning.overlap import TrainingPatches
from pcam_lightning.parser import PCamCLI
from pcam_lightning.predictions import read_labelled
from pcam_lightning.run import Run, run_of
from pcam_lightning.split import Leak, find_leak
from pcam_lightning.table import UNKNOWN_SLIDE, read_slides

FEW = 20  # slides: with fewer a bootstrap over them gives intervals that are too narrow


class Judged(NamedTuple):
    """Labelled predictions: `rows` has id, label, logit and perhaps slide and fold."""

    rows: pd.DataFrame
    report: Path  # of the page and the numbers, without .html and .json
    data: PCamDataModule | None = None  # where its pictures are; of a cross-validation, split as for its first fold
    made_by: dict[str, Any] | None = None  # checkpoint of a single run: `step` of training, `tta`
    split: dict[str, Any] | None = None  # options that the folds, or validation part, were drawn by
    chosen_by_these: bool = False  # the checkpoint is the epoch that was best on these very patches
    overlap: int | None = None  # of these patches, how many trained the network by id or pixels; None: not known
    slides: "pd.Series[str] | None" = None  # by id, where the user names a file of them


def read_judged(
    target: Path, labels: Path | None, slides: Path | None, root: Path | None = None, *, pictures: bool = True
) -> Judged:
    """Read labelled predictions; of a run's best checkpoint they are made anew.

    Args:
        target: a run's folder, a cross-validation's, or a CSV.
        labels: CSV with id,label, for a CSV that has no labels itself.
        slides: CSV with id,wsi, where the slides are not known already.
        root: data folder, where it has moved since the run.
        pictures: whether a cross-validation's pixels are wanted.

    Raises:
        UserError: something is missing or malformed.
    """
    report = target / "report"
    if (target / "oof.csv").is_file():
        options = yaml.safe_load(Run(target).config.read_text(encoding="utf-8"))["data"]
        data = _data(options, root, Run(target / "fold_0").split) if pictures else None
        rows = read_labelled(target / "oof.csv", labels)
        judged = Judged(rows, report, data, split=options, overlap=_count_overlap(target, rows, data))
    elif target.is_dir():
        run = Run(target)
        checkpoint = run.best if run.best.is_file() else run.last
        if not checkpoint.is_file():
            raise UserError(f"{target}: neither a run nor a finished cross-validation: no checkpoints/, no oof.csv.")
        moved = [] if root is None else ["--data.root", str(root)]
        try:
            validated = PCamCLI(["validate", "--ckpt_path", str(checkpoint), *moved])
        except UserError as error:
            recorded = Path(read_checkpoint(checkpoint)["pcam"]["config"]["data"]["root"])
            if root is None and not recorded.is_dir():
                raise UserError(f"{error} (--root names a folder that has moved.)") from error
            raise
        assert validated.checkpoint is not None
        rows = read_labelled(run_of(checkpoint).predictions("val"), labels)
        split = validated.checkpoint["pcam"]["config"]["data"]
        judged = Judged(
            rows, report, validated.datamodule, validated.made_by, split, checkpoint == run.best, validated.overlap
        )
    else:
        # Its own name: a run's report holds the temperature for predict, which no test label may have a say in.
        judged = Judged(read_labelled(target, labels), target.with_name(f"{target.stem}_report"))
    if slides is not None:
        known = read_slides(slides)
        judged = judged._replace(slides=known)
        judged.rows["slide"] = judged.rows["id"].map(known)
        if unknown := int(judged.rows["slide"].isna().sum()):
            raise UserError(f"{slides}: {unknown:,} of {len(judged.rows):,} patches have no slide there; complete it.")
    return judged


def _count_overlap(crossval: Path, rows: pd.DataFrame, data: PCamDataModule | None) -> int | None:
    """Count the out-of-fold patches that trained the network of their own fold; None where that is not known."""
    if data is None or data.table is None:
        return None
    overlap, table = 0, data.table.set_index("id", drop=False)
    for fold, of_fold in rows.groupby("fold"):
        path = Run(crossval / f"fold_{fold}").last
        if not path.is_file():
            return None
        trained = TrainingPatches.of_checkpoint(path, read_checkpoint(path))
        if not trained.known or not of_fold["id"].isin(table.index).all():
            return None
        overlap += trained.count(table.loc[of_fold["id"]])
    return overlap


def _data(options: dict[str, Any], root: Path | None, split: Path) -> PCamDataModule | None:
    """Return the data that pictures are taken from; None, said aloud, where it is not there any more."""
    cache_dir = Path(options["cache_dir"]) if options["cache_dir"] else None
    data = PCamDataModule(root or Path(options["root"]), split_file=split, cache_dir=cache_dir)
    try:
        data.setup("fit")
    except UserError as error:
        say(f"no pictures: {error}")
        return None
    return data


def find_judged_leak(judged: Judged) -> Leak:
    """Find out whether slides of these patches trained the network too; nothing of a file of predictions."""
    rows, data, split = judged.rows, judged.data, judged.split
    if split is None:
        return Leak()
    if "fold" in rows:
        if "slide" not in rows:  # those that were known went into the file
            return Leak("patches of one slide stand in several folds")
        several = int((rows.groupby("slide")["fold"].transform("nunique") > 1).sum())
        if several:
            return Leak(f"{several:,} of {len(rows):,} patches are of slides that stand in several folds")
        unknown = int((rows["slide"] == UNKNOWN_SLIDE).sum())
        told = f"{unknown:,} patches are of unknown slides, which may stand in several folds"
        return Leak(told, sure=False) if unknown else Leak()
    assert data is not None
    assert data.table is not None
    assert data.val_mask is not None
    table = data.table
    if judged.slides is not None:
        table = table.assign(slide=table["id"].map(judged.slides))
    return find_leak(table, data.val_mask, by_file=split.get("split_file") is not None)


def clusters(rows: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Return what a bootstrap draws: each row's slide where slides are known, else its id, (N,); and which it is."""
    return (rows["slide"].to_numpy(), "slides") if "slide" in rows else (rows["id"].to_numpy(), "patches")


def check_draws(draws: int, seed: int) -> None:
    """Refuse a bootstrap that cannot be made, or tells nothing.

    Raises:
        UserError: too few draws, or a seed below 0.
    """
    if draws < 100:
        raise UserError(f"--draws {draws}: should be at least 100, for 95 % intervals.")
    if seed < 0:
        raise UserError(f"--seed {seed}: should be at least 0.")
