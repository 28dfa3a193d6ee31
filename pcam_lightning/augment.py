"""Augmentation of a whole batch on its device, a draw per patch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch

from pcam_lightning.colour import blurred, draw_colours, draw_stains, jitter_colours, jitter_stains
from pcam_lightning.geometry import (
    apply_symmetries,
    draw_flips_and_turns,
    draw_moves,
    draw_rectangles,
    draw_symmetries,
    draw_windows,
    flip_and_turn,
    move,
)
from pcam_lightning.messages import UserError, check_number


@dataclass
class Augmentation:
    """What happens to training patches, each with a draw of its own.

    Args:
        degrees: patches are flipped, and turned by an angle drawn from [-degrees, degrees]; corners are black.
        quarter_turns: they go through one of the eight symmetries of the square instead: no corner is black, no pixel
            moves by a fraction. Needs degrees 0.
        shift: they are moved by up to so many pixels along each axis; borders are reflected, corners too, and pixels
            interpolated.
        zoom: and magnified by a factor from [1 / (1 + zoom), 1 + zoom].
        stain: haematoxylin, eosin and DAB each get a factor from [1 - stain, 1 + stain], and a shift of optical
            density from [-stain, stain].
        brightness: factor from [1 - brightness, 1 + brightness].
        contrast: the same, of the distance to the patch's mean grey.
        saturation: the same, of the distance to the pixel's grey.
        hue: colours are turned by up to so many whole turns about the grey axis, at most 0.5.
        blur: the share that a blurred copy (Gaussian, sd 1 pixel) has in a patch is drawn from [0, blur].
        noise: sd of noise, drawn from [0, noise], of pixels in [0, 1]. The noise is uniform: a tenth of the cost.
        erase: share of the patches in which a rectangle is painted in their mean colour, but never the centre 32 x 32.
        cutmix: share of the patches that keep a window around their centre alone; what surrounds it is another's, and
            the label stays, since it is the centre's.
        mixup: patches are mixed with others, labels too, in shares drawn from Beta(mixup, mixup), the larger of which
            they have themselves; 0 for none.
    """

    degrees: float = 0.0
    quarter_turns: bool = False
    shift: float = 0.0
    zoom: float = 0.0
    stain: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    erase: float = 0.0
    cutmix: float = 0.0
    mixup: float = 0.0

    @classmethod
    def of(cls, options: "Augmentation | Mapping[str, Any]") -> "Augmentation":
        """Return the options, given as such or as a mapping, checked.

        Raises:
            UserError: they are neither, or an option is unknown or out of its range.
        """
        if isinstance(options, Mapping):
            names = [field.name for field in fields(cls)]
            if unknown := sorted(map(str, set(options) - set(names))):
                raise UserError(f"--model.augment: no option {unknown[0]}; it has {', '.join(names)}.")
            options = cls(**options)
        elif not isinstance(options, cls):
            raise UserError(
                f"--model.augment {options!r}: should be an Augmentation or a mapping of its options; {{}} flips alone."
            )
        options.check()
        return options

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: a value is out of its range, or two do not go together.
        """
        most = {"stain": 1, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0.5, "blur": 1, "erase": 1}
        most |= {"cutmix": 1, "shift": 32, "zoom": 1, "noise": 1}
        for field in fields(self):
            value, highest = getattr(self, field.name), most.get(field.name, math.inf)
            if not isinstance(value, Real):
                check_number(f"--model.augment.{field.name}", value)
            if not (math.isfinite(value) and 0 <= value <= highest):
                bounds = "a number from 0 up" if highest == math.inf else f"from 0 to {highest}"
                raise UserError(f"--model.augment.{field.name} {value}: should be {bounds}.")
        if self.quarter_turns and self.degrees:
            raise UserError(
                f"--model.augment.quarter_turns {self.quarter_turns}: goes with --model.augment.degrees 0, symmetries "
                "instead of angles."
            )


def augment(
    image: torch.Tensor,
    label: torch.Tensor,
    how: Augmentation,
    normalize: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment a training batch.

    All draws are made from torch's default generators; all but the noise on the CPU, the same on every device. Autocast
    should be off: in half precision an eighth of the grey levels is left, and pixels come from a neighbour's place.

    Args:
        image: uint8, (B, 96, 96, 3).
        label: float, (B,).
        how: what to do.
        normalize: what to do to float images (B, 3, 96, 96) in [0, 1] before their pixels are moved or coloured.

    Returns:
        float32 in [0, 1], (B, 3, 96, 96), channels_last, and labels (B,), between 0 and 1 where patches were mixed.
    """
    count, device = len(image), image.device
    if how.quarter_turns:
        image = apply_symmetries(image, draw_symmetries(count))
    unit = to_unit(image)
    if normalize is not None:
        unit = normalize(unit)
    # Before patches are moved, so that the square that the label speaks of keeps its pixels wherever it goes.
    if how.erase:
        mean = unit.mean(dim=(2, 3), keepdim=True)
        unit = torch.where(draw_rectangles(count, how.erase).to(device, non_blocking=True), mean, unit)
    if how.cutmix:
        unit = torch.where(draw_windows(count, how.cutmix).to(device, non_blocking=True), unit, _others(unit))
    if how.shift or how.zoom:
        flips = draw_flips_and_turns(count, how.degrees) * (not how.quarter_turns)
        unit = move(unit, flips, *draw_moves(count, how.shift, how.zoom))
    elif not how.quarter_turns:
        unit = flip_and_turn(unit, draw_flips_and_turns(count, how.degrees))
    if how.stain or how.brightness or how.contrast or how.saturation or how.hue or how.blur:
        unit = unit.contiguous()
        if how.stain:
            unit = jitter_stains(unit, *draw_stains(count, how.stain))
        if how.brightness or how.contrast or how.saturation or how.hue:
            draws = draw_colours(count, how.brightness, how.contrast, how.saturation, how.hue)
            unit = jitter_colours(unit, draws)
        if how.blur:
            share = (how.blur * torch.rand(count, 1, 1, 1)).to(device, non_blocking=True)
            unit = torch.lerp(unit, blurred(unit), share)
    if how.noise:
        # Of sd 1: uniform between -sqrt(3) and sqrt(3).
        noise = torch.empty_like(unit).uniform_(-math.sqrt(3), math.sqrt(3))
        unit = unit + noise.mul_((how.noise * torch.rand(count, 1, 1, 1)).to(device, non_blocking=True))
    unit = unit.clamp(0, 1)
    if how.mixup:
        share = torch.distributions.Beta(how.mixup, how.mixup, validate_args=False).sample((count,))
        # The patch has the larger share, so that its own label still says what it is to the training metrics.
        share = torch.maximum(share, 1 - share).to(device, non_blocking=True)
        unit = torch.lerp(_others(unit), unit, share[:, None, None, None])
        label = torch.lerp(_others(label), label, share)
    return unit.contiguous(memory_format=torch.channels_last), label


def _others(batch: torch.Tensor) -> torch.Tensor:
    """Give each patch another one: its neighbour, since batches are shuffled already."""
    return batch.roll(1, dims=0)


def to_unit(image: torch.Tensor) -> torch.Tensor:
    """Scale uint8 pixels to [0, 1].

    Args:
        image: uint8, (B, H, W, 3).

    Returns:
        float32, (B, 3, H, W) in channels_last memory: no pixel is moved.
    """
    return image.permute(0, 3, 1, 2).float().div_(255)
