"""Uint8 patches -> what the network sees of them: stains normalised, centre cropped, scaled, standardised."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from pcam_lightning.augment import to_unit
from pcam_lightning.backbone import STATISTICS
from pcam_lightning.messages import UserError
from pcam_lightning.stain import StainNormalizer


class Preprocess(nn.Module):
    """What lies between a patch and the network; what it measured on the training part travels with the weights.

    Args:
        stain: bring each patch's stains to those of the training part: none, macenko or reinhard.
        crop: side of the centre square that is seen, in pixels.
        size: side to which that is scaled, in pixels; by default it is not.
        normalize: mean and deviation that pixels in [0, 1] are brought to: none, a name of `STATISTICS`, or own, those
            of the training part.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self, stain: Literal["none", "macenko", "reinhard"], crop: int, size: int | None, normalize: str
    ) -> None:
        super().__init__()
        self.stain = None if stain == "none" else StainNormalizer(stain)
        self.crop, self.side = crop, size or crop
        self.normalize = normalize
        if normalize != "none":  # `own` is measured before the first step
            of_pixels = STATISTICS.get(normalize, ((0.0,) * 3, (1.0,) * 3))
            for name, values in zip(("mean", "deviation"), of_pixels, strict=True):
                self.register_buffer(name, torch.tensor(values)[:, None, None])

    @property
    def measures(self) -> bool:
        """Whether there is something to measure on the training part before the first step."""
        return self.stain is not None or self.normalize == "own"

    @property
    def measured(self) -> bool:
        """Whether what there is to measure was measured, here or by the run of a checkpoint."""
        unfit = self.stain is not None and not bool(self.stain.first.any())
        return not unfit and not (self.normalize == "own" and not bool(self.mean.any()))

    def measure(self, image: torch.Tensor) -> None:
        """Fit the stains' target, then the pixels' mean and deviation, where options ask for them.

        Args:
            image: patches of the training part, uint8 (N, 96, 96, 3).

        Raises:
            UserError: no patch shows any stain.
        """
        unit = to_unit(image).contiguous()
        if self.stain is not None:
            try:
                self.stain.fit(unit)
            except ValueError as error:
                raise UserError(f"--model.stain {self.stain.method}: {error} to fit a target to.") from None
            unit = self.stain(unit)
        if self.normalize == "own":
            unit = self._cropped(unit)
            self.mean.copy_(unit.mean(dim=(0, 2, 3))[:, None, None])
            self.deviation.copy_(unit.transpose(0, 1).flatten(1).std(dim=1).clamp(min=1e-3)[:, None, None])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map patches as they are stored, uint8 (B, 96, 96, 3), to float (B, 3, side, side), channels_last."""
        unit = to_unit(image)
        return self.finish(unit if self.stain is None else self.stain(unit))

    def finish(self, unit: torch.Tensor) -> torch.Tensor:
        """Crop, scale and standardise patches, float (B, 3, 96, 96) in [0, 1], stains normalised already."""
        unit = self._cropped(unit)
        if self.side != self.crop:
            antialias = self.side < self.crop
            unit = functional.interpolate(unit, size=(self.side,) * 2, mode="bilinear", antialias=antialias)
        if self.normalize != "none":
            unit = (unit - self.mean) / self.deviation
        return unit.contiguous(memory_format=torch.channels_last)

    def _cropped(self, unit: torch.Tensor) -> torch.Tensor:
        first = (96 - self.crop) // 2
        return unit[..., first : 96 - first, first : 96 - first]
