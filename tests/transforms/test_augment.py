"""Augmentation against torchvision's, numpy's and scikit-image's formulas, patch by patch with the same draws."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from pcam_lightning.transforms.augment import Augmentation, augment, to_float
from pcam_lightning.transforms.color import jitter_colors, jitter_stains
from pcam_lightning.transforms.geometry import (
    CENTER,
    apply_symmetries,
    d4_views,
    flip_and_rotate,
    sample_flips_and_rotations,
    sample_rectangles,
    sample_symmetries,
    sample_windows,
)
from pcam_lightning.utils.errors import UserError


def _patches(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_to_unit_scales_and_keeps_memory_channels_last() -> None:
    image = _patches(2)
    unit = to_float(image)
    assert unit.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(unit, image.permute(0, 3, 1, 2) / 255)


def test_symmetries_leave_memory_channels_last() -> None:
    torch.manual_seed(0)
    turned = to_float(apply_symmetries(_patches(8), sample_symmetries(8)))
    assert turned.is_contiguous(memory_format=torch.channels_last)


def test_same_as_torchvision_patch_by_patch() -> None:
    unit = to_float(_patches(64))
    torch.manual_seed(0)
    draws = sample_flips_and_rotations(64, 90.0)
    ours = flip_and_rotate(unit, draws)
    differing = 0
    for patch, draw, turned in zip(unit, draws, ours, strict=True):
        expected = patch
        if draw[0]:
            expected = tv.hflip(expected)
        if draw[1]:
            expected = tv.vflip(expected)
        expected = tv.rotate(expected, float(draw[2]))
        differing += int((expected != turned).any(dim=0).sum())
    # A source that lies half-way between two pixels, to the last bit, may be rounded to either.
    assert differing <= 64 * 96 * 96 * 1e-4


def test_quarter_turns_and_flips_are_exact() -> None:
    unit = to_float(_patches(4))
    draws = torch.tensor([[0, 0, 90], [0, 0, -90], [1, 0, 0], [0, 1, 0]], dtype=torch.float32)
    turned = flip_and_rotate(unit, draws)
    assert torch.equal(turned[0], unit[0].rot90(1, (1, 2)))
    assert torch.equal(turned[1], unit[1].rot90(-1, (1, 2)))
    assert torch.equal(turned[2], unit[2].flip(2))
    assert torch.equal(turned[3], unit[3].flip(1))


def test_corners_are_black_and_the_center_stays_tissue() -> None:
    turned = flip_and_rotate(torch.ones(1, 3, 96, 96), torch.tensor([[0.0, 0.0, 45.0]]))
    assert turned[0, :, 0, 0].sum() == 0
    assert turned[0, :, 32:64, 32:64].min() == 1


def test_each_patch_has_a_draw_of_its_own_within_bounds() -> None:
    torch.manual_seed(0)
    draws = sample_flips_and_rotations(4000, 90.0)
    assert draws[:, 2].abs().max() <= 90
    assert len(set(draws[:, 2].tolist())) > 3900
    assert (draws[:, :2].mean(dim=0) - 0.5).abs().max() < 0.03
    assert draws[:, 2].mean().abs() < 3


def test_symmetries_are_the_eight_of_the_square_and_move_pixels_only() -> None:
    patch = _patches(1)
    draws = torch.tensor([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], dtype=torch.bool)
    seen = {image.numpy().tobytes() for image in apply_symmetries(patch.expand(8, -1, -1, -1), draws)}
    turned = [np.rot90(patch[0].numpy(), number) for number in range(4)]
    assert seen == {np.ascontiguousarray(image).tobytes() for view in turned for image in (view, view[:, ::-1])}


def test_each_patch_has_a_symmetry_of_its_own_and_all_are_as_likely() -> None:
    torch.manual_seed(0)
    draws = sample_symmetries(8000)
    counts = torch.bincount((draws * torch.tensor([1, 2, 4])).sum(dim=1), minlength=8)
    assert ((counts - 1000).abs() < 120).all()  # four deviations
    images = _patches(3)
    together = apply_symmetries(images, draws[:3])
    for number in range(3):
        assert torch.equal(
            together[number : number + 1], apply_symmetries(images[number : number + 1], draws[[number]])
        )


def _smooth(count: int) -> torch.Tensor:
    """Return patches without hard edges, float (B, 3, 96, 96), far from black and white."""
    rough = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(rough, size=96, mode="bicubic", align_corners=False)
    return 0.3 + 0.4 * smooth.clamp(0, 1)


@pytest.mark.parametrize(
    ("place", "theirs"),
    [(0, tv.adjust_brightness), (1, tv.adjust_contrast), (2, tv.adjust_saturation)],
    ids=["brightness", "contrast", "saturation"],
)
@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_color_is_torchvisions(place: int, theirs: object, factor: float) -> None:
    unit = _smooth(4)
    draws = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(4, 1)
    draws[:, place] = factor
    assert callable(theirs)
    expected = torch.stack([theirs(patch, factor) for patch in unit])
    assert torch.allclose(jitter_colors(unit, draws), expected, atol=1e-3)  # their gray has a weight of 0.2989


def test_colors_compose_patch_by_patch() -> None:
    unit, draws = _smooth(3), torch.tensor([[1.2, 0.8, 1.3, 0.1], [0.9, 1.1, 0.7, -0.2], [1.0, 1.0, 1.0, 0.0]])
    together = jitter_colors(unit, draws)
    assert torch.allclose(together[2], unit[2], atol=1e-6)
    plain = torch.tensor([1.0, 1.0, 1.0, 0.0])
    step = unit
    for place in range(4):
        one = plain.repeat(3, 1)
        one[:, place] = draws[:, place]
        step = jitter_colors(step, one)
    assert torch.allclose(together, step, atol=1e-5)


def test_a_turn_of_the_hue_keeps_grays_and_takes_red_to_green() -> None:
    third = torch.tensor([[1.0, 1.0, 1.0, 1 / 3]])
    gray, red = torch.full((1, 3, 2, 2), 0.4), torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    assert torch.allclose(jitter_colors(gray, third), gray, atol=1e-6)
    assert torch.allclose(jitter_colors(red, third), torch.tensor([0.0, 1, 0])[None, :, None, None], atol=1e-6)


def test_stain_jitter_is_deconvolution_there_and_back() -> None:
    unit = _smooth(3)
    factor = torch.tensor([[1.1, 0.9, 1.0], [0.8, 1.2, 1.1], [1.0, 1.0, 1.0]])
    shift = torch.tensor([[0.05, -0.05, 0.0], [-0.1, 0.1, 0.02], [0.0, 0.0, 0.0]])
    hed = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    hed /= np.linalg.norm(hed, axis=1, keepdims=True)
    changed = jitter_stains(unit, factor, shift)
    for patch, one, other, ours in zip(unit, factor, shift, changed, strict=True):
        density = -np.log(patch.numpy().reshape(3, -1).T.astype(np.float64))
        stains = density @ np.linalg.inv(hed) * one.numpy() + other.numpy()
        expected = np.exp(-(stains @ hed)).T.reshape(3, 96, 96)
        assert np.allclose(ours.numpy(), expected, atol=1e-5)
    assert torch.allclose(changed[2], unit[2], atol=1e-6)


def test_rectangles_and_windows_leave_the_center_alone() -> None:
    rectangles, windows = sample_rectangles(500, 0.5), sample_windows(500, 0.5)
    assert not rectangles[..., CENTER, CENTER].any()
    assert windows[..., CENTER, CENTER].all()
    assert 0.4 < rectangles.flatten(1).any(dim=1).float().mean() < 0.6
    assert 0.4 < (~windows).flatten(1).any(dim=1).float().mean() < 0.6


def test_cutmix_keeps_the_center_and_its_label_and_mixup_mixes_both() -> None:
    image, label = _patches(16), (torch.arange(16) % 2).float()
    torch.manual_seed(0)
    cut, target = augment(image, label, Augmentation(d4=True, cutmix=1.0))
    torch.manual_seed(0)
    whole, _ = augment(image, label, Augmentation(d4=True))
    assert torch.equal(cut[..., CENTER, CENTER], whole[..., CENTER, CENTER])
    assert not torch.equal(cut, whole)
    assert torch.equal(target, label)
    mixed, target = augment(image, label, Augmentation(d4=True, mixup=0.4))
    assert target.min() >= 0
    assert target.max() <= 1
    assert len(set(target.tolist())) > 4
    assert ((target > 0.5) == (label > 0.5)).all()  # a patch has the larger share of itself
    assert mixed.shape == whole.shape


@pytest.mark.parametrize("option", ["random_erasing", "cutmix"])
def test_the_labeled_center_is_not_painted_over_wherever_it_goes(option: str) -> None:
    image = torch.zeros(64, 96, 96, 3, dtype=torch.uint8)
    image[:, CENTER, CENTER] = 255
    how = Augmentation(degrees=90.0, **{option: 1.0})  # type: ignore[arg-type]
    unit, _ = augment(image, torch.zeros(64), how)
    # A turn may round a pixel of the square away.
    assert ((unit[:, 0] > 0.5).sum(dim=(1, 2)) - 1024).abs().max() < 50


EVERYTHING = {
    "stain": 0.2, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05, "random_erasing": 0.5,
    "cutmix": 0.5, "mixup": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("option", EVERYTHING)
def test_each_option_changes_patches_and_each_patch_otherwise(option: str) -> None:
    patch = (255 * _smooth(1)).to(torch.uint8).permute(0, 2, 3, 1)
    image = patch.repeat(16, 1, 1, 1)
    image[1::2] //= 2  # so that there is something to mix with
    label = (torch.arange(16) % 2).float()
    base = Augmentation(d4=False)
    torch.manual_seed(3)
    plain, _ = augment(image, label, base)
    torch.manual_seed(3)
    changed, _ = augment(image, label, Augmentation(**{option: EVERYTHING[option]}))  # type: ignore[arg-type]
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed, plain)
    assert len({one.numpy().tobytes() for one in changed[::2].contiguous()}) > 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hue": 0.6}, "hue` 0.6"), ({"stain": -0.1}, "stain` -0.1"), ({"mixup": float("nan")}, "mixup` nan"),
        ({"d4": True, "degrees": 10.0}, "d4"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=f"augment.{message}"):
        Augmentation(**options).check()  # type: ignore[arg-type]


def test_views_are_the_eight_symmetries_and_of_a_turned_patch_the_same_eight() -> None:
    unit = to_float(_patches(2))
    eight = {view[0].numpy().tobytes() for view in d4_views(unit)}
    turned = {view[0].numpy().tobytes() for view in d4_views(unit.rot90(1, (2, 3)))}
    assert len(eight) == 8
    assert eight == turned
    assert torch.equal(next(d4_views(unit)), unit)
