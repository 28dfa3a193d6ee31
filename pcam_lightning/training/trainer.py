"""Lightning's trainer, with its options checked and this project's callbacks and plugins added."""

from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelPruning,
    ProgressBar,
    StochasticWeightAveraging,
    TQDMProgressBar,
)

from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.checkpoint import AtomicCheckpointIO
from pcam_lightning.training.lightning_internals import reads_at_epoch_end
from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.system import keep_freed_memory

_OF_CALLBACKS = ("train/patches_per_second", "train/waiting_for_data", "val/best_auroc")  # known when the epoch ends


def build_trainer(options: Namespace, callbacks: list[Callback], *, fits: bool, **more: Any) -> Trainer:
    """Build the trainer of a stage.

    Args:
        options: the user's, of `Trainer`.
        callbacks: those that the stage adds to the user's.
        fits: whether the stage is fit. The others log nothing; fit adds TensorBoard once there is something to log.
        more: arguments of `Trainer` that beat the options.

    Raises:
        UserError: the options do not go together, or not with this machine.
    """
    _check(options, fits=fits)
    own: dict[str, Any] = {
        "callbacks": [*_listed(options.callbacks), *callbacks],
        "plugins": [*_listed(options.plugins), AtomicCheckpointIO()],
    }
    if options.logger in (None, True) or not fits:
        own["logger"] = False
    try:
        trainer = Trainer(**{**options.as_dict(), **own, **more})
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(f"`trainer`: {error}") from error
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


class EpochProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with epochs counted from 1 as in metrics.csv."""

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Start the bar of an epoch."""
        self.train_progress_bar.reset(int(self.total_train_batches))
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1}")


def progress_bar(options: Namespace, callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the progress bar of fit; none where the options leave it out, or where there is one of the user's own."""
    own = _has([*_listed(options.callbacks), *callbacks], ProgressBar)
    return [] if own or options.enable_progress_bar is False else [EpochProgressBar()]


def _check(options: Namespace, *, fits: bool) -> None:
    """Check for options that Lightning accepts and this project does not, or that would train nothing."""
    for wrong, option, hint in (*_refused(options), *(_refused_in_fit(options) if fits else ())):
        if wrong:
            raise UserError(f"`trainer.{option}`: {hint}.")


def _refused(options: Namespace) -> list[tuple[bool, str, str]]:
    """List what no stage accepts: whether the options have it, the option, and what to do."""
    every, halves = options.check_val_every_n_epoch, ("16-true", "bf16-true", "64-true", "64", 64)
    return [
        (options.precision in halves, "precision", "32-true, or one that is mixed"),
        (bool(options.overfit_batches), "overfit_batches", "`trainer.limit_train_batches` takes its place here"),
        (options.accumulate_grad_batches < 1, "accumulate_grad_batches", "at least 1"),
        ((options.gradient_clip_val or 0) < 0, "gradient_clip_val", "at least 0"),
        (
            bool(options.barebones),
            "barebones",
            "not true, it allows neither checkpoints nor metrics, and a run is made of them",
        ),
        (
            _has(_listed(options.plugins), CheckpointIO),
            "plugins",
            "leave the CheckpointIO out, this project writes checkpoints with its own",
        ),
        (
            every is not None and every < 1,
            "check_val_every_n_epoch",
            "at least 1; `trainer.limit_val_batches` 0 validates nothing",
        ),
    ]


def _refused_in_fit(options: Namespace) -> list[tuple[bool, str, str]]:
    """List what fit does not accept, as `_refused` does."""
    callbacks = _listed(options.callbacks)
    return [
        (options.max_epochs == -1 and options.max_steps == -1, "max_epochs", "not -1, the cosine needs an end"),
        (
            0 in (options.max_epochs, options.max_steps, options.limit_train_batches),
            "max_epochs",
            "0 would train nothing, nor would max_steps or limit_train_batches of 0",
        ),
        (
            options.enable_checkpointing is False,
            "enable_checkpointing",
            "not false, a run is resumed, evaluated and used for predictions by its checkpoints; "
            "`trainer.fast_dev_run` true tries a recipe and keeps nothing",
        ),
        *(
            (wrong, "callbacks", hint)
            for wrong, hint in _refused_callbacks(callbacks, logs=options.logger is not False)
        ),
    ]


def _refused_callbacks(callbacks: list[Any], *, logs: bool) -> list[tuple[bool, str]]:
    """List the callbacks that fit does not accept: whether there are any, and what to do."""
    return [
        (
            any(map(_starts_late, callbacks)),
            "update_starting_at_step, update_starting_at_epoch may keep weights that nothing has validated; "
            "pcam_lightning.training.weight_averaging.ExponentialMovingAverage has no need of them",
        ),
        (
            _has(callbacks, BaseFinetuning),
            "leave BaseFinetuning and BackboneFinetuning out, `model.freeze_epochs` freezes the backbone",
        ),
        (
            _has(callbacks, BatchSizeFinder, LearningRateFinder),
            "leave BatchSizeFinder and LearningRateFinder out, they train with options that config.yaml lacks",
        ),
        (
            _has(callbacks, ModelPruning),
            "leave ModelPruning out, its checkpoints hold masks, which predict cannot load",
        ),
        (
            _has(callbacks, StochasticWeightAveraging),
            "leave StochasticWeightAveraging out, no checkpoint holds its average and its schedule cannot be resumed; "
            "pcam_lightning.training.weight_averaging.ExponentialMovingAverage averages weights too",
        ),
        (
            _has(callbacks, GradientAccumulationScheduler),
            "leave GradientAccumulationScheduler out, schedules and resuming need one number of steps per epoch; "
            "`trainer.accumulate_grad_batches` has it",
        ),
        (
            not logs and _has(callbacks, DeviceStatsMonitor, LearningRateMonitor),
            "DeviceStatsMonitor and LearningRateMonitor need a logger, and `trainer.logger` is false",
        ),
    ]


def _starts_late(callback: Any) -> bool:
    late = ("update_starting_at_step", "update_starting_at_epoch")
    return isinstance(callback, EMAWeightAveraging) and any(getattr(callback, name) is not None for name in late)


def _has(objects: list[Any], *classes: type) -> bool:
    return any(isinstance(one, classes) for one in objects)


def check_monitors(trainer: Trainer, model: PCamClassifier, held_out: int) -> None:
    """Check that each monitored metric is there when its callback or the schedule reads it.

    Args:
        trainer: with the user's callbacks; each that has `monitor` is checked.
        model: that logs the metrics.
        held_out: patches in the validation part.

    Raises:
        UserError: a callback or the schedule would find none.
    """
    unvalidated, logged = _why_not_validated(trainer, held_out), {*_OF_CALLBACKS, *model.logged_metrics}
    known = [name for name in logged if not (unvalidated and name.startswith("val/"))]
    if unvalidated and model.schedule.by_score:
        raise UserError(f"`model.schedule` {model.hparams['schedule']}: goes by val/auroc, and {unvalidated}.")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor, name = getattr(callback, "monitor", None), type(callback).__name__
        if not isinstance(monitor, str) or not getattr(callback, "strict", True):
            continue
        others = [one for one in trainer.callbacks if one is not callback]  # type: ignore[attr-defined]
        if monitor not in known and (monitor.startswith("val/") or not any(map(_may_log, others))):
            reason = f": {unvalidated}" if unvalidated and monitor in logged else ""
            raise UserError(
                f"`trainer.callbacks` {name}: no metric {monitor} to monitor{reason}; the metrics are "
                f"{', '.join(sorted(known))}."
            )
        if isinstance(callback, EarlyStopping) and monitor in known:
            _check_time(callback, trainer)


def _why_not_validated(trainer: Trainer, held_out: int) -> str:
    """Return why nothing is validated, or nothing where something is."""
    every = trainer.check_val_every_n_epoch or 1
    if not held_out:
        return "no patch is held out for validation, see `data.val_fraction`"
    if trainer.limit_val_batches == 0:
        return "`trainer.limit_val_batches` 0 validates nothing"
    if 0 < (trainer.max_epochs or -1) < every:
        return f"`trainer.check_val_every_n_epoch` {every} is more than `trainer.max_epochs` {trainer.max_epochs}"
    return ""


def _check_time(callback: EarlyStopping, trainer: Trainer) -> None:
    """Check that early stopping does not read a metric before it has been logged."""
    every = trainer.check_val_every_n_epoch
    at_epoch_end = reads_at_epoch_end(callback, trainer)
    of_validation = callback.monitor.startswith("val/") and callback.monitor not in _OF_CALLBACKS
    late = at_epoch_end and every != 1 if of_validation else not at_epoch_end and every in (1, None)
    if late:
        raise UserError(
            f"`trainer.callbacks` {type(callback).__name__}: {callback.monitor} is not logged yet when it is first "
            f"read; set check_on_train_epoch_end to {str(not at_epoch_end).lower()}."
        )


def _may_log(callback: Callback) -> bool:
    """Return whether a callback may log metrics: the user's may, Lightning's and this project's do not."""
    return not type(callback).__module__.startswith(("lightning.", "pcam_lightning."))


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
