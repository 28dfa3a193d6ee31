"""Checks before a run is resumed: recipe, data, steps per epoch and validation must be those that it began with."""

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L

from pcam_lightning.data.datamodule import SPLIT_OPTIONS, PCamDataModule
from pcam_lightning.data.splits import split_digest
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.checkpoint import epochs_done, is_finished
from pcam_lightning.training.lightning_internals import end_by_epochs
from pcam_lightning.training.run_record import batches_per_epoch, data_record, steps_per_epoch
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.run_dir import Run, shown

# Options of the network that a resumed optimizer and its schedule go by.
_OPTIMIZER = ("optimizer", "lr", "weight_decay", "momentum", "schedule", "warmup_epochs", "patience")
# Options of the trainer that scores depend on, and that no line of output would show.
_TRAINER = ("accumulate_grad_batches", "limit_train_batches", "limit_val_batches")
# Those that may change within a run: the change is reported and recorded.
_REPORTED = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "callbacks")
_NEW_RUN = "or start a new run from its weights alone: `model.weights` CKPT, without `ckpt_path`"


def check_resumed(
    path: Path,
    checkpoint: dict[str, Any],
    run: Run | None,
    options: dict[str, Any],
    trainer: L.Trainer,
    data: PCamDataModule,
) -> None:
    """Check that a checkpoint can be resumed: in a new run its network and steps per epoch, else recipe and data too.

    Args:
        path: of the checkpoint.
        checkpoint: what `read_checkpoint` returns.
        run: that is resumed; None for a new run.
        options: those of now, as plain values.
        trainer: that is to resume.
        data: set up for `fit`.

    Raises:
        UserError: it cannot.
    """
    _check_checkpoint(path, checkpoint, options["model"], trainer)
    end_by_epochs(trainer)
    if run is not None:
        check_recipe(checkpoint["pcam"]["config"], options)
        _check_data(run, checkpoint["pcam"], data)
    _check_steps(path, checkpoint, steps_per_epoch(trainer, data))


def describe_progress(checkpoint: dict[str, Any], trainer: L.Trainer) -> str:
    """Return where a resumed run continues, and where it ends."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    end = f" of {epochs}" if epochs > 0 else ""
    end += f", to step {steps:,} at most" if steps > 0 else ""
    return f" resumes at epoch {epochs_done(checkpoint) + 1}{end}"


def _check_checkpoint(path: Path, checkpoint: dict[str, Any], model: Mapping[str, Any], trainer: L.Trainer) -> None:
    """Check that a checkpoint is of a whole epoch of fit, unfinished, and that its optimizer keeps its options."""
    if "probe" in checkpoint["pcam"]:
        raise UserError(
            f"{path}: is of a probe, which has no optimizer to resume; `model.weights` takes its weights for a new run."
        )
    if not checkpoint["pcam"].get("whole", True):
        raise UserError(
            f"{path}: a callback of the user's own saved it within an epoch, and fit resumes from whole ones, as a "
            "run's last.ckpt and best.ckpt are; `model.weights` takes its weights for a new run."
        )
    if is_finished(checkpoint, trainer.max_epochs, trainer.max_steps):
        raise UserError(
            f"`ckpt_path`: has had {epochs_done(checkpoint)} epochs already; a higher `trainer.max_epochs` resumes it "
            f"(or max_steps, of which it has had {checkpoint['global_step']:,})."
        )
    recorded = checkpoint["hyper_parameters"]
    for name in _OPTIMIZER:
        if recorded[name] != model[name]:
            raise UserError(
                f"`model.{name}` {model[name]}: a resumed optimizer keeps its options; use `model.{name}` "
                f"{recorded[name]}, {_NEW_RUN}."
            )


def _check_steps(path: Path, checkpoint: dict[str, Any], steps: int) -> None:
    """Check that the number of steps per epoch is unchanged: the learning rate schedule depends on it."""
    recorded = checkpoint["pcam"]["steps_per_epoch"]
    if checkpoint["global_step"] and recorded != steps:
        raise UserError(
            f"{path}: its run had {recorded} steps per epoch and this one would have {steps}, so that the schedule "
            "of the learning rate would not fit. Use its data, `data.batch_size`, `trainer.devices`, "
            f"`trainer.accumulate_grad_batches` and `trainer.limit_train_batches`, {_NEW_RUN}."
        )


def _check_data(run: Run, recorded: dict[str, Any], data: PCamDataModule) -> None:
    """Check that patches, split and labels of a run are unchanged; report image files that have changed."""
    before, now = recorded["data"], data_record(data)
    changed = {name for name in ("pixels", "labels", "extra_labels") if before.get(name) != now.get(name)}
    moved = before["root"] != now["root"]
    if split_digest(data.table, data.val_mask) != recorded["split"]["sha256"] or (moved and "pixels" in changed):
        raise UserError(
            f"{shown(run.folder)}: the patches or their split differ from this run's, which has {before['root']}, and "
            "patches that trained it would validate it. Leave the options of data out, name the last.ckpt of another "
            "run with `ckpt_path`, or start a new run."
        )
    if "pixels" in changed:
        rank_zero_warn(f"{data.root}: the image files have changed since this run began; their ids are the same.")
    if before.get("extra_train") != now.get("extra_train"):
        raise UserError(
            f"`data.extra_train` {data.extra_train}: the patches differ from this run's. Use its folder, as it was, or "
            "start a new run."
        )
    if changed & {"labels", "extra_labels"}:
        root = data.root if "labels" in changed else data.extra_train
        raise UserError(
            f"{shown(run.folder)}: the labels or weights of {root} differ from those that this run began with; restore "
            "them and `data.columns`, or start a new run."
        )


def take_split(data: PCamDataModule, run: Run, checkpoint: dict[str, Any] | None, options: Any) -> None:
    """Use the split that a run was made with, unless the options ask for another one."""
    assert checkpoint is not None
    recorded, chosen = checkpoint["pcam"]["config"]["data"], options.data
    if run.split.is_file() and all(str(recorded.get(name)) == str(chosen[name]) for name in ("root", *SPLIT_OPTIONS)):
        data.split_file = run.split


def check_recipe(recorded: dict[str, Any], options: dict[str, Any]) -> None:
    """Check that the recipe of a resumed run is unchanged; report options that may change.

    Args:
        recorded: the options that the run was recorded with.
        options: those of now, as plain values.

    Raises:
        UserError: an option differs that the run's scores depend on.
    """
    # Of an option that is newer than the run, the default is what the run had.
    defaults = {f"model.{name}": one.default for name, one in signature(PCamClassifier.__init__).parameters.items()}
    now, before = _flat(options), _flat(recorded)
    before = {name: defaults[name] for name in now if name in defaults} | before
    fixed = {"seed_everything", "data.batch_size", "data.resize", "data.mpp", *(f"trainer.{name}" for name in _TRAINER)}
    fixed |= {name for name in now if name.startswith("model.")} - {"model.compile"}
    for name in now:
        if name not in before or json.dumps(now[name]) == json.dumps(before[name]):
            continue
        if name in fixed:
            raise UserError(
                f"`{name}` {now[name]}: this run was trained with {before[name]}; leave the option out to resume it, "
                f"{_NEW_RUN}."
            )
        if name.removeprefix("trainer.") in _REPORTED:
            rank_zero_info(f"{name}: {_short(now[name])} from here on, {_short(before[name])} before.")
    if any(now[name] != before.get(name) for name in ("trainer.max_epochs", "trainer.max_steps")):
        length = f"{now['trainer.max_epochs']} epochs" if now["trainer.max_steps"] == -1 else "the new length"
        rank_zero_info(f"schedule: the learning rate follows that of a run of {length} from here on.")


def check_validation(trainer: L.Trainer, data: PCamDataModule) -> None:
    """Check that the last validation of an epoch is at its end, where the checkpoint is saved.

    A checkpoint is saved at the end of an epoch, so that its last validation has to be there too.

    Raises:
        UserError: `val_check_interval` would leave steps between an epoch's last validation and its end.
    """
    batches = batches_per_epoch(trainer, data)
    if not data.val_mask.any() or trainer.limit_val_batches == 0 or getattr(trainer, "fast_dev_run", False):
        return
    interval = getattr(trainer, "val_check_interval", None)
    if interval is None:  # a span of time
        raise UserError("`trainer.val_check_interval`: give it in batches or epochs, not in time.")
    between = interval if isinstance(interval, int) else max(1, int(batches * interval))
    fits = (between % batches if trainer.check_val_every_n_epoch is None else batches % between) == 0
    if not fits:
        raise UserError(
            f"`trainer.val_check_interval` {interval}: an epoch has {batches} batches, and would not end with a "
            "validation: best.ckpt would get the score of other weights. Use 1.0, or a number that divides them."
        )


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return options by their dotted names; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
