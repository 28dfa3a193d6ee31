"""Checks of the options of PCamClassifier and of checkpoints."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from pcam_lightning.models.losses import LOSSES
from pcam_lightning.models.optim import OPTIMIZERS, SCHEDULES
from pcam_lightning.transforms.preprocess import STATISTICS
from pcam_lightning.utils.errors import UserError, check_number

_NUMBERS = ("lr", "weight_decay", "momentum", "warmup_epochs", "label_smoothing", "positive_weight")
_INTEGERS = ("freeze_epochs", "crop", "size", "patience")
_NAMES: dict[str, Collection[str]] = {
    "normalize": ("none", *STATISTICS, "own"),
    "features": ("last", "stages"),
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}


def check_options(options: Mapping[str, Any]) -> None:
    """Check the type, the range and the combination of options.

    Args:
        options: options of PCamClassifier.

    Raises:
        UserError: an option has the wrong type or range, or two options cannot be combined.
    """
    for name in _NUMBERS:
        check_number(f"model.{name}", options[name])
    for name in _INTEGERS:
        check_number(f"model.{name}", options[name], whole=True)
    smoothing, crop, size = (options[name] for name in ("label_smoothing", "crop", "size"))
    if not 0 <= smoothing < 1:
        raise UserError(f"`model.label_smoothing` {smoothing}: should be at least 0 and less than 1.")
    if not 32 <= crop <= 96 or crop % 2:
        raise UserError(f"`model.crop` {crop}: should be an even number from 32 (the labeled center) to 96.")
    if size is not None and not 32 <= size <= 512:
        raise UserError(f"`model.size` {size}: should be from 32 to 512 pixels.")
    if not options["positive_weight"]:
        raise UserError("`model.positive_weight` 0: should be more than 0.")
    for name, names in _NAMES.items():
        if options[name] not in names:
            others = "; `import` MODULE adds others" if isinstance(names, dict) else ""
            raise UserError(f"`model.{name}` {options[name]!r}: unknown; use one of {', '.join(names)}{others}.")
    if options["warmup_epochs"] and not SCHEDULES[options["schedule"]].warms_up:
        raise UserError(f"`model.schedule` {options['schedule']}: requires `model.warmup_epochs` 0.")


def check_checkpoint(
    checkpoint: Mapping[str, Any], own: Mapping[str, torch.Tensor], options: Mapping[str, Any]
) -> None:
    """Check that a checkpoint has the same network and preprocessing.

    Args:
        checkpoint: mapping with `state_dict` and optionally `hyper_parameters`.
        own: state dict of the network.
        options: options of PCamClassifier.

    Raises:
        UserError: a preprocessing option, a tensor name or a shape differs.
    """
    recorded, state = checkpoint.get("hyper_parameters", {}), checkpoint["state_dict"]
    for name in ("normalize", "stain", "crop", "size", "features"):
        if name in recorded and recorded[name] != options[name]:
            raise UserError(
                f"`model.{name}` {options[name]}: the checkpoint was trained with {recorded[name]}; omit the option to "
                "use the value of the checkpoint."
            )
    different = sorted(set(own) ^ set(state))
    different += [name for name in own if name in state and own[name].shape != state[name].shape]
    if different:
        tensors = "1 tensor differs" if len(different) == 1 else f"{len(different)} tensors differ"
        raise UserError(
            f"the checkpoint does not match `model.backbone` {options['backbone']}: {tensors} in name or shape, such "
            f"as {different[0]}; omit the option to use the value of the checkpoint."
        )
