"""Augmentation of a whole batch on its device, a draw per patch; the views of test-time augmentation."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch.nn import functional

from pcam_lightning.messages import UserError
from pcam_lightning.stain import draw_stains, jitter_stains, map_pixels

CENTRE = slice(32, 64)  # of rows and columns: what a patch's label speaks of
_GREY = torch.tensor([0.2989, 0.587, 0.114])  # ITU-R 601-2, as torchvision and PIL have it


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
        mixup: patches are mixed with others, labels too, in shares drawn from Beta(mixup, mixup); 0 for none.
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

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: a value is out of its range, or two do not go together.
        """
        most = {"stain": 1, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0.5, "blur": 1, "erase": 1}
        most |= {"cutmix": 1, "shift": 32, "zoom": 1, "noise": 1}
        for field in fields(self):
            value, highest = getattr(self, field.name), most.get(field.name, math.inf)
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
            unit = jitter_colours(unit, draw_colours(count, how))
        if how.blur:
            unit = torch.lerp(unit, blurred(unit), (how.blur * torch.rand(count, 1, 1, 1)).to(device))
    if how.noise:
        # Of sd 1: uniform between -sqrt(3) and sqrt(3).
        noise = torch.empty_like(unit).uniform_(-math.sqrt(3), math.sqrt(3))
        unit = unit + noise.mul_((how.noise * torch.rand(count, 1, 1, 1)).to(device))
    unit = unit.clamp(0, 1)
    if how.erase:
        mean = unit.mean(dim=(2, 3), keepdim=True)
        unit = torch.where(draw_rectangles(count, how.erase).to(device), mean, unit)
    if how.cutmix:
        unit = torch.where(draw_windows(count, how.cutmix).to(device), unit, _others(unit))
    if how.mixup:
        share = torch.distributions.Beta(how.mixup, how.mixup, validate_args=False).sample((count,)).to(device)
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


def views(image: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a batch's eight symmetries, (B, 3, H, W) and channels_last each, the batch itself first."""
    for way in (image, image.transpose(2, 3)):
        for flips in ([], [2], [3], [2, 3]):
            yield way.flip(flips).contiguous(memory_format=torch.channels_last)


def draw_symmetries(count: int) -> torch.Tensor:
    """Draw one of the eight symmetries of the square for each patch, all equally likely.

    Returns:
        bool, (B, 3): horizontal flip, vertical flip, transposition, to be made in this order.
    """
    return torch.rand(count, 3) < 0.5


def apply_symmetries(image: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Flip and transpose each patch as drawn; every pixel keeps its value.

    Args:
        image: uint8, (B, H, W, 3) with H = W.
        draws: bool, (B, 3), see `draw_symmetries`.

    Returns:
        uint8, (B, H, W, 3).
    """
    # Selecting among whole batches moves more bytes than picking patches out would, yet all shapes stay the same and
    # the device is never waited for; as uint8 it is a fiftieth of a training step on a CPU.
    horizontal, vertical, transposed = draws.to(image.device, non_blocking=True)[..., None, None, None].unbind(dim=1)
    image = torch.where(horizontal, image.flip(2), image)
    image = torch.where(vertical, image.flip(1), image)
    return torch.where(~transposed, image, image.transpose(1, 2))  # laid out in memory as the first of the two is


def draw_flips_and_turns(count: int, degrees: float) -> torch.Tensor:
    """Draw, for each patch, flips with probability 1/2 each and a rotation by an angle in [-degrees, degrees].

    Returns:
        float32, (B, 3): horizontal flip (0 or 1), vertical flip (0 or 1), angle in degrees, anticlockwise.
    """
    uniform = torch.rand(count, 3)
    return torch.stack(
        [(uniform[:, 0] < 0.5).float(), (uniform[:, 1] < 0.5).float(), (2 * uniform[:, 2] - 1) * degrees], dim=1
    )


def flip_and_turn(image: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Flip each patch, then rotate it about its centre; what comes from outside is black, pixels are the nearest ones.

    Patch by patch this is torchvision's `hflip`, `vflip`, then `rotate` with its defaults, in one pass.

    Args:
        image: float, (B, 3, H, W) with H = W.
        draws: (B, 3), see `draw_flips_and_turns`.

    Returns:
        float, (B, 3, H, W), channels_last.
    """
    return _warp(image, functional.pad(_turns(draws), (0, 1)), mode="nearest", padding_mode="zeros")


def draw_moves(count: int, shift: float, zoom: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a shift in [-shift, shift] along each axis, and a magnification in [1 / (1 + zoom), 1 + zoom].

    Returns:
        float32: shifts in pixels, (B, 2), to the right and down, and magnifications, (B,).
    """
    uniform = 2 * torch.rand(count, 3) - 1
    return shift * uniform[:, :2], (1 + zoom) ** uniform[:, 2]


def move(image: torch.Tensor, draws: torch.Tensor, shift: torch.Tensor, magnify: torch.Tensor) -> torch.Tensor:
    """Flip, rotate, magnify about the centre, then shift each patch; bilinear, with borders reflected.

    Args:
        image: float, (B, 3, H, W) with H = W.
        draws: (B, 3), see `draw_flips_and_turns`.
        shift: (B, 2), in pixels, to the right and down.
        magnify: (B,).

    Returns:
        float, (B, 3, H, W), channels_last.
    """
    turns = _turns(draws) / magnify[:, None, None]
    back = turns @ (-2 * shift / image.shape[-1])[:, :, None]  # the square reaches from -1 to 1
    return _warp(image, torch.cat([turns, back], dim=2), mode="bilinear", padding_mode="reflection")


def _turns(draws: torch.Tensor) -> torch.Tensor:
    """Return the maps (B, 2, 2) from a pixel of the result back to the source."""
    horizontal, vertical = 1 - 2 * draws[:, 0], 1 - 2 * draws[:, 1]
    angle = torch.deg2rad(draws[:, 2])
    cos, sin = angle.cos(), angle.sin()
    # The rotation undone, then the flips, which are their own inverse.
    return torch.stack(
        [
            torch.stack([horizontal * cos, -horizontal * sin], dim=1),
            torch.stack([vertical * sin, vertical * cos], dim=1),
        ],
        dim=1,
    )


def _warp(image: torch.Tensor, theta: torch.Tensor, mode: str, padding_mode: str) -> torch.Tensor:
    grid = functional.affine_grid(theta.to(image.device, non_blocking=True), list(image.shape), align_corners=False)
    warped = functional.grid_sample(image, grid, mode=mode, padding_mode=padding_mode, align_corners=False)
    return warped.contiguous(memory_format=torch.channels_last)


def draw_colours(count: int, how: Augmentation) -> torch.Tensor:
    """Draw factors of brightness, contrast and saturation, and a turn of the hue.

    Returns:
        float32, (B, 4), the hue in whole turns.
    """
    reach = torch.tensor([how.brightness, how.contrast, how.saturation, how.hue])
    return torch.tensor([1.0, 1.0, 1.0, 0.0]) + reach * (2 * torch.rand(count, 4) - 1)


def jitter_colours(image: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of each patch, in this order.

    The first three are torchvision's, but that nothing is clipped in between. The hue is turned about the grey axis, at
    right angles to it, which is linear: all four are one matrix and one offset a patch.

    Args:
        image: float, (B, 3, H, W).
        draws: (B, 4), see `draw_colours`.

    Returns:
        float, (B, 3, H, W), outside [0, 1] where it got too bright or too dark.
    """
    draws = draws.to(image.device, non_blocking=True)
    brightness, contrast, saturation, hue = draws[:, :, None, None].unbind(dim=1)  # (B, 1, 1)
    grey = _GREY.to(image)
    identity = torch.eye(3, device=image.device)
    to_grey = grey.expand(3, 3)
    angle = 2 * math.pi * hue
    # Rodrigues' formula about (1, 1, 1) / sqrt(3).
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=image.device) / math.sqrt(3)
    turn = angle.cos() * identity + angle.sin() * across + (1 - angle.cos()) / 3
    matrix = turn @ (saturation * identity + (1 - saturation) * to_grey) * contrast * brightness
    # The mean grey is what both turn and saturation leave alone.
    mean = image.mean(dim=(2, 3)) @ grey  # (B,)
    offset = (1 - contrast[:, 0]) * brightness[:, 0] * mean[:, None]
    return map_pixels(image, matrix, offset.expand(-1, 3))


def blurred(image: torch.Tensor) -> torch.Tensor:
    """Blur patches by the binomial filter 1 4 6 4 1 along both axes, a Gaussian of sd 1 pixel; borders are repeated.

    Args:
        image: float, (B, 3, H, W).
    """
    for _ in range(2):
        padded = functional.pad(image, (1, 1, 0, 0), mode="replicate")
        image = (padded[..., :-2] + padded[..., 2:]).add_(image, alpha=2).div_(4)
        padded = functional.pad(image, (0, 0, 1, 1), mode="replicate")
        image = (padded[..., :-2, :] + padded[..., 2:, :]).add_(image, alpha=2).div_(4)
    return image


def draw_rectangles(count: int, share: float) -> torch.Tensor:
    """Draw a rectangle with sides of 16 to 64 pixels anywhere in a share of the patches, without their centre 32 x 32.

    Returns:
        bool, (B, 1, 96, 96), True inside.
    """
    side = 16 + 48 * torch.rand(count, 2)
    first = torch.rand(count, 2) * (96 - side)
    mask = _box(first, first + side) & (torch.rand(count) < share)[:, None, None, None]
    mask[:, :, CENTRE, CENTRE] = False
    return mask


def draw_windows(count: int, share: float) -> torch.Tensor:
    """Draw a window in a share of the patches that holds their centre 32 x 32; in the others it is the whole patch.

    Returns:
        bool, (B, 1, 96, 96), True inside.
    """
    reach = 32 * torch.rand(count, 4)
    return _box(32 - reach[:, :2], 64 + reach[:, 2:]) | (torch.rand(count) >= share)[:, None, None, None]


def _box(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return masks (B, 1, 96, 96) of the pixels from `first` to `last`, (B, 2): row and column."""
    place = torch.arange(96) + 0.5
    inside = (place >= first[..., None]) & (place <= last[..., None])  # (B, 2, 96)
    return inside[:, None, 0, :, None] & inside[:, None, 1, None, :]
