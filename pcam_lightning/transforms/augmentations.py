"""Augmentations of a whole batch on its device, a draw per patch; each is one class.

A class has its options with their ranges, what is checked, what is drawn and what is done. To add one, write it here,
put it into `AUGMENTATIONS` at the place where it is applied, and add it to the bases of `Augmentation`. All draws come
from one generator, so that the order is part of what a seed means.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from pcam_lightning.transforms.color import blurred, draw_colors, draw_stains, jitter_colors, jitter_stains
from pcam_lightning.transforms.geometry import (
    apply_symmetries,
    draw_flips_and_turns,
    draw_moves,
    draw_rectangles,
    draw_symmetries,
    draw_windows,
    flip_and_turn,
    move,
)
from pcam_lightning.utils.errors import UserError


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
        return patches._replace(image=torch.where(window, image, _others(image)))


@dataclass
class Affine(D4):
    """Flips, rotation, shift and zoom, in one interpolation.

    Args:
        degrees: patches are flipped, and rotated by an angle drawn from [-degrees, degrees]; corners are black.
        shift: they are moved by up to so many pixels along each axis; borders are reflected, corners too, and pixels
            interpolated.
        zoom: and magnified by a factor from [1 / (1 + zoom), 1 + zoom].
    """

    degrees: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"degrees": math.inf, "shift": 32, "zoom": 1}
    stage: ClassVar[str] = "float"

    def apply(self, patches: Patches) -> Patches:
        """Move the pixels of each patch; flips alone are always drawn, unless `d4` has made them."""
        image, count = patches.image, len(patches.image)
        if self.shift or self.zoom:
            flips = draw_flips_and_turns(count, self.degrees) * (not self.d4)
            image = move(image, flips, *draw_moves(count, self.shift, self.zoom))
        elif not self.d4:
            image = flip_and_turn(image, draw_flips_and_turns(count, self.degrees))
        return patches._replace(image=image)

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
class Blur(Step):
    """Blur, as of an image out of focus.

    Args:
        blur: the share that a blurred copy (Gaussian, sd 1 pixel) has in a patch is drawn from [0, blur].
    """

    blur: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"blur": 1}

    def apply(self, patches: Patches) -> Patches:
        """Mix each patch with a blurred copy."""
        if not self.blur:
            return patches
        image = patches.image.contiguous()
        share = (self.blur * torch.rand(len(image), 1, 1, 1)).to(image.device, non_blocking=True)
        return patches._replace(image=torch.lerp(image, blurred(image), share))


@dataclass
class Noise(Step):
    """Additive noise.

    Args:
        noise: sd of noise, drawn from [0, noise], of pixels in [0, 1]. The noise is uniform: a tenth of the cost.
    """

    noise: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"noise": 1}

    def apply(self, patches: Patches) -> Patches:
        """Add noise to each patch; it is drawn on the device."""
        if not self.noise:
            return patches
        image = patches.image
        # Of sd 1: uniform between -sqrt(3) and sqrt(3).
        noise = torch.empty_like(image).uniform_(-math.sqrt(3), math.sqrt(3))
        sd = (self.noise * torch.rand(len(image), 1, 1, 1)).to(image.device, non_blocking=True)
        return patches._replace(image=image + noise.mul_(sd))


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
        mixed = torch.lerp(_others(image), image, share[:, None, None, None])
        return Patches(mixed, torch.lerp(_others(label), label, share))


# In the order in which those of one stage draw and are applied. The bases of `Augmentation` are the reverse of it.
AUGMENTATIONS: tuple[type[Step], ...] = (
    D4,
    RandomErasing,
    CutMix,
    Affine,
    StainJitter,
    ColorJitter,
    Blur,
    Noise,
    MixUp,
)


def _others(batch: torch.Tensor) -> torch.Tensor:
    """Give each patch another one: its neighbor, since batches are shuffled already."""
    return batch.roll(1, dims=0)
