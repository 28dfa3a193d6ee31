"""validate, test and predict: a checkpoint's network on a part of the data."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch import seed_everything

from pcam_lightning.data.datamodule import READ_OPTIONS, PCamDataModule
from pcam_lightning.data.splits import split_digest
from pcam_lightning.metrics.abstention import ABSTAINS, DECISIONS, decide
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.adapt_batchnorm import AdaptBatchNorm
from pcam_lightning.training.demo_run import draw_demo_data, is_demo_folder
from pcam_lightning.training.feature_distance import AddDistance, find_feature_distance
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.training.options import Config
from pcam_lightning.training.predictions import collect_predictions, join_predictions, write_predictions_csv
from pcam_lightning.training.resume import take_split
from pcam_lightning.training.run_record import label_digest
from pcam_lightning.training.run_report import read_temperature, read_thresholds
from pcam_lightning.training.trainer import build_trainer
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.run_dir import check_writable
from pcam_lightning.utils.system import quiet_lightning

Target = LoadedRun | Path | str


@dataclass(frozen=True)
class Scores:
    """What `validate` or `test` found.

    Attributes:
        metrics: such as val/auroc, by name; NaN where there is none.
        predictions: CSV in the run: id,label,logit and, where slides are known, slide.
        data: the data module, set up.
        loaded: the run.
        made_by: `step` of training and `tta`, on which logits depend.
        overlap: patches of the part that trained the network; None where that is not recorded.
        file: of `metrics`, in the run.
    """

    metrics: dict[str, float]
    predictions: Path
    data: PCamDataModule
    loaded: LoadedRun
    made_by: dict[str, Any]
    overlap: int | None
    file: Path


@dataclass
class _Session:
    """One network on a part of its data: what all stages but fit share."""

    loaded: LoadedRun
    config: Config
    others: Sequence[LoadedRun] = ()
    overlap: int | None = 0

    def __post_init__(self) -> None:
        self.config.resolve(self.loaded.checkpoint, trains=False)
        seed_everything(self.config.options.seed_everything, workers=True, verbose=False)
        self.data, model, trainer = self.config.build()
        self.model = self.loaded.load_into(model)
        self.trainer = build_trainer(trainer, [], fits=False)
        if is_demo_folder(self.config.options.data.root):
            draw_demo_data()

    @property
    def made_by(self) -> dict[str, Any]:
        """What logits depend on: the step of training, the views that they are the mean of, and adapted statistics."""
        adapted = any(isinstance(one, AdaptBatchNorm) for one in self.trainer.callbacks)  # type: ignore[attr-defined]
        made_by = {"step": self.loaded.step, "tta": self.model.hparams["tta"]}
        return made_by | ({"batchnorm": "adapted"} if adapted else {})

    def report_overlap(self, table: pd.DataFrame) -> None:
        """Count the patches of a part, with columns `id` and `pixel_sha1`, that trained one of the networks."""
        trained = reduce(or_, [one.trained for one in (self.loaded, *self.others)])
        self.overlap = trained.report(table, self.loaded.path)


@quiet_lightning()
def validate(ckpt_path: Target, config: Config | None = None) -> Scores:
    """Score a checkpoint on the validation part of its run's split.

    Writes `validate.json` and `val_predictions.csv` into the run.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or pcam or pcam-small, which come with the package; or one that
            is loaded already.
        config: options; by default those of the run.

    Raises:
        UserError: the checkpoint or the data cannot be used, or the run cannot be written into.
    """

    def prepare(session: _Session) -> pd.DataFrame:
        data = session.data
        checkpoint = session.loaded.checkpoint
        take_split(data, session.loaded.run, checkpoint, session.config.options)
        data.setup("validate")
        if not data.val_mask.any():
            raise UserError("`data.val_fraction` 0: this run held nothing out, so there is nothing to validate on.")
        record, pixels = checkpoint["pcam"], data.train_store.fingerprint
        own = split_digest(data.table, data.val_mask) == record["split"]["sha256"]
        if not own or record["data"].get("pixels", pixels) != pixels:
            rank_zero_warn("this is not the validation part of the checkpoint's run.")
        labels = label_digest(data.table)
        if record["data"].get("labels", labels) != labels:
            rank_zero_warn(f"{data.root}: the labels or weights have changed since this run began.")
        return data.table[data.val_mask]

    return _score(ckpt_path, config, "validate", "val", prepare)


@quiet_lightning()
def test(ckpt_path: Target, config: Config | None = None) -> Scores:
    """Score a checkpoint on test/, where its labels are known.

    Writes `test.json` and `test_predictions.csv` into the run; takes and raises what `validate` does.
    """

    def prepare(session: _Session) -> pd.DataFrame:
        session.data.setup("test")
        return session.data.test_table

    return _score(ckpt_path, config, "test", "test", prepare)


def _score(
    target: Target, config: Config | None, stage: str, part: str, prepare: Callable[[_Session], pd.DataFrame]
) -> Scores:
    loaded = LoadedRun.open(target)
    check_writable(loaded.run.folder)
    session = _Session(loaded, config or Config.of_run(loaded))
    table = prepare(session)
    session.report_overlap(table)
    predicted = collect_predictions(session.trainer, session.model, session.data, stage)
    metrics = {name: float(value) for name, value in sorted(session.trainer.callback_metrics.items())}
    file = loaded.run.folder / f"{stage}.json"
    predictions = loaded.run.predictions(part)
    if session.trainer.is_global_zero:
        write_predictions_csv(predictions, table, predicted["logit"])
        known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        record = {"checkpoint": str(loaded.path), **session.made_by, "root": str(session.data.root)}
        content = {**record, "training_overlap": session.overlap, **known}
        atomic_write(file, json.dumps(content, indent=2) + "\n")
        rank_zero_info(f"{file}: {', '.join(f'{name} {value:.4f}' for name, value in metrics.items())}")
    return Scores(metrics, predictions, session.data, loaded, session.made_by, session.overlap, file)


@quiet_lightning()
def predict(
    ckpt_path: Target,
    config: Config | None = None,
    *,
    ensemble: Sequence[Path | str] = (),
    chosen: frozenset[str] = frozenset(),
    calibrate: bool = False,
    abstain: bool = False,
) -> pd.DataFrame:
    """Predict the patches of test/, or of a folder that holds patches alone.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or pcam or pcam-small, which come with the package; or one that
            is loaded already.
        config: options; by default those of the run.
        ensemble: more checkpoints; the mean of all their logits is returned.
        chosen: names of the options that count for all networks of an ensemble although their runs differ in them,
            such as `data.root` and `model.tta`.
        calibrate: divide logits by the temperature that `evaluate` found for this checkpoint.
        abstain: call each patch normal, tumor or neither by the thresholds that `evaluate` found for this checkpoint.

    Returns:
        Columns `id`, in the order of the submission, `logit` (float32) and `prob` (float64); with several views or
        networks `sd_views`, the sd of their logits; with `abstain` `ood_distance` from the training patches, `ood`,
        whether a patch is out of distribution, and `decision`: normal, tumor or abstain. Empty in all processes but
        the first.

    Raises:
        UserError: a checkpoint or the data cannot be used, or there is no temperature, or are no thresholds.
    """
    if ensemble and (calibrate or abstain):
        name, what = ("calibrate", "temperature") if calibrate else ("abstain", "thresholds")
        raise UserError(f"`{name}`: needs the {what} of one run, and `ensemble` names several.")
    loaded = LoadedRun.open(ckpt_path)
    others = [LoadedRun.open(one) for one in ensemble]
    paths = [os.path.realpath(one.path) for one in (loaded, *others)]  # a link may loop
    if twice := next((one for one in paths if paths.count(one) > 1), None):
        raise UserError(f"`ensemble`: {twice} is there twice.")
    session = _Session(loaded, config or Config.of_run(loaded), others)
    session.data.setup("predict")
    temperature = read_temperature(loaded.run, session.made_by) if calibrate else 1.0
    abstention = _Abstention(session) if abstain else None
    session.model.ensemble = [_load_member(session, other, chosen) for other in others]
    table = session.data.test_table
    session.report_overlap(table)
    rank_zero_info(f"data: {session.data.root}; checkpoint: {', '.join(str(one.path) for one in (loaded, *others))}")
    predicted = collect_predictions(session.trainer, session.model, session.data, "predict")
    if not session.trainer.is_global_zero:
        return pd.DataFrame({"id": [], "logit": [], "prob": []})
    predictions = join_predictions(table["id"], predicted["logit"], temperature)
    for name in predicted.columns.drop("logit"):
        predictions[name] = predicted.loc[predictions["id"], name].to_numpy()
    return predictions if abstention is None else abstention.apply(predictions, predicted["logit"])


class _Abstention:
    """Decides patches by the thresholds of a session's run, and marks out-of-distribution patches."""

    def __init__(self, session: _Session) -> None:
        self.thresholds = read_thresholds(session.loaded.run, session.made_by)
        self.distance = find_feature_distance(session.loaded)
        if self.distance is not None:
            session.trainer.callbacks.append(AddDistance(self.distance))  # type: ignore[attr-defined]

    def apply(self, predictions: pd.DataFrame, logit: "pd.Series[float]") -> pd.DataFrame:
        """Add `decision` and, where distances are known, `ood`; logits are those that no temperature has changed."""
        decision = decide(logit.loc[predictions["id"]].to_numpy(), self.thresholds)
        rank_zero_info(f"abstains on {(decision == ABSTAINS).mean():.1%} of {len(predictions):,} patches.")
        if self.distance is not None:
            ood = predictions["ood_distance"] > self.distance.threshold
            rank_zero_info(f"{ood.mean():.1%} of them are out of distribution.")
            predictions = predictions.assign(ood=ood)
        return predictions.assign(decision=[DECISIONS[one] for one in decision.tolist()])


def _load_member(session: _Session, member: LoadedRun, chosen: frozenset[str]) -> PCamClassifier:
    """Load one more network; its run must have had the same data and precision, unless those are set explicitly."""
    same = [("data", "root"), ("trainer", "precision"), *(("data", name) for name in READ_OPTIONS)]
    for group, name in same:
        own, other = (str(one.config[group].get(name)) for one in (session.loaded, member))
        if own != other and f"{group}.{name}" not in chosen:
            raise UserError(
                f"{member.path}: its run had `{group}.{name}` {other}, and that of {session.loaded.path} {own}; set "
                "the option."
            )
    tta = session.model.hparams["tta"] if "model.tta" in chosen else None  # else as the run of each had it
    return member.classifier(tta)
