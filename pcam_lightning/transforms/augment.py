"""The options of all augmentations, and the augmentation of a batch on its device."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch

from pcam_lightning.transforms.augmentations import (
    AUGMENTATIONS,
    ColorJitter,
    CutMix,
    FlipAndRotate,
    MixUp,
    RandomErasing,
    StainJitter,
)
from pcam_lightning.transforms.step import Patches, Step
from pcam_lightning.utils.errors import UserError, check_number


@dataclass
class Augmentation(
    MixUp,
    ColorJitter,
    StainJitter,
    CutMix,
    RandomErasing,
    FlipAndRotate,
):
    """Options of the training augmentation, sampled per patch; by default patches are only flipped."""

    @classmethod
    def of(cls, options: "Augmentation | Mapping[str, Any]") -> "Augmentation":
        """Convert a mapping to options if needed, and check them.

        Raises:
            UserError: the type is wrong, or an option is unknown or out of range.
        """
        if isinstance(options, Mapping):
            names = augmentation_options()
            if unknown := sorted(map(str, set(options) - set(names))):
                raise UserError(f"`model.augment`: unknown option {unknown[0]}; the options are {', '.join(names)}.")
            options = cls(**options)
        elif not isinstance(options, cls):
            raise UserError(
                f"`model.augment` {options!r}: should be an Augmentation or a mapping of its options, such as {{}}."
            )
        options.check()
        return options

    def check(self) -> None:
        """Check the range and the combination of the options.

        Raises:
            UserError: a value is out of range, or two options cannot be combined.
        """
        for step in AUGMENTATIONS:
            for name, highest in step.highest.items():
                value = getattr(self, name)
                if not isinstance(value, Real):
                    check_number(f"model.augment.{name}", value)
                if not (math.isfinite(value) and 0 <= value <= highest):
                    bounds = "a number of at least 0" if highest == math.inf else f"from 0 to {highest}"
                    raise UserError(f"`model.augment.{name}` {value}: should be {bounds}.")
            step.check(self)


def augmentation_options() -> tuple[str, ...]:
    """Return the names of all options of `Augmentation`."""
    return tuple(field.name for field in fields(Augmentation))


def add_augmentation(step: type[Step], before: type[Step] | None = None) -> None:
    """Register a custom augmentation; its options become options of `Augmentation`.

    Args:
        step: subclass of `Step`.
        before: augmentation to apply after this one; by default, this one is the last of its stage.
    """
    AUGMENTATIONS.insert(len(AUGMENTATIONS) if before is None else AUGMENTATIONS.index(before), step)
    set_bases((step, *Augmentation.__bases__))


def set_bases(bases: tuple[type, ...]) -> None:
    """Set the base classes of `Augmentation`, which define its options."""
    Augmentation.__bases__ = bases
    for name in ("__init__", "__repr__", "__eq__", "__match_args__"):  # dataclass does not replace existing ones
        delattr(Augmentation, name)
    dataclass(Augmentation)


def augment(
    image: torch.Tensor,
    label: torch.Tensor,
    augmentation: Augmentation,
    normalize: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment a training batch.

    Random parameters are sampled on the CPU from torch's default generator, so they are the same on every device.
    Disable autocast: half precision keeps one eighth of the gray levels and shifts pixels by rounding.

    Args:
        image: patches, uint8 (B, 96, 96, 3).
        label: labels, float (B,).
        augmentation: options of the augmentation.
        normalize: function applied to float images (B, 3, 96, 96) in [0, 1] before geometric and color transforms.

    Returns:
        Patches, float32 (B, 3, 96, 96) in [0, 1], channels_last, and labels (B,). MixUp gives labels between 0 and 1.
    """
    patches = _apply("uint8", augmentation, Patches(image, label))
    floats = to_float(patches.image)
    patches = _apply("float", augmentation, patches._replace(image=normalize(floats) if normalize else floats))
    image, label = _apply("mixed", augmentation, patches._replace(image=patches.image.clamp(0, 1)))
    return image.contiguous(memory_format=torch.channels_last), label


def _apply(stage: str, augmentation: Augmentation, patches: Patches) -> Patches:
    for step in AUGMENTATIONS:
        if step.stage == stage:
            patches = step.apply(augmentation, patches)
    return patches


def to_float(image: torch.Tensor) -> torch.Tensor:
    """Scale uint8 pixels to [0, 1].

    Args:
        image: patches, uint8 (B, H, W, 3).

    Returns:
        Patches, float32 (B, 3, H, W) in channels_last memory format, without a copy to another layout.
    """
    return image.permute(0, 3, 1, 2).float().div_(255)
