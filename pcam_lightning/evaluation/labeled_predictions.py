"""A run, a cross-validation or a file of predictions -> labeled predictions, and why their score may be optimistic."""

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

FEW = 20  # slides: with fewer a bootstrap over them gives intervals that are too narrow


class LabeledPredictions(NamedTuple):
    """Labeled predictions: `rows` has id, label, logit and perhaps center, patient, slide and fold."""

    rows: pd.DataFrame
    report: Path  # of the page and the numbers, without .html and .json
    data: PCamDataModule | None = None  # where its pictures are; of a cross-validation, split as for its first fold
    made_by: dict[str, Any] | None = None  # checkpoint of a single run: `step` of training, `tta`
    split: dict[str, Any] | None = None  # options that the folds, or validation part, were drawn by
    chosen_by_these: bool = False  # the checkpoint is the epoch that was best on these very patches
    overlap: int | None = None  # of these patches, how many trained the network; None: not known
    slides: "pd.Series[str] | None" = None  # by id, where the user names a file of them
    trained: TrainingPatches = TrainingPatches(known=False)  # what trained the network; the networks of all folds


def read_labeled_predictions(
    target: LoadedRun | Path,
    labels: Path | None = None,
    slides: Path | None = None,
    root: Path | None = None,
    *,
    pictures: bool = True,
) -> LabeledPredictions:
    """Read labeled predictions; a run's best checkpoint is validated again.

    Args:
        target: a run's folder, a network that comes with the package, a cross-validation's folder, or a CSV; or what
            `open_target` returns.
        labels: CSV with id,label, for a CSV that has no labels itself.
        slides: CSV with id,wsi, where the slides are not known already.
        root: data folder, where it has moved since the run.
        pictures: whether a cross-validation's pixels are wanted.

    Raises:
        UserError: something is missing or malformed.
    """
    target = open_target(target)
    if isinstance(target, LoadedRun):
        predictions = _validate_run(target, labels, root)
    elif target.is_dir():
        predictions = _read_crossval(target, labels, root, pictures=pictures)
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


def open_target(target: LoadedRun | Path) -> LoadedRun | Path:
    """Read a checkpoint, that of a run, or of a network that comes with the package; return other paths as they are.

    Raises:
        UserError: a folder is neither a run nor a finished cross-validation.
    """
    if isinstance(target, LoadedRun) or (target / "oof.csv").is_file():
        return target
    run = run_at(target)
    if isinstance(run, BundledRun) or run.checkpoint.is_file() or target.suffix in (".ckpt", ".safetensors"):
        return LoadedRun.open(target)
    if target.is_dir():
        raise UserError(f"{target}: neither a run nor a finished cross-validation: no checkpoints/, no oof.csv.")
    return target


def _validate_run(loaded: LoadedRun, labels: Path | None, root: Path | None) -> LabeledPredictions:
    """Validate a run's best checkpoint again."""
    recorded = Path(loaded.config["data"]["root"])
    moved: dict[str, Any] = {} if root is None else {"root": str(root)}
    if loaded.bundled and layout_of(root or recorded) is PCamH5:
        moved["val_fraction"] = 0.5  # any share keeps PCam's own parts; slides of its train part trained the network
    try:
        scores = validate(loaded, Config.of_run(loaded, data=moved))
    except UserError as error:
        if root is None and not recorded.exists():
            raise UserError(f"{error} (`root` names a folder that has moved.)") from error
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
    """Read out-of-fold predictions; each patch is looked for among those that trained the network of its own fold."""
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
            rank_zero_info(f"no pictures: {data.root}: its patches have other pixels than those that trained {path}.")
            data = None
        else:
            overlap += own.count(data.table[data.table["id"].isin(of_fold["id"])])
    known = overlap if data is not None and (overlap or trained.known) else None
    return LabeledPredictions(rows, folder / "report", data, split=options, overlap=known, trained=trained)


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


def describe_leakage(predictions: LabeledPredictions) -> str:
    """Return why these scores are, or may be, optimistic, a certain reason first; of a CSV nothing is known."""
    found = [_find_split_leakage(predictions)]
    if caution := predictions.trained.caution:
        found.append(SlideLeakage(f"the network was {caution}", certain=False))
    return " ".join(f"This score {leak.verb}: {leak.message}." for leak in found if leak.message)


def _find_split_leakage(predictions: LabeledPredictions) -> SlideLeakage:
    """Find out whether slides of these patches trained the network too."""
    rows, data, split, trained = predictions.rows, predictions.data, predictions.split, predictions.trained
    if split is None:
        return SlideLeakage()
    holdout = split.get("holdout")
    if "fold" in rows:  # the levels that were known are in the file, other columns are in the data
        if data is not None and holdout is not None and holdout not in rows and holdout in data.table:
            rows = rows.assign(**{holdout: rows["id"].map(data.table.set_index("id")[holdout])})
        return find_slide_leakage(rows, rows["fold"].to_numpy(), holdout=holdout)
    assert data is not None
    if (trained.known or trained.origins) and not trained.count(data.table[~data.val_mask]):
        return SlideLeakage()  # of another folder than the run's
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
