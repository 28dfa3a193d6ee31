"""The options of all augmentations, and how a batch is augmented on its device."""

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
    FlipAndTurn,
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
    FlipAndTurn,
):
    """What happens to training patches, each with a draw of its own; without options they are flipped."""

    @classmethod
    def of(cls, options: "Augmentation | Mapping[str, Any]") -> "Augmentation":
        """Return the options, given as such or as a mapping, checked.

        Raises:
            UserError: they are neither, or an option is unknown or out of its range.
        """
        if isinstance(options, Mapping):
            names = augmentation_options()
            if unknown := sorted(map(str, set(options) - set(names))):
                raise UserError(f"`model.augment`: no option {unknown[0]}; it has {', '.join(names)}.")
            options = cls(**options)
        elif not isinstance(options, cls):
            raise UserError(
                f"`model.augment` {options!r}: should be an Augmentation or a mapping of its options; {{}} flips alone."
            )
        options.check()
        return options

    def check(self) -> None:
        """Check the range of each option, and that they go together.

        Raises:
            UserError: a value is out of its range, or two do not go together.
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
    """Add an augmentation of one's own, whose options become options of `Augmentation`.

    Args:
        step: what `Step` says.
        before: the augmentation that it is applied before; by default it is the last of its stage.
    """
    AUGMENTATIONS.insert(len(AUGMENTATIONS) if before is None else AUGMENTATIONS.index(before), step)
    set_bases((step, *Augmentation.__bases__))


def set_bases(bases: tuple[type, ...]) -> None:
    """Give `Augmentation` the options of these classes."""
    Augmentation.__bases__ = bases
    for name in ("__init__", "__repr__", "__eq__", "__match_args__"):  # dataclass replaces none of them
        delattr(Augmentation, name)
    dataclass(Augmentation)


def augment(
    image: torch.Tensor,
    label: torch.Tensor,
    augmentation: Augmentation,
    normalize: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment a training batch.

    All draws are made on the CPU from torch's default generator, the same on every device. Autocast should be off: in
    half precision an eighth of the gray levels is left, and pixels come from a neighbor's place.

    Args:
        image: uint8, (B, 96, 96, 3).
        label: float, (B,).
        augmentation: what to do.
        normalize: what to do to float images (B, 3, 96, 96) in [0, 1] before their pixels are moved or colored.

    Returns:
        float32 in [0, 1], (B, 3, 96, 96), channels_last, and labels (B,), between 0 and 1 where patches were mixed.
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
        image: uint8, (B, H, W, 3).

    Returns:
        float32, (B, 3, H, W) in channels_last memory: no pixel is moved.
    """
    return image.permute(0, 3, 1, 2).float().div_(255)
