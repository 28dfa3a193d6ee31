"""Stain jitter and color jitter of batches."""

import math

import torch
from torch.nn import functional

DARKEST = 1 / 255  # limits the optical density of black pixels to 5.5
# Ruifrok and Johnston 2001: red, green and blue absorption of hematoxylin, eosin and DAB; rows have unit length.
_HED = functional.normalize(torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]), dim=1)
_GRAY = torch.tensor([0.2989, 0.587, 0.114])  # ITU-R 601-2, as in torchvision and PIL


def map_pixels(image: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Apply an affine color map to each patch.

    Args:
        image: patches, float (B, 3, H, W); copied if not contiguous.
        matrix: matrix of each patch, (B, 3, 3), from the old color (last axis) to the new one.
        offset: offset of each patch, (B, 3).

    Returns:
        Patches, float32 (B, 3, H, W).
    """
    return torch.baddbmm(offset[:, :, None], matrix, image.flatten(2)).view(image.shape)


def sample_stains(count: int, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample a factor and a density shift for each patch and each of the three stains (Tellez et al. 2018).

    Samples are generated on the CPU by torch's default generator.

    Returns:
        Factors in [1 - reach, 1 + reach] and optical density shifts (natural logarithm) in [-reach, reach], float32
        (B, 3) each.
    """
    uniform = 2 * torch.rand(2, count, 3) - 1
    return 1 + reach * uniform[0], reach * uniform[1]


def jitter_stains(image: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Change the amount of each stain.

    Args:
        image: patches, float (B, 3, H, W) in [0, 1].
        factor: factors of hematoxylin, eosin and DAB, (B, 3).
        shift: shifts of their optical densities, (B, 3).

    Returns:
        Patches, float (B, 3, H, W); shifts can give values above 1.
    """
    hed = _HED.to(factor)
    # density @ inverse(hed) converts optical densities to stain amounts, and @ hed converts them back.
    matrix = torch.linalg.inv(hed) @ (factor[:, :, None] * hed)  # (B, 3, 3)
    log = image.clamp(min=DARKEST).log_()  # negative optical density
    return map_pixels(
        log, matrix.mT.to(image.device, non_blocking=True), -(shift @ hed).to(image.device, non_blocking=True)
    ).exp_()


def sample_colors(count: int, brightness: float, contrast: float, saturation: float, hue: float) -> torch.Tensor:
    """Sample factors of brightness, contrast and saturation, and a hue rotation.

    Returns:
        Parameters, float32 (B, 4); the hue rotation is in full turns.
    """
    reach = torch.tensor([brightness, contrast, saturation, hue])
    return torch.tensor([1.0, 1.0, 1.0, 0.0]) + reach * (2 * torch.rand(count, 4) - 1)


def jitter_colors(image: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of each patch, in this order.

    The first three equal torchvision's, without clipping in between. The hue is rotated about the gray axis. All four
    are linear, so each patch needs one matrix and one offset.

    Args:
        image: patches, float (B, 3, H, W).
        parameters: parameters from `sample_colors`, (B, 4).

    Returns:
        Patches, float (B, 3, H, W), not clipped to [0, 1].
    """
    parameters = parameters.to(image.device, non_blocking=True)
    brightness, contrast, saturation, hue = parameters[:, :, None, None].unbind(dim=1)  # (B, 1, 1)
    gray = _GRAY.to(image)
    identity = torch.eye(3, device=image.device)
    to_gray = gray.expand(3, 3)
    angle = 2 * math.pi * hue
    # Rodrigues' rotation formula about the axis (1, 1, 1) / sqrt(3).
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=image.device) / math.sqrt(3)
    rotation = angle.cos() * identity + angle.sin() * across + (1 - angle.cos()) / 3
    matrix = rotation @ (saturation * identity + (1 - saturation) * to_gray) * contrast * brightness
    # Hue rotation and saturation keep the mean gray.
    mean = image.mean(dim=(2, 3)) @ gray  # (B,)
    offset = (1 - contrast[:, 0]) * brightness[:, 0] * mean[:, None]
    return map_pixels(image, matrix, offset.expand(-1, 3))
