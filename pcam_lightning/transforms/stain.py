"""Stain normalization of batches on their device."""

from typing import Literal

import torch
from torch import nn

from pcam_lightning.transforms.color import DARKEST, map_pixels

_LIGHT = 240 / 255  # transmission of glass, from Macenko et al.
_GLASS = 0.15  # pixels with a lower optical density have no stain
_INK = 4.0  # pixels with this optical density or more are black
_FEWEST = 92  # minimum number of stained pixels, 1 % of a patch, to estimate stains
_XYZ = torch.tensor([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = torch.tensor([0.95047, 1.0, 1.08883])  # D65
_TO_XYZ: list[list[float]] = (_XYZ / _WHITE[:, None]).tolist()
_FROM_XYZ: list[list[float]] = torch.linalg.inv(_XYZ / _WHITE[:, None]).tolist()


class StainNormalizer(nn.Module):
    """Stain normalization of patches to a target, which is stored with the weights of the network.

    Args:
        method: macenko or reinhard. macenko (Macenko et al. 2009) estimates two stains from optical densities and
            replaces them by those of the target. reinhard (Reinhard et al. 2001) matches the mean and the standard
            deviation of each CIE L*a*b* channel.
    """

    first: torch.Tensor  # target stains, (3, 2), or means, (3, 1)
    second: torch.Tensor  # target stain strengths, (2,), or standard deviations, (3, 1)

    def __init__(self, method: Literal["macenko", "reinhard"]) -> None:
        super().__init__()
        self.method = method
        macenko = method == "macenko"
        self.register_buffer("first", torch.zeros(3, 2 if macenko else 1))
        self.register_buffer("second", torch.ones(2) if macenko else torch.ones(3, 1))

    def fit(self, image: torch.Tensor) -> None:
        """Set the target to the medians over the given patches; patches without stain are ignored.

        Args:
            image: patches, float (N, 3, H, W) in [0, 1].

        Raises:
            ValueError: no patch contains stain.
        """
        if self.method == "macenko":
            first, second, _, found = find_stains(image)
            found &= shows_stain(image)
            first = nn.functional.normalize(_median(first[found]), dim=0)
        else:
            lab = to_lab(image).flatten(2)
            first, second = lab.mean(dim=2, keepdim=True), lab.std(dim=2, keepdim=True)
            found = shows_stain(image)
            first = _median(first[found])
        self.first.copy_(first)
        self.second.copy_(_median(second[found]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalize patches, float (B, 3, H, W) in [0, 1]; patches without stain do not change."""
        with torch.autocast(image.device.type, enabled=False):
            normal = self._macenko(image) if self.method == "macenko" else self._reinhard(image)
        invalid = ~normal.isfinite().all(dim=3).all(dim=2).all(dim=1)
        return torch.where(invalid[:, None, None, None], image, normal).clamp_(0, 1)

    def _macenko(self, image: torch.Tensor) -> torch.Tensor:
        _, strength, unmix, found = find_stains(image)
        matrix = (self.first * (self.second / strength)[:, None]) @ unmix  # (B, 3, 3), maps optical densities
        normal = map_pixels(_log(image).contiguous(), matrix, torch.zeros_like(matrix[:, 0])).exp_().mul_(_LIGHT)
        return torch.where((found & shows_stain(image))[:, None, None, None], normal, image)

    def _reinhard(self, image: torch.Tensor) -> torch.Tensor:
        lab = to_lab(image)
        mean, std = lab.mean(dim=(2, 3), keepdim=True), lab.flatten(2).std(dim=2)[..., None, None]
        normal = from_lab((lab - mean) / std * self.second[..., None] + self.first[..., None])
        return torch.where(shows_stain(image)[:, None, None, None], normal, image)


def _median(values: torch.Tensor) -> torch.Tensor:
    if not len(values):
        raise ValueError("no patch contains stain")
    return values.quantile(0.5, dim=0)


def shows_stain(image: torch.Tensor) -> torch.Tensor:
    """Return which patches, float (B, 3, H, W) in [0, 1], have enough pixels that are neither glass nor black, (B,)."""
    density = -_log(image)
    return ((density >= _GLASS).all(dim=1) & (density < _INK).any(dim=1)).flatten(1).sum(dim=1) >= _FEWEST


def _log(image: torch.Tensor) -> torch.Tensor:
    """Return the negative optical density relative to glass of pixels in [0, 1], offset by one gray level."""
    return ((image + DARKEST) / _LIGHT).log_()


def find_stains(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Estimate the two stains of each patch (Macenko et al. 2009).

    Args:
        image: patches, float (B, 3, H, W) in [0, 1].

    Returns:
        Red, green and blue optical densities of the stains, hematoxylin first, (B, 3, 2). Their strengths (99th
        percentile), (B, 2). The map from densities to stain amounts, (B, 2, 3). Whether two stains were found, (B,);
        if not, the other values are undefined.
    """
    density = -_log(image).flatten(2)  # (B, 3, N)
    stained = (density >= _GLASS).all(dim=1)  # (B, N)
    count = stained.sum(dim=1)
    weight = stained[:, None] / count.clamp(min=1)[:, None, None]
    centered = (density - (density * weight).sum(dim=2, keepdim=True)) * stained[:, None]
    covariance = centered @ centered.mT / (count - 1).clamp(min=1)[:, None, None]
    axes = eigenvectors(covariance)[..., 1:]  # (B, 3, 2), the plane of the stains
    axes = torch.where(axes.sum(dim=1, keepdim=True) < 0, -axes, axes)  # orient axes towards positive densities
    weaker, stronger = (axes.mT @ density).unbind(dim=1)
    angle = torch.atan2(stronger, weaker).masked_fill(~stained, torch.inf)
    ends = _percentiles(angle, count, (0.01, 0.99))  # (B, 2)
    ends = axes @ torch.stack([ends.cos(), ends.sin()], dim=1)  # (B, 3, 2)
    swap = (ends[:, 0, 0] <= ends[:, 0, 1])[:, None, None]  # hematoxylin absorbs more red
    stains = torch.where(swap, ends.flip(2), ends)
    gram = stains.mT @ stains
    determinant = gram[:, 0, 0] * gram[:, 1, 1] - gram[:, 0, 1] ** 2
    found = (count >= _FEWEST) & (determinant > 1e-6) & stains.isfinite().flatten(1).all(dim=1)
    a, b, d = (
        torch.where(found, one, value)
        for one, value in ((gram[:, 0, 0], 1.0), (gram[:, 0, 1], 0.0), (gram[:, 1, 1], 1.0))
    )
    adjugate = torch.stack([d, -b, -b, a], dim=1).view(-1, 2, 2)
    unmix = adjugate / (a * d - b * b)[:, None, None] @ stains.mT  # least squares
    amount = unmix @ density  # (B, 2, N)
    strength = _percentiles(amount.flatten(0, 1), None, (0.99,)).view(-1, 2)
    return stains, strength, unmix, found & (strength > 1e-3).all(dim=1)


def eigenvectors(matrix: torch.Tensor) -> torch.Tensor:
    """Return the eigenvectors of symmetric matrices (B, 3, 3) as columns, by increasing eigenvalue.

    Uses Jacobi rotations, which can be exported; `torch.linalg.eigh` cannot.
    """
    vectors = _rotation(matrix[:, 0, 0] * 0, 0, 1)
    for first, second in ((0, 1), (0, 2), (1, 2)) * 5:  # five sweeps reach float32 precision
        twice = 2 * matrix[:, first, second]
        angle = torch.atan2(twice, matrix[:, second, second] - matrix[:, first, first]) / 2
        rotation = _rotation(angle, first, second)
        matrix = rotation.mT @ matrix @ rotation
        vectors = vectors @ rotation
    order = matrix.diagonal(dim1=1, dim2=2).argsort(dim=1)  # (B, 3)
    return vectors.gather(2, order[:, None].expand(-1, 3, 3))


def _rotation(angle: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """Return rotation matrices (B, 3, 3) in the plane of two axes by angles (B,)."""
    zero = angle * 0  # tracing zeros_like would fix the device
    rows = [[zero + 1 if i == j else zero for j in range(3)] for i in range(3)]
    rows[first][first] = rows[second][second] = angle.cos()
    rows[first][second] = angle.sin()
    rows[second][first] = -angle.sin()
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _percentiles(values: torch.Tensor, count: torch.Tensor | None, shares: tuple[float, ...]) -> torch.Tensor:
    """Return percentiles of the `count` smallest values (by default, all), (B, len(shares))."""
    ordered = values.sort(dim=1).values
    last = (torch.isnan(ordered[:, 0]).float() * 0 + values.shape[1] if count is None else count.float()) - 1
    index = torch.stack([last.clamp(min=0) * share for share in shares], dim=1).round().long()
    return ordered.gather(1, index)


def to_lab(image: torch.Tensor) -> torch.Tensor:
    """Convert sRGB in [0, 1] to CIE L*a*b* under D65, both (B, 3, H, W)."""
    linear = torch.where(image > 0.04045, ((image + 0.055) / 1.055) ** 2.4, image / 12.92)
    xyz = _mix(_TO_XYZ, linear)
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def from_lab(lab: torch.Tensor) -> torch.Tensor:
    """Convert CIE L*a*b* under D65 to sRGB clipped to [0, 1], both (B, 3, H, W)."""
    lightness, a, b = lab.unbind(dim=1)
    y = (lightness + 16) / 116
    xyz = torch.stack([a / 500 + y, y, y - b / 200], dim=1)
    xyz = torch.where(xyz > 0.2068966, xyz**3, (xyz - 16 / 116) / 7.787)
    linear = _mix(_FROM_XYZ, xyz).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def _mix(matrix: list[list[float]], image: torch.Tensor) -> torch.Tensor:
    """Multiply colors (B, 3, H, W) by a matrix of floats; tracing a tensor would fix its device."""
    red, green, blue = image.unbind(dim=1)
    return torch.stack([a * red + b * green + c * blue for a, b, c in matrix], dim=1)
