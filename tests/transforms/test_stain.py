"""Stain normalization against torchstain, patch by patch; what has no stain comes through as it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchstain.torch.normalizers import TorchMacenkoNormalizer, TorchReinhardNormalizer

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.transforms.stain import StainNormalizer, from_lab, shows_stain, to_lab

REAL = Path(__file__).parents[3] / "shared" / "pcam" / "kaggle-sample.zip"


@pytest.fixture(scope="module", params=["drawn", "real"])
def patches(request: pytest.FixtureRequest, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Return 24 patches, uint8 (24, 3, 96, 96)."""
    root = drawn
    if request.param == "real":
        if not REAL.is_file():
            pytest.skip("no real patches here")
        root = tmp_path_factory.mktemp("real")
        import zipfile

        with zipfile.ZipFile(REAL) as sample:
            sample.extractall(root)
        root = next(root.rglob("train_labels.csv")).parent
    data = PCamDataModule(root, cache_dir=tmp_path_factory.mktemp("cache"))
    data.setup("fit")
    return data.sample(24).permute(0, 3, 1, 2)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_same_as_torchstain(method: str, patches: torch.Tensor) -> None:
    target, rest = patches[0], patches[1:]
    ours = StainNormalizer(method)  # type: ignore[arg-type]
    ours.fit(target[None] / 255)
    normal = ours(rest / 255) * 255
    theirs = TorchMacenkoNormalizer() if method == "macenko" else TorchReinhardNormalizer()
    theirs.fit(target)
    compared = 0
    for patch, our in zip(rest, normal, strict=True):
        if not shows_stain(patch[None] / 255):
            continue
        if method == "macenko":
            expected = theirs.normalize(patch, stains=False)[0].permute(2, 0, 1)
        else:
            expected = theirs.normalize(patch.float()).permute(2, 0, 1)
        # They cut off what is behind the point. A percentile may fall on the neighbor in order.
        assert (our - expected).abs().quantile(0.99) < 2
        compared += 1
    assert compared > 15


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_blank_and_black_patches_stay_as_they_are(method: str, patches: torch.Tensor) -> None:
    odd = torch.stack([torch.zeros(3, 96, 96), torch.ones(3, 96, 96), torch.full((3, 96, 96), 0.97)])
    normalizer = StainNormalizer(method)  # type: ignore[arg-type]
    normalizer.fit(torch.cat([odd, patches / 255]))
    assert all(buffer.isfinite().all() for buffer in normalizer.buffers())
    assert torch.equal(normalizer(odd), odd)
    speckled = (odd + torch.randint(-1, 2, odd.shape) / 255).clamp(0, 1)  # by a JPEG, say
    assert torch.equal(normalizer(speckled), speckled)
    dots = odd[1].clone()
    dots[:, :3, :3] = torch.tensor([0.5, 0.2, 0.6])[:, None, None]
    through = normalizer(dots[None])
    assert through.isfinite().all()
    assert through.min() >= 0
    assert through.max() <= 1


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_patches_come_nearer_to_each_other(method: str, patches: torch.Tensor) -> None:
    unit = patches / 255
    strong = (unit.log().clamp(min=-5) * torch.tensor([1.3, 1.0, 0.8])[None, :, None, None]).exp()
    normalizer = StainNormalizer(method)  # type: ignore[arg-type]
    normalizer.fit(unit)
    before = (unit - strong).abs().mean(dim=(1, 2, 3))
    after = (normalizer(unit) - normalizer(strong)).abs().mean(dim=(1, 2, 3))
    assert (after / before).median() < 0.8


def test_without_any_stain_there_is_no_target() -> None:
    with pytest.raises(ValueError, match="no patch contains stain"):
        StainNormalizer("macenko").fit(torch.ones(4, 3, 96, 96))


def test_lab_there_and_back() -> None:
    unit = torch.rand(2, 3, 8, 8)
    assert torch.allclose(from_lab(to_lab(unit)), unit, atol=1e-4)
    white = to_lab(torch.ones(1, 3, 1, 1)).flatten()
    assert np.allclose(white.numpy(), [100, 0, 0], atol=0.01)
