"""Stains, color statistics and amplitudes that patches take over from each other, against numpy's formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pcam_lightning.data.image_io import read_patch
from pcam_lightning.transforms.augment import Augmentation, augment
from pcam_lightning.transforms.color_exchange import draw_lab_statistics, mix_amplitudes, mix_stains
from pcam_lightning.transforms.stain import find_stains, set_lab_statistics, shows_stain, to_lab
from pcam_lightning.transforms.step import neighbors


@pytest.fixture(scope="module")
def tissue(drawn: Path) -> torch.Tensor:
    """Drawn tissue, float (B, 3, 96, 96) in [0, 1]; of several slides, so that stains differ."""
    pixels = b"".join(read_patch(path) for path in sorted((drawn / "train").rglob("*.tif"))[:12])
    image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 96, 96, 3)
    return image.permute(0, 3, 1, 2).float() / 255


def test_a_patch_takes_the_stains_of_another(tissue: torch.Tensor) -> None:
    stains, strength, _, found = find_stains(tissue)
    assert found.all()
    mixed = mix_stains(tissue, torch.ones(len(tissue)))
    after, strength_after, _, _ = find_stains(mixed)
    cosine = (after * neighbors(stains)).sum(dim=1)
    before = (stains * neighbors(stains)).sum(dim=1)
    assert cosine.mean() > before.mean()
    assert cosine.mean() > 0.99
    assert ((strength_after - neighbors(strength)).abs() < (strength - neighbors(strength)).abs()).float().mean() > 0.7
    assert torch.allclose(mix_stains(tissue, torch.zeros(len(tissue))), tissue)


def test_amounts_of_stain_stay_where_they_are(tissue: torch.Tensor) -> None:
    mixed = mix_stains(tissue, torch.full((len(tissue),), 0.5))
    for one, other in zip(tissue.mean(dim=1), mixed.mean(dim=1), strict=True):
        assert np.corrcoef(one.flatten(), other.flatten())[0, 1] > 0.9


def test_stains_that_are_nearly_one_leave_pixels_in_range() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(16, 3, 96, 96, generator=rng)
    noise[::2, 1] = noise[::2, 0]  # ink: two channels alike
    mixed = mix_stains(noise, torch.ones(16))
    assert mixed.min() >= 0
    assert mixed.max() <= 1


def test_glass_gives_and_takes_no_stain(tissue: torch.Tensor) -> None:
    image = tissue.clone()
    image[3] = 0.95
    mixed = mix_stains(image, torch.ones(len(image)))
    assert torch.equal(mixed[3], image[3])
    assert torch.equal(mixed[4], image[4])
    assert not torch.equal(mixed[5], image[5])
    assert mixed.isfinite().all()


def test_looks_are_drawn_from_those_of_the_batch(tissue: torch.Tensor) -> None:
    sample = tissue[..., ::2, ::2]
    tissue, sample = tissue[shows_stain(sample)], sample[shows_stain(sample)]
    lab = to_lab(sample).flatten(2).numpy()
    means, deviations = lab.mean(2), lab.std(2, ddof=1)
    many = tissue.repeat(200, 1, 1, 1)
    torch.manual_seed(0)
    mean, std = draw_lab_statistics(many, 1.0)
    assert mean[..., 0].mean(dim=0).numpy() == pytest.approx(means.mean(0), abs=0.5)
    assert mean[..., 0].std(dim=0).numpy() == pytest.approx(means.std(0), rel=0.1, abs=0.5)
    assert std[..., 0].mean(dim=0).numpy() == pytest.approx(deviations.mean(0), rel=0.05)
    mean, std = draw_lab_statistics(tissue, 0.0)
    alike = set_lab_statistics(tissue, mean, std)
    after = to_lab(alike).mean(dim=(2, 3)).numpy()
    assert np.abs(after - means.mean(0)).max() < 3  # but for colors that sRGB does not have
    assert after.std(0).mean() < means.std(0).mean()


def test_amplitudes_are_mixed_and_phases_stay() -> None:
    generator = np.random.default_rng(0)
    image, other = (generator.random((2, 3, 96, 96)) for _ in range(2))
    share = np.array([0.25, 1.0])
    own, theirs = np.fft.fft2(image), np.fft.fft2(other)
    frequency = np.abs(np.fft.fftfreq(96, 1 / 96))
    low = (frequency[:, None] <= 5) & (frequency[None] <= 5)
    mixed = np.abs(own) + share[:, None, None, None] * (np.abs(theirs) - np.abs(own))
    expected = np.fft.ifft2(np.where(low, mixed, np.abs(own)) * np.exp(1j * np.angle(own))).real
    found = mix_amplitudes(torch.tensor(image), torch.tensor(other), torch.tensor(share))
    assert found.numpy() == pytest.approx(expected, abs=1e-9)
    assert torch.allclose(mix_amplitudes(torch.tensor(image), torch.tensor(other), torch.zeros(2)), torch.tensor(image))


@pytest.mark.parametrize("option", ["stain_mix", "randstainna", "fourier_mix"])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_patches_of_one_color_stay_finite(option: str, value: int) -> None:
    image = torch.full((3, 96, 96, 3), value, dtype=torch.uint8)
    image[..., 0] //= 2
    changed, _ = augment(image, torch.zeros(3), Augmentation.of({option: 1.0}))
    assert changed.isfinite().all()
