"""Stain normalization to a target; whole batches on their device."""

from typing import Literal

import torch
from torch import nn

from pcam_lightning.transforms.color import DARKEST, map_pixels

_LIGHT = 240 / 255  # Macenko's: what glass lets through
_GLASS = 0.15  # optical density below which a pixel shows no stain
_INK = 4.0  # and from which on it is black
_FEWEST = 92  # stained pixels, a hundredth of a patch: fewer tell nothing of its stains
_XYZ = torch.tensor([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = torch.tensor([0.95047, 1.0, 1.08883])  # D65
_TO_XYZ: list[list[float]] = (_XYZ / _WHITE[:, None]).tolist()
_FROM_XYZ: list[list[float]] = torch.linalg.inv(_XYZ / _WHITE[:, None]).tolist()


class StainNormalizer(nn.Module):
    """Brings each patch's stains to those of a target, which is stored with the network's weights.

    Args:
        method: macenko (Macenko et al. 2009: the two stains of a patch are found in its optical densities, and
            replaced by the target's at the target's strength) or reinhard (Reinhard et al. 2001: mean and deviation of
            each channel of CIE L*a*b* become the target's).
    """

    first: torch.Tensor  # of the target: stains, (3, 2), or means, (3, 1)
    second: torch.Tensor  # strengths, (2,), or deviations, (3, 1)

    def __init__(self, method: Literal["macenko", "reinhard"]) -> None:
        super().__init__()
        self.method = method
        macenko = method == "macenko"
        self.register_buffer("first", torch.zeros(3, 2 if macenko else 1))
        self.register_buffer("second", torch.ones(2) if macenko else torch.ones(3, 1))

    def fit(self, image: torch.Tensor) -> None:
        """Take the medians over some patches for the target; patches without stains have no say.

        Args:
            image: float in [0, 1], (N, 3, H, W).

        Raises:
            ValueError: no patch shows any stain.
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
        """Map patches, float (B, 3, H, W) in [0, 1], to the target; those without stains stay as they are."""
        with torch.autocast(image.device.type, enabled=False):
            normal = self._macenko(image) if self.method == "macenko" else self._reinhard(image)
        invalid = ~normal.isfinite().all(dim=3).all(dim=2).all(dim=1)
        return torch.where(invalid[:, None, None, None], image, normal).clamp_(0, 1)

    def _macenko(self, image: torch.Tensor) -> torch.Tensor:
        _, strength, unmix, found = find_stains(image)
        matrix = (self.first * (self.second / strength)[:, None]) @ unmix  # (B, 3, 3), of optical densities
        normal = map_pixels(_log(image).contiguous(), matrix, torch.zeros_like(matrix[:, 0])).exp_().mul_(_LIGHT)
        return torch.where((found & shows_stain(image))[:, None, None, None], normal, image)

    def _reinhard(self, image: torch.Tensor) -> torch.Tensor:
        lab = to_lab(image)
        mean, std = lab.mean(dim=(2, 3), keepdim=True), lab.flatten(2).std(dim=2)[..., None, None]
        normal = from_lab((lab - mean) / std * self.second[..., None] + self.first[..., None])
        return torch.where(shows_stain(image)[:, None, None, None], normal, image)


def _median(values: torch.Tensor) -> torch.Tensor:
    if not len(values):
        raise ValueError("no patch shows any stain")
    return values.quantile(0.5, dim=0)


def shows_stain(image: torch.Tensor) -> torch.Tensor:
    """Tell which patches, float (B, 3, H, W) in [0, 1], have enough pixels that are neither glass nor black, (B,)."""
    density = -_log(image)
    return ((density >= _GLASS).all(dim=1) & (density < _INK).any(dim=1)).flatten(1).sum(dim=1) >= _FEWEST


def _log(image: torch.Tensor) -> torch.Tensor:
    """Return the negative optical density against glass, of pixels in [0, 1]; black ones count as one level above."""
    return ((image + DARKEST) / _LIGHT).log_()


def find_stains(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the two stains of each patch, by Macenko et al. 2009.

    Args:
        image: float in [0, 1], (B, 3, H, W).

    Returns:
        The stains' optical densities of red, green and blue, hematoxylin first, (B, 3, 2), their strengths (99th
        percentile), (B, 2), the map from densities to amounts of the two, (B, 2, 3), and where two were found, (B,);
        elsewhere the others mean nothing.
    """
    density = -_log(image).flatten(2)  # (B, 3, N)
    stained = (density >= _GLASS).all(dim=1)  # (B, N)
    count = stained.sum(dim=1)
    weight = stained[:, None] / count.clamp(min=1)[:, None, None]
    centered = (density - (density * weight).sum(dim=2, keepdim=True)) * stained[:, None]
    covariance = centered @ centered.mT / (count - 1).clamp(min=1)[:, None, None]
    axes = eigenvectors(covariance)[..., 1:]  # (B, 3, 2): the plane that the stains span
    axes = torch.where(axes.sum(dim=1, keepdim=True) < 0, -axes, axes)  # densities lie along the stronger one, upwards
    weaker, stronger = (axes.mT @ density).unbind(dim=1)
    angle = torch.atan2(stronger, weaker).masked_fill(~stained, torch.inf)
    ends = _percentiles(angle, count, (0.01, 0.99))  # (B, 2)
    ends = axes @ torch.stack([ends.cos(), ends.sin()], dim=1)  # (B, 3, 2)
    swap = (ends[:, 0, 0] <= ends[:, 0, 1])[:, None, None]  # hematoxylin takes more of the red
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
    """Return the eigenvectors of symmetric matrices (B, 3, 3), as columns by rising eigenvalue.

    By Jacobi's rotations, which are plain arithmetic: `torch.linalg.eigh` cannot be exported.
    """
    vectors = _rotation(matrix[:, 0, 0] * 0, 0, 1)
    for first, second in ((0, 1), (0, 2), (1, 2)) * 5:  # five sweeps are more than float32 can tell from more
        twice = 2 * matrix[:, first, second]
        angle = torch.atan2(twice, matrix[:, second, second] - matrix[:, first, first]) / 2
        rotation = _rotation(angle, first, second)
        matrix = rotation.mT @ matrix @ rotation
        vectors = vectors @ rotation
    order = matrix.diagonal(dim1=1, dim2=2).argsort(dim=1)  # (B, 3)
    return vectors.gather(2, order[:, None].expand(-1, 3, 3))


def _rotation(angle: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """Return rotations in the plane of two axes, by angles (B,), as matrices (B, 3, 3)."""
    zero = angle * 0  # zeros_like would be traced with its device
    rows = [[zero + 1 if i == j else zero for j in range(3)] for i in range(3)]
    rows[first][first] = rows[second][second] = angle.cos()
    rows[first][second] = angle.sin()
    rows[second][first] = -angle.sin()
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _percentiles(values: torch.Tensor, count: torch.Tensor | None, shares: tuple[float, ...]) -> torch.Tensor:
    """Return the value at each share of the first `count` (by default, all) in order, (B, len(shares))."""
    ordered = values.sort(dim=1).values
    last = (torch.isnan(ordered[:, 0]).float() * 0 + values.shape[1] if count is None else count.float()) - 1
    index = torch.stack([last.clamp(min=0) * share for share in shares], dim=1).round().long()
    return ordered.gather(1, index)


def to_lab(image: torch.Tensor) -> torch.Tensor:
    """Map sRGB in [0, 1] to CIE L*a*b* under D65, (B, 3, H, W) both."""
    linear = torch.where(image > 0.04045, ((image + 0.055) / 1.055) ** 2.4, image / 12.92)
    xyz = _mix(_TO_XYZ, linear)
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def from_lab(lab: torch.Tensor) -> torch.Tensor:
    """Map CIE L*a*b* under D65 to sRGB, (B, 3, H, W) both, clipped to [0, 1]."""
    lightness, a, b = lab.unbind(dim=1)
    y = (lightness + 16) / 116
    xyz = torch.stack([a / 500 + y, y, y - b / 200], dim=1)
    xyz = torch.where(xyz > 0.2068966, xyz**3, (xyz - 16 / 116) / 7.787)
    linear = _mix(_FROM_XYZ, xyz).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def _mix(matrix: list[list[float]], image: torch.Tensor) -> torch.Tensor:
    """Multiply colors (B, 3, H, W) by a matrix of numbers: a tensor would be traced with its device."""
    red, green, blue = image.unbind(dim=1)
    return torch.stack([a * red + b * green + c * blue for a, b, c in matrix], dim=1)
