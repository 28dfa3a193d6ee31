"""Preprocessing: stain normalization, center crop, resize, standardization."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from pcam_lightning.transforms.augment import to_float
from pcam_lightning.transforms.stain import StainNormalizer
from pcam_lightning.utils.errors import UserError

# Mean and standard deviation of red, green and blue that weights were trained with.
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "lunit": ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
}


class Preprocess(nn.Module):
    """Preprocessing of patches; what is fitted on the training part is stored with the weights.

    Args:
        stain: bring each patch's stains to those of the training part: none, macenko or reinhard.
        crop: side of the center square that is seen, in pixels.
        size: side to which that is scaled, in pixels; by default it is not.
        normalize: mean and deviation that pixels in [0, 1] are brought to: none, a name of `STATISTICS`, or own, those
            of the training part.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, stain: Literal["none", "macenko", "reinhard"], crop: int, size: int | None, normalize: str
    ) -> None:
        super().__init__()
        self.stain = None if stain == "none" else StainNormalizer(stain)
        self.crop, self.side = crop, size or crop
        self.normalize = normalize
        if normalize != "none":  # `own` is measured before the first step
            of_pixels = STATISTICS.get(normalize, ((0.0,) * 3, (1.0,) * 3))
            for name, values in zip(("mean", "std"), of_pixels, strict=True):
                self.register_buffer(name, torch.tensor(values)[:, None, None])

    @property
    def needs_fit(self) -> bool:
        """Whether something has to be fitted on the training part before the first step."""
        return self.stain is not None or self.normalize == "own"

    @property
    def fitted(self) -> bool:
        """Whether that has been fitted, here or by the run of a checkpoint."""
        unfit = self.stain is not None and not bool(self.stain.first.any())
        return not unfit and not (self.normalize == "own" and not bool(self.mean.any()))

    def fit(self, image: torch.Tensor) -> None:
        """Fit the stains' target, then the pixels' mean and deviation, where options ask for them.

        Args:
            image: patches of the training part, uint8 (N, 96, 96, 3).

        Raises:
            UserError: no patch shows any stain.
        """
        image = to_float(image).contiguous()
        if self.stain is not None:
            try:
                self.stain.fit(image)
            except ValueError as error:
                raise UserError(f"`model.stain` {self.stain.method}: {error} to fit a target to.") from None
            image = self.stain(image)
        if self.normalize == "own":
            image = self._cropped(image)
            self.mean.copy_(image.mean(dim=(0, 2, 3))[:, None, None])
            self.std.copy_(image.transpose(0, 1).flatten(1).std(dim=1).clamp(min=1e-3)[:, None, None])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map patches as they are stored, uint8 (B, 96, 96, 3), to float (B, 3, side, side), channels_last."""
        image = to_float(image)
        return self.finish(image if self.stain is None else self.stain(image))

    def finish(self, image: torch.Tensor) -> torch.Tensor:
        """Crop, scale and standardize patches, float (B, 3, 96, 96) in [0, 1], stains normalized already."""
        image = self._cropped(image)
        if self.side != self.crop:
            antialias = self.side < self.crop
            image = functional.interpolate(image, size=(self.side,) * 2, mode="bilinear", antialias=antialias)
        return self.standardize(image)

    def standardize(self, image: torch.Tensor) -> torch.Tensor:
        """Bring pixels in [0, 1], float (B, 3, side, side), to their mean and deviation."""
        if self.normalize != "none":
            image = (image - self.mean) / self.std
        return image.contiguous(memory_format=torch.channels_last)

    def _cropped(self, image: torch.Tensor) -> torch.Tensor:
        first = (96 - self.crop) // 2
        return image[..., first : 96 - first, first : 96 - first]
