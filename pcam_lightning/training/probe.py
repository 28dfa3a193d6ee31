"""probe: a logistic regression on the frozen features of a network, kept as a run."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
from pcam_lightning.models.heads import head_of
from pcam_lightning.training.demo_run import draw_demo_data
from pcam_lightning.training.fit import FitSession
from pcam_lightning.training.options import Config
from pcam_lightning.utils.atomic_io import atomic_link, atomic_open, atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import Run, create_run

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
        checkpoint: the network with the fitted head.
        demo: whether it was a demo run on synthetic tissue, for want of data.
    """

    run: Run
    table: pd.DataFrame
    C: float  # what scikit-learn calls it
    score: float
    checkpoint: Path
    demo: bool = False


def probe(config: Config) -> ProbeResult:
    """Fit the head of a network to the features of the training part; the rest of the network stays as it is.

    Features are what the head is given for patches without augmentation, with `model.tta` d4 the mean over the views.
    They are extracted once, and cached beside the packed images. The strength of the penalty is chosen on the
    validation part, whose score is slightly optimistic for that.

    Args:
        config: the options; those of augmentation and optimizer have no effect.

    Returns:
        The run's folder, `<name>/probe_N`, and its score.

    Raises:
        UserError: an option, the data or the weights cannot be used, or no patch is held out.
    """
    config.resolve(what=KIND)
    if config.options.data.folds is not None:
        config.use_slides_for_folds()
    _check(config)
    seed_everything(config.options.seed_everything, workers=True, verbose=False)
    session = FitSession(config.replace(model={"compile": False}))  # one pass is over before it would pay
    if session.demo:
        draw_demo_data()
    session.trainer.callbacks.remove(session.guard)  # type: ignore[attr-defined] # it checks steps, and there are none
    session.prepare()
    data, model = session.data, session.model
    if not data.val_mask.any():
        raise UserError("`data.val_fraction` 0: no patch is held out to choose the strength of the penalty by.")
    stored = load_features(session)
    features = stored[data.train_store.rows(data.table["id"])]
    weight, bias, table = fit_logistic(features, data.table["label"].to_numpy(), data.val_mask)
    best = table.iloc[int(table["val/auroc"].argmax())]
    head = model.net.get_submodule(head_of(model.net))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight)[None])  # type: ignore[operator]
        head.bias.fill_(bias)  # type: ignore[operator]
    model.trained |= TrainingPatches.of(data.table[~data.val_mask])
    session.open_run(create_run(config.runs, KIND), "the same call")
    assert session.run is not None
    score = _keep(session, session.run, table, best)
    return ProbeResult(session.run, table, float(best["C"]), score, session.run.best, session.demo)


def _check(config: Config) -> None:
    trainer = config.options.trainer
    for wrong, message in (
        (trainer.fast_dev_run, "leave `trainer.fast_dev_run` out, it would see one batch"),
        (trainer.limit_predict_batches is not None, "leave `trainer.limit_predict_batches` out"),
        (trainer.limit_val_batches is not None, "leave `trainer.limit_val_batches` out"),
        (str(trainer.devices) != "1" or trainer.num_nodes != 1, "runs on one device: leave `trainer.devices` out"),
    ):
        if wrong:
            raise UserError(f"probe sees each patch once: {message}.")


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
    try:
        cached: np.ndarray = np.load(path)
        width = model.net.get_submodule(head_of(model.net)).in_features
        if cached.dtype == np.float32 and cached.shape == (len(store.ids), width):
            rank_zero_info(f"features: {path}.")
            return cached
    except (OSError, ValueError):  # none yet, or damaged
        pass
    collector = FeatureCollector()
    session.trainer.callbacks.append(collector)  # type: ignore[attr-defined]
    session.trainer.predict(model, dataloaders=session.data.labeled_dataloader(), return_predictions=False)
    features = collector.features()
    if not np.isfinite(features).all():
        raise UserError("features that are NaN or infinite: use other weights, or `trainer.precision` 32-true.")
    try:
        with atomic_open(path) as file:
            np.save(file, features)
        rank_zero_info(f"features: {features.shape[1]:,} of each of {len(features):,} patches, kept in {path}.")
    except OSError as error:
        rank_zero_info(f"{path}: cannot be written ({error.strerror}); the features are not kept.")
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
    """Collects what the head of a network is given in predict, in one process; of several views the mean."""

    def __init__(self) -> None:
        self._views: list[torch.Tensor] = []
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._remove: Callable[[], None] = lambda: None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hook the head."""
        network: Any = pl_module.net
        head = network.get_submodule(head_of(network))
        self._remove = head.register_forward_pre_hook(lambda _, given: self._views.append(given[0].float())).remove

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any) -> None:
        """Keep a batch."""
        self._batches.append((outputs["row"].cpu(), torch.stack(self._views).mean(dim=0).cpu()))
        self._views.clear()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the head alone again."""
        self._remove()

    def features(self) -> np.ndarray:
        """Return the features, float32, (N, F), in the order of the rows."""
        order = torch.cat([row for row, _ in self._batches]).argsort()
        found: np.ndarray = torch.cat([feature for _, feature in self._batches])[order].numpy()
        return found


def fit_logistic(features: np.ndarray, label: np.ndarray, val: np.ndarray) -> tuple[np.ndarray, float, pd.DataFrame]:
    """Fit logistic regressions with an L2 penalty of several strengths; return the one with the highest val/auroc.

    Args:
        features: float32, (N, F).
        label: 0 or 1, (N,).
        val: which patches validate, bool, (N,).

    Returns:
        Weights of the features as they are given, float32, (F,); the bias; and a row for each strength, see
        `ProbeResult.table`.
    """
    scaler = StandardScaler().fit(features[~val])
    train, held_out = scaler.transform(features[~val]), scaler.transform(features[val])
    model = LogisticRegression(warm_start=True, max_iter=_ITERATIONS)
    rows: list[dict[str, float]] = []
    weight, bias, best, waited = np.zeros(features.shape[1], dtype=np.float32), 0.0, -1.0, 0
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(train, label[~val])
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
    return score
