"""Augmentations of color: stains, brightness and hue, blur and noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from pcam_lightning.transforms.color import blurred, draw_colors, draw_stains, jitter_colors, jitter_stains
from pcam_lightning.transforms.step import Patches, Step


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
