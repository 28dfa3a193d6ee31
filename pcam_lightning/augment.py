"""Augmentation of a whole batch on its device, a draw per patch."""

import torch
from torch.nn import functional


def to_unit(image: torch.Tensor) -> torch.Tensor:
    """Scale uint8 pixels to [0, 1].

    Args:
        image: uint8, (B, H, W, 3).

    Returns:
        float32, (B, 3, H, W) in channels_last memory: no pixel is moved.
    """
    return image.permute(0, 3, 1, 2).float().div_(255)


def draw_symmetries(count: int) -> torch.Tensor:
    """Draw one of the eight symmetries of the square for each patch, all equally likely.

    The draw is made on the CPU, from torch's default generator, so that it is the same on every device.

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

    The draw is made on the CPU, from torch's default generator, so that it is the same on every device.

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
    horizontal, vertical = 1 - 2 * draws[:, 0], 1 - 2 * draws[:, 1]
    angle = torch.deg2rad(draws[:, 2])
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # From a pixel of the result back to the source: the rotation undone, then the flips, which are their own inverse.
    theta = torch.stack(
        [
            torch.stack([horizontal * cos, -horizontal * sin, zero], dim=1),
            torch.stack([vertical * sin, vertical * cos, zero], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3)
    theta = theta.to(image.device, non_blocking=True)
    # Under autocast the grid would be of half precision, and one pixel in twelve would come from a neighbour's place.
    with torch.autocast(image.device.type, enabled=False):
        grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
        turned = functional.grid_sample(image, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return turned.contiguous(memory_format=torch.channels_last)
