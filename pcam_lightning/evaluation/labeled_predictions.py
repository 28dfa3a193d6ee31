"""A run, a cross-validation or a file of predictions -> labeled predictions, and why their score may be optimistic."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pcam_lightning.data.datamodule import READ_OPTIONS, PCamDataModule
from pcam_lightning.data.leakage import SlideLeakage, find_slide_leakage
from pcam_lightning.data.slide_map import read_slides
from pcam_lightning.data.table_file import LEVELS
from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.training.options import Config
from pcam_lightning.training.predict import validate
from pcam_lightning.training.predictions import read_predictions_csv
from pcam_lightning.training.upgrade import read_config
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import BundledRun, Run, run_at

FEW = 20  # slides: with fewer a bootstrap over them gives intervals that are too narrow


class LabeledPredictions(NamedTuple):
    """Labeled predictions: `rows` has id, label, logit and perhaps center, patient, slide and fold."""

    rows: pd.DataFrame
    report: Path  # of the page and the numbers, without .html and .json
    data: PCamDataModule | None = None  # where its pictures are; of a cross-validation, split as for its first fold
    made_by: dict[str, Any] | None = None  # checkpoint of a single run: `step` of training, `tta`
    split: dict[str, Any] | None = None  # options that the folds, or validation part, were drawn by
    chosen_by_these: bool = False  # the checkpoint is the epoch that was best on these very patches
    overlap: int | None = None  # of these patches, how many trained the network by id or pixels; None: not known
    slides: "pd.Series[str] | None" = None  # by id, where the user names a file of them
    caution: str = ""  # copies of patches that trained the network, which are not counted as overlap


def read_labeled_predictions(
    target: Path,
    labels: Path | None = None,
    slides: Path | None = None,
    root: Path | None = None,
    *,
    pictures: bool = True,
) -> LabeledPredictions:
    """Read labeled predictions; a run's best checkpoint is validated again.

    Args:
        target: a run's folder, a network that comes with the package, a cross-validation's folder, or a CSV.
        labels: CSV with id,label, for a CSV that has no labels itself.
        slides: CSV with id,wsi, where the slides are not known already.
        root: data folder, where it has moved since the run.
        pictures: whether a cross-validation's pixels are wanted.

    Raises:
        UserError: something is missing or malformed.
    """
    run = run_at(target)
    if (target / "oof.csv").is_file():
        options = read_config(Run(target).config)["data"]
        data = _data(options, root, Run(target / "fold_0").split) if pictures else None
        rows = read_predictions_csv(target / "oof.csv", labels)
        overlap = _count_overlap(target, rows, data)
        predictions = LabeledPredictions(
            rows, target / "report", data, split=options, overlap=overlap, caution=_caution(target)
        )
    elif isinstance(run, BundledRun) or target.is_dir():
        predictions = _validate_run(run, labels, root)
    else:
        # Its own name: a run's report holds the temperature for predict, which no test label may have a say in.
        predictions = LabeledPredictions(
            read_predictions_csv(target, labels), target.with_name(f"{target.stem}_report")
        )
    if slides is not None:
        known = read_slides(slides)
        predictions = predictions._replace(slides=known)
        predictions.rows["slide"] = predictions.rows["id"].map(known)
        if unknown := int(predictions.rows["slide"].isna().sum()):
            raise UserError(
                f"{slides}: {unknown:,} of {len(predictions.rows):,} patches have no slide there; complete it."
            )
    return predictions


def _validate_run(run: Run, labels: Path | None, root: Path | None) -> LabeledPredictions:
    """Validate a run's best checkpoint again."""
    checkpoint = run.checkpoint
    if not checkpoint.is_file():
        raise UserError(f"{run.folder}: neither a run nor a finished cross-validation: no checkpoints/, no oof.csv.")
    moved = {} if root is None else {"data": {"root": str(root)}}
    try:
        scores = validate(checkpoint, Config.of_checkpoint(read_checkpoint(checkpoint), **moved))
    except UserError as error:
        recorded = Path(read_checkpoint(checkpoint)["pcam"]["config"]["data"]["root"])
        if root is None and not recorded.exists():
            raise UserError(f"{error} (`root` names a folder that has moved.)") from error
        raise
    return LabeledPredictions(
        read_predictions_csv(scores.predictions, labels),
        run.folder / "report",
        scores.data,
        scores.made_by,
        scores.checkpoint["pcam"]["config"]["data"],
        checkpoint == run.best,
        scores.overlap,
        caution=TrainingPatches.of_checkpoint(checkpoint, scores.checkpoint).caution,
    )


def _count_overlap(crossval: Path, rows: pd.DataFrame, data: PCamDataModule | None) -> int | None:
    """Count the out-of-fold patches that trained the network of their own fold; None where that is not known."""
    if data is None:
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


def _caution(crossval: Path) -> str:
    """Return the caution of the weights that all folds started from."""
    path = Run(crossval / "fold_0").last
    return TrainingPatches.of_checkpoint(path, read_checkpoint(path)).caution if path.is_file() else ""


def _data(options: dict[str, Any], root: Path | None, split: Path) -> PCamDataModule | None:
    """Return the data with the images; None, with a message, where it is not there any more."""
    cache_dir = Path(options["cache_dir"]) if options["cache_dir"] else None
    how: dict[str, Any] = {name: options.get(name) for name in READ_OPTIONS}
    data = PCamDataModule(root or Path(options["root"]), split_file=split, cache_dir=cache_dir, **how)
    try:
        data.setup("fit")
    except UserError as error:
        rank_zero_info(f"no pictures: {error}")
        return None
    return data


def find_evaluation_leakage(predictions: LabeledPredictions) -> SlideLeakage:
    """Find out whether slides of these patches trained the network too; not known of a file of predictions."""
    rows, data, split = predictions.rows, predictions.data, predictions.split
    if predictions.caution:
        return SlideLeakage(f"the network was {predictions.caution}", certain=False)
    if split is None:
        return SlideLeakage()
    holdout = split.get("holdout")
    if "fold" in rows:  # the levels that were known are in the file, other columns are in the data
        if data is not None and holdout is not None and holdout not in rows and holdout in data.table:
            rows = rows.assign(**{holdout: rows["id"].map(data.table.set_index("id")[holdout])})
        return find_slide_leakage(rows, rows["fold"].to_numpy(), holdout=holdout)
    assert data is not None
    table = data.table
    if predictions.slides is not None:
        table = table.assign(slide=table["id"].map(predictions.slides))
    return find_slide_leakage(table, data.val_mask, by_file=split.get("split_file") is not None, holdout=holdout)


def clusters(rows: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Return what a bootstrap draws of each row, (N,), and what it is: centers, patients, slides or patches.

    The highest level that is known and has enough groups counts; where none has, that with the most.
    """
    known = {level: rows[level].nunique() for level in LEVELS if level in rows}
    if not known:
        return rows["id"].to_numpy(), "patches"
    level = next((one for one, count in known.items() if count >= FEW), max(known, key=lambda one: known[one]))
    return rows[level].to_numpy(), f"{level}s"


def check_bootstrap(bootstrap_samples: int, seed: int) -> None:
    """Check the number of bootstrap samples and the seed.

    Raises:
        UserError: too few draws, or a seed below 0.
    """
    if bootstrap_samples < 100:
        raise UserError(f"`bootstrap_samples` {bootstrap_samples}: should be at least 100, for 95 % intervals.")
    if seed < 0:
        raise UserError(f"`seed` {seed}: should be at least 0.")
