"""Color operations on whole batches: stain jitter and color jitter."""

import math

import torch
from torch.nn import functional

DARKEST = 1 / 255  # a black pixel has an optical density of 5.5, not infinity
# Ruifrok and Johnston 2001: what hematoxylin, eosin and DAB absorb of red, green and blue; rows of length 1.
_HED = functional.normalize(torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]), dim=1)
_GRAY = torch.tensor([0.2989, 0.587, 0.114])  # ITU-R 601-2, as torchvision and PIL have it


def map_pixels(image: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Map the color of each pixel by its patch's matrix and offset.

    Args:
        image: float, (B, 3, H, W); planes of one color lie together in memory, else they are copied so.
        matrix: (B, 3, 3), from the old color (last axis) to the new one.
        offset: (B, 3).

    Returns:
        float32, (B, 3, H, W).
    """
    return torch.baddbmm(offset[:, :, None], matrix, image.flatten(2)).view(image.shape)


def draw_stains(count: int, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw, for each patch and each of the three stains, a factor in [1 - reach, 1 + reach] and a shift of its density.

    Tellez et al. 2018. The draw is made on the CPU, from torch's default generator.

    Returns:
        float32, (B, 3) each: factors, and shifts in [-reach, reach], in natural units of optical density.
    """
    uniform = 2 * torch.rand(2, count, 3) - 1
    return 1 + reach * uniform[0], reach * uniform[1]


def jitter_stains(image: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Change how much of each stain the patches took up.

    Args:
        image: float in [0, 1], (B, 3, H, W).
        factor: (B, 3), of hematoxylin, eosin and DAB.
        shift: (B, 3), added to the density of each.

    Returns:
        float, (B, 3, H, W), above 1 where a shift makes glass brighter than light.
    """
    hed = _HED.to(factor)
    # Row by row, density @ inverse(hed) are the stains; changed, and @ hed, they are a density again.
    matrix = torch.linalg.inv(hed) @ (factor[:, :, None] * hed)  # (B, 3, 3)
    log = image.clamp(min=DARKEST).log_()  # the density's negative
    return map_pixels(
        log, matrix.mT.to(image.device, non_blocking=True), -(shift @ hed).to(image.device, non_blocking=True)
    ).exp_()


def draw_colors(count: int, brightness: float, contrast: float, saturation: float, hue: float) -> torch.Tensor:
    """Draw factors of brightness, contrast and saturation, and a turn of the hue.

    Returns:
        float32, (B, 4), the hue in whole turns.
    """
    reach = torch.tensor([brightness, contrast, saturation, hue])
    return torch.tensor([1.0, 1.0, 1.0, 0.0]) + reach * (2 * torch.rand(count, 4) - 1)


def jitter_colors(image: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of each patch, in this order.

    The first three are torchvision's, but that nothing is clipped in between. The hue is turned about the gray axis, at
    right angles to it, which is linear: all four are one matrix and one offset a patch.

    Args:
        image: float, (B, 3, H, W).
        draws: (B, 4), see `draw_colors`.

    Returns:
        float, (B, 3, H, W), outside [0, 1] where it got too bright or too dark.
    """
    draws = draws.to(image.device, non_blocking=True)
    brightness, contrast, saturation, hue = draws[:, :, None, None].unbind(dim=1)  # (B, 1, 1)
    gray = _GRAY.to(image)
    identity = torch.eye(3, device=image.device)
    to_gray = gray.expand(3, 3)
    angle = 2 * math.pi * hue
    # Rodrigues' formula about (1, 1, 1) / sqrt(3).
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=image.device) / math.sqrt(3)
    turn = angle.cos() * identity + angle.sin() * across + (1 - angle.cos()) / 3
    matrix = turn @ (saturation * identity + (1 - saturation) * to_gray) * contrast * brightness
    # The mean gray is what both turn and saturation leave alone.
    mean = image.mean(dim=(2, 3)) @ gray  # (B,)
    offset = (1 - contrast[:, 0]) * brightness[:, 0] * mean[:, None]
    return map_pixels(image, matrix, offset.expand(-1, 3))
