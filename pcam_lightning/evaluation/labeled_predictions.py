"""Labeled predictions of runs, cross-validations and files, and reasons why their scores may be optimistic."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from pcam_lightning.data.datamodule import READ_OPTIONS, PCamDataModule
from pcam_lightning.data.leakage import SlideLeakage, find_slide_leakage
from pcam_lightning.data.pcam_h5 import PCamH5
from pcam_lightning.data.slide_map import read_slides
from pcam_lightning.data.sources import layout_of
from pcam_lightning.data.table_file import LEVELS
from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.training.options import Config
from pcam_lightning.training.predict import validate
from pcam_lightning.training.predictions import read_predictions_csv
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import BundledRun, Run, run_at

FEW = 20  # with fewer slides, bootstrap intervals are too narrow


class LabeledPredictions(NamedTuple):
    """Labeled predictions: `rows` has id, label, logit and optionally center, patient, slide and fold."""

    rows: pd.DataFrame
    report: Path  # path of the report, without .html and .json
    data: PCamDataModule | None = None  # data with the images; for a cross-validation, split for the first fold
    made_by: dict[str, Any] | None = None  # checkpoint of a single run: `step` of training, `tta`
    split: dict[str, Any] | None = None  # options that define the folds or the validation split
    chosen_by_these: bool = False  # the checkpoint was selected as the best epoch on these patches
    overlap: int | None = None  # number of these patches that trained the network, if known
    slides: "pd.Series[str] | None" = None  # slides by id, if the user provides a file
    trained: TrainingPatches = TrainingPatches(known=False)  # training patches of the network, or of all folds


def read_labeled_predictions(
    target: LoadedRun | Path,
    labels: Path | None = None,
    slides: Path | None = None,
    root: Path | None = None,
    *,
    pictures: bool = True,
) -> LabeledPredictions:
    """Read labeled predictions; the best checkpoint of a run is validated again.

    Args:
        target: folder of a run or a cross-validation, network included in the package, CSV file, or result of
            `open_target`.
        labels: CSV file with id,label, if the predictions file has no labels.
        slides: CSV file with id,wsi, if slides are not known yet.
        root: data folder, if it has moved since the run.
        pictures: whether to open the images of a cross-validation.

    Raises:
        UserError: an input is missing or malformed.
    """
    target = open_target(target)
    if isinstance(target, LoadedRun):
        predictions = _validate_run(target, labels, root)
    elif target.is_dir():
        predictions = _read_crossval(target, labels, root, pictures=pictures)
    else:
        # Use another name than the report of a run, whose temperature predict uses and test labels must not affect.
        predictions = LabeledPredictions(
            read_predictions_csv(target, labels), target.with_name(f"{target.stem}_report")
        )
    if slides is not None:
        known = read_slides(slides)
        predictions = predictions._replace(slides=known)
        predictions.rows["slide"] = predictions.rows["id"].map(known)
        if unknown := int(predictions.rows["slide"].isna().sum()):
            raise UserError(
                f"{slides}: {unknown:,} of {len(predictions.rows):,} patches have no slide; add them to the file."
            )
    return predictions


def open_target(target: LoadedRun | Path) -> LoadedRun | Path:
    """Open a checkpoint, a run or a network included in the package; return other paths unchanged.

    Raises:
        UserError: the folder is neither a run nor a finished cross-validation.
    """
    if isinstance(target, LoadedRun):
        return target
    run = run_at(target)  # before all else: it refuses a name that a folder and a network in the package share
    if (target / "oof.csv").is_file():
        return target
    if isinstance(run, BundledRun) or run.checkpoint.is_file() or target.suffix in (".ckpt", ".safetensors"):
        return LoadedRun.open(target)
    if target.is_dir():
        raise UserError(f"{target}: neither a run nor a finished cross-validation, without checkpoints/ and oof.csv.")
    return target


def _validate_run(loaded: LoadedRun, labels: Path | None, root: Path | None) -> LabeledPredictions:
    """Validate the best checkpoint of a run again."""
    recorded = Path(loaded.config["data"]["root"])
    moved: dict[str, Any] = {} if root is None else {"root": str(root)}
    if loaded.bundled and layout_of(root or recorded) is PCamH5:
        moved["val_fraction"] = 0.5  # selects PCam's validation split; slides of its training split trained the network
    try:
        scores = validate(loaded, Config.of_run(loaded, data=moved))
    except UserError as error:
        if root is None and not recorded.exists():
            raise UserError(f"{error} (If the folder has moved, set `root`.)") from error
        raise
    return LabeledPredictions(
        read_predictions_csv(scores.predictions, labels),
        loaded.run.folder / "report",
        scores.data,
        scores.made_by,
        loaded.config["data"],
        loaded.path == loaded.run.best,
        scores.overlap,
        trained=loaded.trained,
    )


def _read_crossval(folder: Path, labels: Path | None, root: Path | None, *, pictures: bool) -> LabeledPredictions:
    """Read out-of-fold predictions, and count patches that trained the network of their own fold."""
    options = yaml.safe_load(Run(folder).config.read_text(encoding="utf-8"))["data"]
    data = _data(options, root, Run(folder / "fold_0").split) if pictures else None
    rows = read_predictions_csv(folder / "oof.csv", labels)
    overlap, trained = 0, TrainingPatches()
    for fold, of_fold in rows.groupby("fold"):
        path = Run(folder / f"fold_{fold}").last
        checkpoint = read_checkpoint(path) if path.is_file() else None
        own = TrainingPatches.of_checkpoint(checkpoint)
        trained |= own
        if data is None:
            continue
        if checkpoint and checkpoint["pcam"]["data"].get("pixels") not in (None, data.train_store.fingerprint):
            rank_zero_info(f"no images: the pixels in {data.root} differ from those that trained {path}.")
            data = None
        else:
            overlap += own.count(data.table[data.table["id"].isin(of_fold["id"])])
    known = overlap if data is not None and (overlap or trained.known) else None
    return LabeledPredictions(rows, folder / "report", data, split=options, overlap=known, trained=trained)


def _data(options: dict[str, Any], root: Path | None, split: Path) -> PCamDataModule | None:
    """Return the data with the images, or log a message and return None if it is missing."""
    cache_dir = Path(options["cache_dir"]) if options["cache_dir"] else None
    how: dict[str, Any] = {name: options.get(name) for name in READ_OPTIONS}
    data = PCamDataModule(root or Path(options["root"]), split_file=split, cache_dir=cache_dir, **how)
    try:
        data.setup("fit")
    except UserError as error:
        rank_zero_info(f"no images: {error}")
        return None
    return data


def describe_leakage(predictions: LabeledPredictions) -> str:
    """Return the reasons why scores are or may be optimistic, certain reasons first; empty for a CSV file."""
    found = [_find_split_leakage(predictions)]
    if caution := predictions.trained.caution:
        found.append(SlideLeakage(f"the network was {caution}", certain=False))
    return " ".join(f"This score {leak.verb}: {leak.message}." for leak in found if leak.message)


def _find_split_leakage(predictions: LabeledPredictions) -> SlideLeakage:
    """Return whether other patches of the same slides trained the network."""
    rows, data, split, trained = predictions.rows, predictions.data, predictions.split, predictions.trained
    if split is None:
        return SlideLeakage()
    holdout = split.get("holdout")
    if "fold" in rows:  # known levels are in the file, other columns in the data
        if data is not None and holdout is not None and holdout not in rows and holdout in data.table:
            rows = rows.assign(**{holdout: rows["id"].map(data.table.set_index("id")[holdout])})
        return find_slide_leakage(rows, rows["fold"].to_numpy(), holdout=holdout)
    assert data is not None
    if (trained.known or trained.origins) and not trained.count(data.table[~data.val_mask]):
        return SlideLeakage()  # the patches are from another folder
    table = data.table
    if predictions.slides is not None:
        table = table.assign(slide=table["id"].map(predictions.slides))
    return find_slide_leakage(table, data.val_mask, by_file=split.get("split_file") is not None, holdout=holdout)


def clusters(rows: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Return the bootstrap cluster of each row, (N,), and its kind: centers, patients, slides or patches.

    Uses the highest known level with at least `FEW` groups, or else the level with the most groups.
    """
    known = {level: rows[level].nunique() for level in LEVELS if level in rows}
    if not known:
        return rows["id"].to_numpy(), "patches"
    level = next((one for one, count in known.items() if count >= FEW), max(known, key=lambda one: known[one]))
    return rows[level].to_numpy(), f"{level}s"


def check_bootstrap(bootstrap_samples: int, seed: int) -> None:
    """Check the number of bootstrap samples and the seed.

    Raises:
        UserError: there are too few samples, or the seed is negative.
    """
    if bootstrap_samples < 100:
        raise UserError(f"`bootstrap_samples` {bootstrap_samples}: should be at least 100, for 95 % intervals.")
    if seed < 0:
        raise UserError(f"`seed` {seed}: should be at least 0.")
