"""The trainer: Lightning's, with its flags checked, and with what always belongs to it."""

from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

from pcam_lightning.checkpoint import WholeCheckpointIO
from pcam_lightning.machine import keep_freed_memory
from pcam_lightning.messages import UserError


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
        "plugins": [*_listed(options.plugins), WholeCheckpointIO()],
    }
    if options.logger in (None, True) or not fits:
        own["logger"] = False
    try:
        trainer = Trainer(**{**options.as_dict(), **own, **more})
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(f"--trainer: {error} (fit --help lists the options)") from error
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def _check(options: Namespace, *, fits: bool) -> None:
    """Refuse what Lightning takes and this project cannot do, or what would train nothing."""
    halves = ("16-true", "bf16-true", "64-true", "64", 64)
    none = 0 in (options.max_epochs, options.max_steps, options.limit_train_batches)
    for wrong, way_on in (
        (options.precision in halves, "precision: 32-true, or one that is mixed"),
        (options.overfit_batches, "overfit_batches: --trainer.limit_train_batches takes its place here"),
        (options.accumulate_grad_batches < 1, "accumulate_grad_batches: at least 1"),
        ((options.gradient_clip_val or 0) < 0, "gradient_clip_val: at least 0"),
        (fits and options.max_epochs == -1 and options.max_steps == -1, "max_epochs: not -1, the cosine needs an end"),
        (
            fits and any(map(_starts_late, _listed(options.callbacks))),
            "callbacks: update_starting_at_step, update_starting_at_epoch may keep weights that nothing has validated; "
            "pcam_lightning.averaging.Averaging has no need of them",
        ),
        (fits and none, "max_epochs, max_steps, limit_train_batches: 0 would train nothing"),
    ):
        if wrong:
            raise UserError(f"--trainer.{way_on}.")


def _starts_late(callback: Any) -> bool:
    late = ("update_starting_at_step", "update_starting_at_epoch")
    return isinstance(callback, EMAWeightAveraging) and any(getattr(callback, name) is not None for name in late)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
