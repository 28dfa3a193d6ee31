"""Geometric operations on whole batches: symmetries, rotation, and masks around the center."""

from collections.abc import Iterator

import torch
from torch.nn import functional

CENTER = slice(32, 64)  # of rows and columns: what a patch's label speaks of


def d4_views(image: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a batch's eight symmetries, (B, 3, H, W) and channels_last each, the batch itself first."""
    for view in (image, image.transpose(2, 3)):
        for flips in ([], [2], [3], [2, 3]):
            yield view.flip(flips).contiguous(memory_format=torch.channels_last)


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
        float32, (B, 3): horizontal flip (0 or 1), vertical flip (0 or 1), angle in degrees, counterclockwise.
    """
    uniform = torch.rand(count, 3)
    return torch.stack(
        [(uniform[:, 0] < 0.5).float(), (uniform[:, 1] < 0.5).float(), (2 * uniform[:, 2] - 1) * degrees], dim=1
    )


def flip_and_turn(image: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Flip each patch, then rotate it about its center; what comes from outside is black, pixels are the nearest ones.

    Patch by patch this is torchvision's `hflip`, `vflip`, then `rotate` with its defaults, in one pass.

    Args:
        image: float, (B, 3, H, W) with H = W.
        draws: (B, 3), see `draw_flips_and_turns`.

    Returns:
        float, (B, 3, H, W), channels_last.
    """
    theta = functional.pad(_turns(draws), (0, 1)).to(image.device, non_blocking=True)
    grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
    turned = functional.grid_sample(image, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return turned.contiguous(memory_format=torch.channels_last)


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


def draw_rectangles(count: int, share: float) -> torch.Tensor:
    """Draw a rectangle with sides of 16 to 64 pixels anywhere in a share of the patches, without their center 32 x 32.

    Returns:
        bool, (B, 1, 96, 96), True inside.
    """
    side = 16 + 48 * torch.rand(count, 2)
    first = torch.rand(count, 2) * (96 - side)
    mask = _box(first, first + side) & (torch.rand(count) < share)[:, None, None, None]
    mask[:, :, CENTER, CENTER] = False
    return mask


def draw_windows(count: int, share: float) -> torch.Tensor:
    """Draw a window in a share of the patches that holds their center 32 x 32; in the others it is the whole patch.

    Returns:
        bool, (B, 1, 96, 96), True inside.
    """
    reach = 32 * torch.rand(count, 4)
    return _box(32 - reach[:, :2], 64 + reach[:, 2:]) | (torch.rand(count) >= share)[:, None, None, None]


def _box(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return masks (B, 1, 96, 96) of the pixels from `first` to `last`, (B, 2): row and column."""
    center = torch.arange(96) + 0.5
    inside = (center >= first[..., None]) & (center <= last[..., None])  # (B, 2, 96)
    return inside[:, None, 0, :, None] & inside[:, None, 1, None, :]
