"""Augmentation against torchvision's and numpy's own, patch by patch with the same draws."""

import numpy as np
import torch
from torchvision.transforms import functional as tv

from pcam_lightning.augment import (
    apply_symmetries,
    draw_flips_and_turns,
    draw_symmetries,
    flip_and_turn,
    to_unit,
)


def _patches(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_to_unit_scales_and_keeps_memory_channels_last() -> None:
    image = _patches(2)
    unit = to_unit(image)
    assert unit.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(unit, image.permute(0, 3, 1, 2) / 255)


def test_symmetries_leave_memory_channels_last() -> None:
    torch.manual_seed(0)
    turned = to_unit(apply_symmetries(_patches(8), draw_symmetries(8)))
    assert turned.is_contiguous(memory_format=torch.channels_last)


def test_same_as_torchvision_patch_by_patch() -> None:
    unit = to_unit(_patches(64))
    torch.manual_seed(0)
    draws = draw_flips_and_turns(64, 90.0)
    ours = flip_and_turn(unit, draws)
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


def test_half_precision_training_moves_no_pixel() -> None:
    unit = to_unit(_patches(32))
    torch.manual_seed(0)
    draws = draw_flips_and_turns(32, 90.0)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = flip_and_turn(unit, draws)
    assert torch.equal(under_autocast, flip_and_turn(unit, draws))


def test_quarter_turns_and_flips_are_exact() -> None:
    unit = to_unit(_patches(4))
    draws = torch.tensor([[0, 0, 90], [0, 0, -90], [1, 0, 0], [0, 1, 0]], dtype=torch.float32)
    turned = flip_and_turn(unit, draws)
    assert torch.equal(turned[0], unit[0].rot90(1, (1, 2)))
    assert torch.equal(turned[1], unit[1].rot90(-1, (1, 2)))
    assert torch.equal(turned[2], unit[2].flip(2))
    assert torch.equal(turned[3], unit[3].flip(1))


def test_corners_are_black_and_the_centre_stays_tissue() -> None:
    turned = flip_and_turn(torch.ones(1, 3, 96, 96), torch.tensor([[0.0, 0.0, 45.0]]))
    assert turned[0, :, 0, 0].sum() == 0
    assert turned[0, :, 32:64, 32:64].min() == 1


def test_each_patch_has_a_draw_of_its_own_within_bounds() -> None:
    torch.manual_seed(0)
    draws = draw_flips_and_turns(4000, 90.0)
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
    draws = draw_symmetries(8000)
    counts = torch.bincount((draws * torch.tensor([1, 2, 4])).sum(dim=1), minlength=8)
    assert ((counts - 1000).abs() < 120).all()  # four deviations
    images = _patches(3)
    together = apply_symmetries(images, draws[:3])
    for number in range(3):
        assert torch.equal(
            together[number : number + 1], apply_symmetries(images[number : number + 1], draws[[number]])
        )
