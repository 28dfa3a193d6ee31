"""Augmentations of a batch on its device, sampled per patch; one class each.

To add one, write a class here, insert it into `AUGMENTATIONS` where it should be applied, and add it to the bases of
`Augmentation`. All augmentations sample from one generator, so results for a seed depend on their order.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from pcam_lightning.transforms.color import jitter_colors, jitter_stains, sample_colors, sample_stains
from pcam_lightning.transforms.geometry import (
    apply_symmetries,
    flip_and_rotate,
    sample_flips_and_rotations,
    sample_rectangles,
    sample_symmetries,
    sample_windows,
)
from pcam_lightning.transforms.step import Patches, Step, neighbors
from pcam_lightning.utils.errors import UserError


@dataclass
class D4(Step):
    """The eight symmetries of the square.

    Args:
        d4: apply one of the eight symmetries of the square instead of flips and a rotation. Leaves no black corners and
            does not resample pixels. Requires degrees 0.
    """

    d4: bool = False

    highest: ClassVar[Mapping[str, float]] = {"d4": 1}
    stage: ClassVar[str] = "uint8"

    def apply(self, patches: Patches) -> Patches:
        """Flip and transpose each patch."""
        if not self.d4:
            return patches
        return patches._replace(image=apply_symmetries(patches.image, sample_symmetries(len(patches.image))))


@dataclass
class RandomErasing(Step):
    """Random erasing (Zhong et al. 2020) outside the center.

    Args:
        random_erasing: share of patches in which a rectangle is filled with the mean color of the patch. The center
            32 x 32 is never filled.
    """

    random_erasing: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"random_erasing": 1}

    def apply(self, patches: Patches) -> Patches:
        """Fill a rectangle, before geometric transforms, so that the labeled center keeps its pixels."""
        if not self.random_erasing:
            return patches
        image = patches.image
        mean = image.mean(dim=(2, 3), keepdim=True)
        mask = sample_rectangles(len(image), self.random_erasing).to(image.device, non_blocking=True)
        return patches._replace(image=torch.where(mask, mean, image))


@dataclass
class CutMix(Step):
    """CutMix (Yun et al. 2019) outside the center.

    Args:
        cutmix: share of patches whose surroundings are replaced by those of another patch. A window around the center
            and the label, which describes the center, are kept.
    """

    cutmix: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"cutmix": 1}

    def apply(self, patches: Patches) -> Patches:
        """Replace the pixels outside a window."""
        if not self.cutmix:
            return patches
        image = patches.image
        window = sample_windows(len(image), self.cutmix).to(image.device, non_blocking=True)
        return patches._replace(image=torch.where(window, image, neighbors(image)))


@dataclass
class FlipAndRotate(D4):
    """Flips and rotation.

    Args:
        degrees: rotate flipped patches by a random angle in [-degrees, degrees]; corners are black.
    """

    degrees: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"degrees": math.inf}
    stage: ClassVar[str] = "float"

    def apply(self, patches: Patches) -> Patches:
        """Flip and rotate each patch; with `d4`, do nothing."""
        if self.d4:
            return patches
        parameters = sample_flips_and_rotations(len(patches.image), self.degrees)
        return patches._replace(image=flip_and_rotate(patches.image, parameters))

    def check(self) -> None:
        """Check that `d4` and `degrees` are not combined."""
        if self.d4 and self.degrees:
            raise UserError(f"`model.augment.d4` {self.d4}: requires `model.augment.degrees` 0.")


@dataclass
class StainJitter(Step):
    """Stain jitter in HED color space (Tellez et al. 2018).

    Args:
        stain: scale the amounts of hematoxylin, eosin and DAB by random factors in [1 - stain, 1 + stain]. Shift their
            optical densities by random values in [-stain, stain].
    """

    stain: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"stain": 1}

    def apply(self, patches: Patches) -> Patches:
        """Change the amount of each stain."""
        if not self.stain:
            return patches
        image = patches.image.contiguous()
        return patches._replace(image=jitter_stains(image, *sample_stains(len(image), self.stain)))


@dataclass
class ColorJitter(Step):
    """Brightness, contrast, saturation and hue.

    Args:
        brightness: scale pixels by a random factor in [1 - brightness, 1 + brightness].
        contrast: scale differences from the mean gray of the patch by a factor in [1 - contrast, 1 + contrast].
        saturation: scale differences from the gray of the pixel by a factor in [1 - saturation, 1 + saturation].
        hue: rotate colors about the gray axis by a random number of full turns in [-hue, hue], at most 0.5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0.5}

    def apply(self, patches: Patches) -> Patches:
        """Change the colors of each patch."""
        options = self.brightness, self.contrast, self.saturation, self.hue
        if not any(options):
            return patches
        image = patches.image.contiguous()
        return patches._replace(image=jitter_colors(image, sample_colors(len(image), *options)))


@dataclass
class MixUp(Step):
    """MixUp of patches and labels (Zhang et al. 2018).

    Args:
        mixup: mix patches and labels with those of other patches. Weights are sampled from Beta(mixup, mixup); the
            larger weight is for the patch itself. 0 disables mixing.
    """

    mixup: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"mixup": math.inf}
    stage: ClassVar[str] = "mixed"

    def apply(self, patches: Patches) -> Patches:
        """Mix each patch with another patch."""
        if not self.mixup:
            return patches
        image, label = patches
        share = torch.distributions.Beta(self.mixup, self.mixup, validate_args=False).sample((len(image),))
        # The patch gets the larger weight, so that training metrics can use its own label.
        share = torch.maximum(share, 1 - share).to(image.device, non_blocking=True)
        mixed = torch.lerp(neighbors(image), image, share[:, None, None, None])
        return Patches(mixed, torch.lerp(neighbors(label), label, share))


# Order of sampling and application within a stage. The bases of `Augmentation` are in reverse order.
AUGMENTATIONS: list[type[Step]] = [
    D4,
    RandomErasing,
    CutMix,
    FlipAndRotate,
    StainJitter,
    ColorJitter,
    MixUp,
]
