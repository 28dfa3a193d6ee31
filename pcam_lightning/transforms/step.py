"""What an augmentation is: options with their ranges, what is checked, what is drawn and what is done."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch


class Patches(NamedTuple):
    """A training batch on its way: `image`, uint8 (B, 96, 96, 3) or float (B, 3, 96, 96), and `label`, float (B,)."""

    image: torch.Tensor
    label: torch.Tensor


@dataclass
class Step:
    """One augmentation.

    Attributes:
        highest: of each of its options, the highest value that makes sense.
        stage: when it is applied: to `uint8` pixels, to `float` ones, which other steps may have taken out of [0, 1],
            or to `mixed` patches, when pixels are in [0, 1] again.
    """

    highest: ClassVar[Mapping[str, float]] = {}
    stage: ClassVar[str] = "float"

    def apply(self, patches: Patches) -> Patches:
        """Draw on the CPU, the same on every device, and augment; nothing is drawn where its options are 0."""
        return patches

    def check(self) -> None:
        """Check that the options go together.

        Raises:
            UserError: two do not.
        """


def neighbors(batch: torch.Tensor) -> torch.Tensor:
    """Give each patch another one: the one before it, since batches are shuffled already."""
    return batch.roll(1, dims=0)
