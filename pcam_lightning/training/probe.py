"""probe: a logistic regression on the frozen features of a network, kept as a run."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch import seed_everything
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.heads import find_head, head_of
from pcam_lightning.training.demo_run import draw_demo_data
from pcam_lightning.training.fit_session import FitSession
from pcam_lightning.training.lightning_internals import keyboard_interrupt
from pcam_lightning.training.options import Config
from pcam_lightning.utils.atomic_io import atomic_link, atomic_open, atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import Run, create_run
from pcam_lightning.utils.system import quiet_lightning

KIND = "probe"  # its folders are probe_N
FORMAT = 1  # of cached features
# Inverse strengths of the L2 penalty, on standardized features; tried in this order, each from the one before.
STRENGTHS = tuple(10.0**power for power in range(-6, 2))
PATIENCE = 2  # strengths in a row that do not raise val/auroc, after which no weaker penalty is tried
_FEATURES_OF = ("backbone", "normalize", "crop", "size", "stain", "tta", "features")  # options that features depend on
_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe.

    Attributes:
        run: its folder, which `predict`, `evaluate` and `explain` take as that of a run of `fit`.
        table: a row for each strength that was tried: `C`, `train/auroc`, `train/loss`, `val/auroc`, `val/loss`.
        C: the one with the highest val/auroc.
        score: its val/auroc, as `validate` finds it.
        checkpoint: the network with the fitted last layer.
        demo: whether it was a demo run on synthetic tissue, because there was no data.
    """

    run: Run
    table: pd.DataFrame
    C: float  # what scikit-learn calls it
    score: float
    checkpoint: Path
    demo: bool = False


@quiet_lightning()
def probe(config: Config) -> ProbeResult:
    """Fit the last layer of a network to the features of the training part; the rest of the network stays as it is.

    Features are the inputs of the last layer for patches without augmentation, with `model.tta` d4 the mean over the
    views. They are extracted once, and cached beside the packed images. The strength of the penalty is chosen on the
    validation part, whose score is slightly optimistic for that.

    Args:
        config: the options; those of augmentation, optimizer, schedule and callbacks have no effect.

    Returns:
        The run's folder, `<name>/probe_N`, and its score.

    Raises:
        UserError: an option, the data or the weights cannot be used, or a part lacks a class.
    """
    config.resolve(what=KIND)
    _check(config)
    seed_everything(config.options.seed_everything, workers=True, verbose=False)
    # One pass is over before compiling would pay, and callbacks are about training.
    session = FitSession(config.replace(model={"compile": False}, trainer={"callbacks": None}))
    if session.trainer.world_size > 1:
        raise UserError(f"`trainer.devices` {config.options.trainer.devices}: probe runs on one device; use 1.")
    if session.demo:
        draw_demo_data()
    session.trainer.callbacks.remove(session.guard)  # type: ignore[attr-defined] # it checks steps, and there are none
    session.prepare()
    data, model = session.data, session.model
    rows = data.train_store.rows(data.table["id"])
    label, val = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=bool)
    label[rows], val[rows] = data.table["label"], data.val_mask
    _check_classes(label, val)
    sample_weight = None
    if "sample_weight" in data.table:
        sample_weight = np.empty(len(rows), dtype=np.float32)
        sample_weight[rows] = data.table["sample_weight"]
    weight, bias, table = fit_logistic(load_features(session), label, val, sample_weight)
    best = table.iloc[int(table["val/auroc"].argmax())]
    head = find_head(model.net)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight)[None])
        head.bias.fill_(bias)
    model.trained |= TrainingPatches.of(data.table[~data.val_mask])
    session.open_run(create_run(config.runs, KIND))
    assert session.run is not None
    score = _keep(session, session.run, table, best)
    run = Run(session.run.folder.absolute())
    return ProbeResult(run, table, float(best["C"]), score, run.best, session.demo)


def _check(config: Config) -> None:
    if config.options.data.extra_train is not None:
        raise UserError(
            f"`data.extra_train` {config.options.data.extra_train}: probe fits to the patches of `data.root` alone; "
            "leave it out."
        )
    model, trainer = config.options.model, config.options.trainer
    for name, value in (("loss", "bce"), ("positive_weight", 1)):
        if model[name] != value:
            raise UserError(f"`model.{name}` {model[name]}: probe fits a logistic regression; use {value}.")
    for name, neutral in (("fast_dev_run", False), ("limit_predict_batches", None), ("limit_val_batches", None)):
        if trainer[name] != neutral:
            instead = "null" if neutral is None else "false"
            raise UserError(f"`trainer.{name}` {trainer[name]}: probe needs each patch once; use {instead}.")


def _check_classes(label: np.ndarray, val: np.ndarray) -> None:
    if not val.any():
        raise UserError("`data.val_fraction` 0: no patch is held out to choose the strength of the penalty by.")
    for part, own in (("training", ~val), ("validation", val)):
        if len(set(label[own])) < 2:
            raise UserError(
                f"all {int(own.sum()):,} patches of the {part} part have one label, and a probe needs both; choose "
                "another `data.fold`, `data.split_seed` or `data.split_file`."
            )


def load_features(session: FitSession) -> np.ndarray:
    """Return the features of all labeled patches, from the cache where they are in it.

    Args:
        session: of a run, prepared.

    Returns:
        float32, (N, F), in the order of the packed images.
    """
    store, model = session.data.train_store, session.model
    key = _fingerprint(model, store.fingerprint, str(session.options.trainer.precision))
    path = store.path.with_name(f"features-{key[:16]}.npy")
    shape: tuple[int, int] = (len(store.ids), find_head(model.net).in_features)
    try:
        cached: np.ndarray = np.load(path)
        if cached.dtype == np.float32 and cached.shape == shape:
            rank_zero_info(f"features: {path}.")
            return cached
    except (OSError, ValueError, EOFError, SyntaxError, TokenError):  # none yet, or damaged
        pass
    collector = FeatureCollector(np.empty(shape, dtype=np.float32))
    session.trainer.callbacks.append(collector)  # type: ignore[attr-defined]
    with keyboard_interrupt():
        session.trainer.predict(model, dataloaders=session.data.labeled_dataloader(), return_predictions=False)
    session.trainer.callbacks.remove(collector)  # type: ignore[attr-defined]
    features = collector.features
    if not np.isfinite(features).all():
        raise UserError("some features are NaN or infinite: use other weights, or `trainer.precision` 32-true.")
    try:
        with atomic_open(path) as file:
            np.save(file, features)
        rank_zero_info(f"features: {shape[1]:,} of each of {shape[0]:,} patches, in {path}.")
    except OSError as error:
        rank_zero_info(
            f"{path}: cannot be written ({error.strerror}), so that features are not kept; `data.cache_dir` is another "
            "folder for them and the packed images."
        )
    return features


def _fingerprint(model: PCamClassifier, store: str, precision: str) -> str:
    """Return the SHA-256 of what features depend on: patches, options, weights and precision."""
    head = f"net.{head_of(model.net)}."
    options = {name: model.hparams[name] for name in _FEATURES_OF}
    digest = hashlib.sha256(json.dumps([FORMAT, store, options, precision]).encode())
    for name, value in model.state_dict().items():
        if name.startswith(("net.", "preprocess.")) and not name.startswith(head):
            digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


class FeatureCollector(L.Callback):
    """Collects the inputs of the last layer in predict, in one process; of several views the mean.

    Args:
        features: filled in the order of the batches, float32, (N, F).
    """

    def __init__(self, features: np.ndarray) -> None:
        self.features = features
        self._count = 0
        self._views: list[torch.Tensor] = []
        self._remove: Callable[[], None] = lambda: None

    def on_predict_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hook the last layer of the network that predicts."""
        assert isinstance(pl_module, PCamClassifier)
        head = find_head(pl_module.predictor)
        self._remove = head.register_forward_pre_hook(lambda _, given: self._views.append(given[0].float())).remove

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any) -> None:
        """Keep a batch."""
        mean = torch.stack(self._views).mean(dim=0).cpu().numpy()
        self.features[self._count : self._count + len(mean)] = mean
        self._count += len(mean)
        self._views.clear()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the hook."""
        self._remove()


def fit_logistic(
    features: np.ndarray, label: np.ndarray, val: np.ndarray, sample_weight: np.ndarray | None = None
) -> tuple[np.ndarray, float, pd.DataFrame]:
    """Fit logistic regressions with an L2 penalty of several strengths; return the one with the highest val/auroc.

    Args:
        features: float32, (N, F).
        label: 0 or 1, (N,).
        val: which patches validate, bool, (N,).
        sample_weight: factor of the loss of each patch that is fitted to, (N,); None for 1 of all.

    Returns:
        Weights of the features as they are given, float32, (F,); the bias; and a row for each strength, see
        `ProbeResult.table`.
    """
    scaler = StandardScaler(copy=False)
    train = scaler.fit_transform(features[~val])
    held_out = scaler.transform(features[val])
    model = LogisticRegression(warm_start=True, max_iter=_ITERATIONS)
    rows: list[dict[str, float]] = []
    weight, bias, best, waited = np.zeros(train.shape[1], dtype=np.float32), 0.0, -1.0, 0
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(train, label[~val], None if sample_weight is None else sample_weight[~val])
        row = {"C": strength}
        for part, given, own in (("train", train, ~val), ("val", held_out, val)):
            logit = model.decision_function(given)
            row[f"{part}/auroc"] = auroc(label[own], logit)
            row[f"{part}/loss"] = float(log_loss(label[own], expit(logit)))
        rows.append(row)
        if row["val/auroc"] > best:
            best, waited = row["val/auroc"], 0
            weight = (model.coef_[0] / scaler.scale_).astype(np.float32)
            bias = float(model.intercept_[0] - (model.coef_[0] * scaler.mean_ / scaler.scale_).sum())
        elif (waited := waited + 1) == PATIENCE:
            break
    return weight, bias, pd.DataFrame(rows)


def _keep(session: FitSession, run: Run, table: pd.DataFrame, best: "pd.Series[float]") -> float:
    """Validate the network, and write what a run of fit has; return val/auroc."""
    trainer, keep = session.trainer, session.keep
    session.metrics.on_train_start(trainer, session.model)  # the user's own loggers get the options
    with keyboard_interrupt():
        trainer.validate(session.model, datamodule=session.data, verbose=False)
    metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    score = metrics["val/auroc"]
    keep.record["probe"] = {"C": float(best["C"])}
    keep.save(trainer, run.best)
    atomic_link(run.best, run.last)
    atomic_write(run.folder / "probe.csv", table.to_csv(index=False, lineterminator="\n"))
    fitted = {name: float(best[name]) for name in ("train/auroc", "train/loss")}
    row = {"epoch": 1, "step": 0, **fitted, **metrics}
    atomic_write(run.metrics, pd.DataFrame([row]).to_csv(index=False, lineterminator="\n"))
    session.metrics.log_options(trainer, score)
    for logger in trainer.loggers:
        logger.save()
    return score
