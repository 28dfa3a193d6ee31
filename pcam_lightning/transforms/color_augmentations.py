"""Augmentations of color: stains, brightness and hue, blur and noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from pcam_lightning.transforms.color import blurred, draw_colors, draw_stains, jitter_colors, jitter_stains
from pcam_lightning.transforms.color_exchange import draw_lab_statistics, mix_amplitudes, mix_stains
from pcam_lightning.transforms.stain import set_lab_statistics
from pcam_lightning.transforms.step import Patches, Step, neighbors


@dataclass
class StainMix(Step):
    """Stains of another patch (the idea of ContriMix, Nguyen et al. 2023, with Macenko's stains for its network).

    Args:
        stain_mix: the two stains of each patch, and their strengths, move towards those of another patch of the batch
            by a share drawn from [0, stain_mix]; how much of each stain a pixel has stays.
    """

    stain_mix: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"stain_mix": 1}

    def apply(self, patches: Patches) -> Patches:
        """Color each patch with stains between its own and another's."""
        if not self.stain_mix:
            return patches
        return patches._replace(image=mix_stains(patches.image, self.stain_mix * torch.rand(len(patches.image))))


@dataclass
class RandStainNA(Step):
    """RandStainNA (Shen et al. 2022).

    Args:
        randstainna: mean and deviation of each channel of CIE L*a*b* become values drawn from the normal distributions
            that those of the batch's patches have, with their sd multiplied by randstainna; 1 as in the paper.
    """

    randstainna: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"randstainna": 5}

    def apply(self, patches: Patches) -> Patches:
        """Bring each patch to a look drawn at random."""
        if not self.randstainna:
            return patches
        image = patches.image
        mean, std = draw_lab_statistics(image, self.randstainna)
        changed = set_lab_statistics(image, mean, std)
        valid = changed.isfinite().flatten(1).all(dim=1)  # a patch of one color has no deviation
        return patches._replace(image=torch.where(valid[:, None, None, None], changed, image))


@dataclass
class FourierMix(Step):
    """Amplitudes of another patch (Yang and Soatto 2020; Xu et al. 2021).

    Args:
        fourier_mix: amplitudes of low frequencies, up to 5 waves along a side, move towards those of another patch of
            the batch by a share drawn from [0, fourier_mix]; phases stay.
    """

    fourier_mix: float = 0.0

    highest: ClassVar[Mapping[str, float]] = {"fourier_mix": 1}

    def apply(self, patches: Patches) -> Patches:
        """Mix amplitudes."""
        if not self.fourier_mix:
            return patches
        share = self.fourier_mix * torch.rand(len(patches.image))
        return patches._replace(image=mix_amplitudes(patches.image, neighbors(patches.image), share))


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
