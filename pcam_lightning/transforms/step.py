"""The base class of augmentations: options, their ranges, checks and the transform."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch


class Patches(NamedTuple):
    """A training batch: `image`, uint8 (B, 96, 96, 3) or float (B, 3, 96, 96), and `label`, float (B,)."""

    image: torch.Tensor
    label: torch.Tensor


@dataclass
class Step:
    """One augmentation.

    Attributes:
        highest: largest allowed value of each option.
        stage: time of application: on `uint8` pixels; on `float` pixels, which may be outside [0, 1]; or `mixed`, after
            pixels are clipped to [0, 1].
    """

    highest: ClassVar[Mapping[str, float]] = {}
    stage: ClassVar[str] = "float"

    def apply(self, patches: Patches) -> Patches:
        """Sample parameters on the CPU and augment; sample nothing if the options are 0."""
        return patches

    def check(self) -> None:
        """Check that the options can be combined.

        Raises:
            UserError: two options cannot be combined.
        """


def neighbors(batch: torch.Tensor) -> torch.Tensor:
    """Return another patch for each patch: the one before it, since batches are shuffled."""
    return batch.roll(1, dims=0)
