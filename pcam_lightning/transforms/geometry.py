"""Geometric transforms of batches: symmetries, rotation, and masks around the center."""

from collections.abc import Iterator

import torch
from torch.nn import functional

CENTER = slice(32, 64)  # rows and columns of the labeled center


def d4_views(image: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the eight symmetries of a batch, (B, 3, H, W) and channels_last each, starting with the batch itself."""
    for view in (image, image.transpose(2, 3)):
        for flips in ([], [2], [3], [2, 3]):
            yield view.flip(flips).contiguous(memory_format=torch.channels_last)


def sample_symmetries(count: int) -> torch.Tensor:
    """Sample one of the eight symmetries of the square for each patch, uniformly.

    Returns:
        Horizontal flip, vertical flip and transposition, applied in this order, bool (B, 3).
    """
    return torch.rand(count, 3) < 0.5


def apply_symmetries(image: torch.Tensor, symmetry: torch.Tensor) -> torch.Tensor:
    """Flip and transpose each patch; pixel values do not change.

    Args:
        image: patches, uint8 (B, H, W, 3) with H = W.
        symmetry: symmetries from `sample_symmetries`, bool (B, 3).

    Returns:
        Patches, uint8 (B, H, W, 3).
    """
    # torch.where on whole batches moves more bytes than indexing would. It keeps all shapes static and never waits for
    # the device. For uint8, it takes 2 % of a training step on a CPU.
    horizontal, vertical, transposed = symmetry.to(image.device, non_blocking=True)[..., None, None, None].unbind(dim=1)
    image = torch.where(horizontal, image.flip(2), image)
    image = torch.where(vertical, image.flip(1), image)
    return torch.where(~transposed, image, image.transpose(1, 2))  # has the memory layout of the first


def sample_flips_and_rotations(count: int, degrees: float) -> torch.Tensor:
    """Sample, for each patch, two flips with probability 1/2 each and an angle in [-degrees, degrees].

    Returns:
        Horizontal flip (0 or 1), vertical flip (0 or 1) and counterclockwise angle in degrees, float32 (B, 3).
    """
    uniform = torch.rand(count, 3)
    return torch.stack(
        [(uniform[:, 0] < 0.5).float(), (uniform[:, 1] < 0.5).float(), (2 * uniform[:, 2] - 1) * degrees], dim=1
    )


def flip_and_rotate(image: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Flip each patch and rotate it about its center, with nearest-neighbor sampling and black corners.

    Equals torchvision's `hflip`, `vflip` and `rotate` with default options for each patch, in one pass.

    Args:
        image: patches, float (B, 3, H, W) with H = W.
        parameters: parameters from `sample_flips_and_rotations`, (B, 3).

    Returns:
        Patches, float (B, 3, H, W), channels_last.
    """
    theta = functional.pad(_inverse_maps(parameters), (0, 1)).to(image.device, non_blocking=True)
    grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
    rotated = functional.grid_sample(image, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return rotated.contiguous(memory_format=torch.channels_last)


def _inverse_maps(parameters: torch.Tensor) -> torch.Tensor:
    """Return the maps (B, 2, 2) from output coordinates to input coordinates."""
    horizontal, vertical = 1 - 2 * parameters[:, 0], 1 - 2 * parameters[:, 1]
    angle = torch.deg2rad(parameters[:, 2])
    cos, sin = angle.cos(), angle.sin()
    # Inverse rotation, then the flips, which are their own inverse.
    return torch.stack(
        [
            torch.stack([horizontal * cos, -horizontal * sin], dim=1),
            torch.stack([vertical * sin, vertical * cos], dim=1),
        ],
        dim=1,
    )


def sample_rectangles(count: int, share: float) -> torch.Tensor:
    """Sample rectangles with sides of 16 to 64 pixels in a share of the patches, without the center 32 x 32.

    Returns:
        Masks, bool (B, 1, 96, 96), True inside the rectangle.
    """
    side = 16 + 48 * torch.rand(count, 2)
    first = torch.rand(count, 2) * (96 - side)
    mask = _box(first, first + side) & (torch.rand(count) < share)[:, None, None, None]
    mask[:, :, CENTER, CENTER] = False
    return mask


def sample_windows(count: int, share: float) -> torch.Tensor:
    """Sample windows that contain the center 32 x 32 in a share of the patches; the others get the whole patch.

    Returns:
        Masks, bool (B, 1, 96, 96), True inside the window.
    """
    reach = 32 * torch.rand(count, 4)
    return _box(32 - reach[:, :2], 64 + reach[:, 2:]) | (torch.rand(count) >= share)[:, None, None, None]


def _box(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return masks (B, 1, 96, 96) of the boxes from corner `first` to corner `last`, (B, 2) as row and column."""
    center = torch.arange(96) + 0.5
    inside = (center >= first[..., None]) & (center <= last[..., None])  # (B, 2, 96)
    return inside[:, None, 0, :, None] & inside[:, None, 1, None, :]
