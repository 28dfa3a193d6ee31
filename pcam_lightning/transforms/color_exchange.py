"""Colors that patches of a batch take over from each other: stains, L*a*b* statistics, amplitudes."""

import torch

from pcam_lightning.transforms.stain import find_stains, set_stains, shows_stain, to_lab
from pcam_lightning.transforms.step import neighbors

_STEP = 2  # every second row and column is enough to tell a patch's stains, in a quarter of the time
_WAVES = 5  # along a side: frequencies up to this one are low


def mix_stains(image: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Move the stains of each patch, and their strengths, towards those of the patch before it.

    Args:
        image: float in [0, 1], (B, 3, H, W). Patches in which no two stains are found neither give nor take any.
        share: (B,), 0 for its own stains, 1 for the other's.
    """
    sample = image[..., ::_STEP, ::_STEP]
    stains, strength, unmix, found = find_stains(sample)
    found &= shows_stain(sample)
    share = (share.to(image, non_blocking=True) * (found & neighbors(found)))[:, None]
    towards = torch.nn.functional.normalize(torch.lerp(stains, neighbors(stains), share[..., None]), dim=1)
    mixed = set_stains(image, unmix, strength, towards, torch.lerp(strength, neighbors(strength), share))
    # Where two stains are nearly one, amounts are huge: what is changed next should not see them.
    return torch.where((share > 0)[..., None, None], mixed.nan_to_num_(1.0).clamp_(0, 1), image)


def draw_lab_statistics(image: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw mean and deviation of each channel of CIE L*a*b* for each patch, on the CPU.

    Args:
        image: float in [0, 1], (B, 3, H, W); those without stains have no say.
        factor: of the sd of the normal distributions that are drawn from: those of the batch's patches.

    Returns:
        (B, 3, 1) each; deviations are at least a tenth of their mean.
    """
    sample = image[..., ::_STEP, ::_STEP]
    lab = to_lab(sample).flatten(2)
    each = torch.stack([lab.mean(dim=2), lab.std(dim=2)])  # (2, B, 3)
    weight = shows_stain(sample).to(each)[:, None]
    weight = weight / weight.sum().clamp(min=1)
    mean = (each * weight).sum(dim=1, keepdim=True)
    sd = ((each - mean).square() * weight).sum(dim=1, keepdim=True).sqrt()
    drawn = mean + factor * sd * torch.randn(each.shape).to(each.device, non_blocking=True)
    return drawn[0, ..., None], torch.maximum(drawn[1], mean[1] / 10)[..., None]


def mix_amplitudes(image: torch.Tensor, other: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Move the amplitudes of low frequencies towards those of other patches; phases stay.

    Args:
        image: float, (B, 3, H, W).
        other: the same.
        share: (B,), 0 for its own amplitudes, 1 for the other's.

    Returns:
        float, (B, 3, H, W), outside [0, 1] where it got too bright or too dark.
    """
    height, width = image.shape[2:]
    own, theirs = (_low(one) for one in (image, other))
    amplitude = own.abs()
    share = share.to(image, non_blocking=True)[:, None, None, None]
    factor = torch.lerp(amplitude, theirs.abs(), share) / amplitude.clamp(min=1e-6)
    change = own * (factor - 1)  # what the low frequencies become, less what they are
    spectrum = change.new_zeros(*image.shape[:2], height, width // 2 + 1)
    spectrum[:, :, : _WAVES + 1, : _WAVES + 1] = change[:, :, : _WAVES + 1]
    spectrum[:, :, -_WAVES:, : _WAVES + 1] = change[:, :, _WAVES + 1 :]
    mixed: torch.Tensor = image + torch.fft.irfft2(spectrum, s=(height, width))
    return mixed


def _low(image: torch.Tensor) -> torch.Tensor:
    """Return the low frequencies of images (B, 3, H, W), complex (B, 3, 2 * _WAVES + 1, _WAVES + 1)."""
    spectrum = torch.fft.rfft2(image.contiguous())[..., : _WAVES + 1]
    return torch.cat([spectrum[:, :, : _WAVES + 1], spectrum[:, :, -_WAVES:]], dim=2)
