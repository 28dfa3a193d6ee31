"""Augmentations of a whole batch on its device, a draw per patch; each is one class.

To add one, write it here, put it into `AUGMENTATIONS` at the place where it is applied, and add it to the bases of
`Augmentation`. All draws come from one generator, so that the order is part of what a seed means.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from pcam_lightning.transforms.color import draw_colors, draw_stains, jitter_colors, jitter_stains
from pcam_lightning.transforms.geometry import (
    apply_symmetries,
    draw_flips_and_turns,
    draw_rectangles,
    draw_symmetries,
    draw_windows,
    flip_and_turn,
)
from pcam_lightning.transforms.step import Patches, Step, neighbors
from pcam_lightning.utils.errors import UserError


@dataclass
class D4(Step):
    """The eight symmetries of the square.

    Args:
        d4: patches go through one of the eight symmetries of the square, instead of flips and a rotation: no corner is
            black, no pixel moves by a fraction. Needs degrees 0.
    """

    d4: bool = False

    highest: ClassVar[Mapping[str, float]] = {"d4": 1}
    stage: ClassVar[str] = "uint8"

    def apply(self, patches: Patches) -> Patches:
        """Flip and transpose each patch."""
        if not self.d4:
            return patches
        return patches._replace(image=apply_symmetries(patches.image, draw_symmetries(len(patches.image))))


@dataclass
class RandomErasing(Step):
    """Random erasing (Zhong et al. 2020), outside the center.

    Args:
        random_erasing: share of the patches in which a rectangle is painted in their mean color, but never the center
            32 x 32.
    """

    random_erasing: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"random_erasing": 1}

    def apply(self, patches: Patches) -> Patches:
        """Paint a rectangle, before patches are moved: the square that the label is about keeps its pixels."""
        if not self.random_erasing:
            return patches
        image = patches.image
        mean = image.mean(dim=(2, 3), keepdim=True)
        mask = draw_rectangles(len(image), self.random_erasing).to(image.device, non_blocking=True)
        return patches._replace(image=torch.where(mask, mean, image))


@dataclass
class CutMix(Step):
    """CutMix (Yun et al. 2019) of the surroundings of the center.

    Args:
        cutmix: share of the patches that keep a window around their center alone; what surrounds it is another's, and
            the label stays, since it is the center's.
    """

    cutmix: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"cutmix": 1}

    def apply(self, patches: Patches) -> Patches:
        """Replace the surroundings of a window."""
        if not self.cutmix:
            return patches
        image = patches.image
        window = draw_windows(len(image), self.cutmix).to(image.device, non_blocking=True)
        return patches._replace(image=torch.where(window, image, neighbors(image)))


@dataclass
class FlipAndTurn(D4):
    """Flips and rotation.

    Args:
        degrees: patches are flipped, and rotated by an angle drawn from [-degrees, degrees]; corners are black.
    """

    degrees: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"degrees": math.inf}
    stage: ClassVar[str] = "float"

    def apply(self, patches: Patches) -> Patches:
        """Move the pixels of each patch; flips alone are always drawn, unless `d4` has made them."""
        if self.d4:
            return patches
        draws = draw_flips_and_turns(len(patches.image), self.degrees)
        return patches._replace(image=flip_and_turn(patches.image, draws))

    def check(self) -> None:
        """Check that there is no rotation beside the symmetries."""
        if self.d4 and self.degrees:
            raise UserError(
                f"`model.augment.d4` {self.d4}: goes with `model.augment.degrees` 0, symmetries instead of angles."
            )


@dataclass
class StainJitter(Step):
    """Stain jitter in HED color space (Tellez et al. 2018).

    Args:
        stain: hematoxylin, eosin and DAB each get a factor from [1 - stain, 1 + stain], and a shift of optical density
            from [-stain, stain].
    """

    stain: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"stain": 1}

    def apply(self, patches: Patches) -> Patches:
        """Change how much of each stain the patches took up."""
        if not self.stain:
            return patches
        image = patches.image.contiguous()
        return patches._replace(image=jitter_stains(image, *draw_stains(len(image), self.stain)))


@dataclass
class ColorJitter(Step):
    """Brightness, contrast, saturation and hue.

    Args:
        brightness: factor from [1 - brightness, 1 + brightness].
        contrast: the same, of the distance to the patch's mean gray.
        saturation: the same, of the distance to the pixel's gray.
        hue: colors are turned by up to so many whole turns about the gray axis, at most 0.5.
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
        return patches._replace(image=jitter_colors(image, draw_colors(len(image), *options)))


@dataclass
class MixUp(Step):
    """MixUp of patches and labels (Zhang et al. 2018).

    Args:
        mixup: patches are mixed with others, labels too, in shares drawn from Beta(mixup, mixup), the larger of which
            they have themselves; 0 for none.
    """

    mixup: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"mixup": math.inf}
    stage: ClassVar[str] = "mixed"

    def apply(self, patches: Patches) -> Patches:
        """Mix each patch with another one."""
        if not self.mixup:
            return patches
        image, label = patches
        share = torch.distributions.Beta(self.mixup, self.mixup, validate_args=False).sample((len(image),))
        # The patch has the larger share, so that its own label still says what it is to the training metrics.
        share = torch.maximum(share, 1 - share).to(image.device, non_blocking=True)
        mixed = torch.lerp(neighbors(image), image, share[:, None, None, None])
        return Patches(mixed, torch.lerp(neighbors(label), label, share))


# In the order in which those of one stage draw and are applied. The bases of `Augmentation` are the reverse of it.
AUGMENTATIONS: list[type[Step]] = [
    D4,
    RandomErasing,
    CutMix,
    FlipAndTurn,
    StainJitter,
    ColorJitter,
    MixUp,
]
