"""Preprocessing: stain normalization, center crop, resize, standardization."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from pcam_lightning.transforms.augment import to_float
from pcam_lightning.transforms.stain import StainNormalizer
from pcam_lightning.utils.errors import UserError

# Mean and standard deviation of red, green and blue used to train published weights.
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "lunit": ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
}


class Preprocess(nn.Module):
    """Preprocessing of patches; values fitted on the training split are stored with the weights.

    Args:
        stain: stain normalization to the training split: none, macenko or reinhard.
        crop: side of the center crop, in pixels.
        size: side of the resized crop, in pixels; by default, the crop is not resized.
        normalize: mean and standard deviation used to standardize pixels in [0, 1]: none, a key of `STATISTICS`, or
            own for those of the training split.
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
        if normalize != "none":  # `own` is fitted before the first step
            of_pixels = STATISTICS.get(normalize, ((0.0,) * 3, (1.0,) * 3))
            for name, values in zip(("mean", "std"), of_pixels, strict=True):
                self.register_buffer(name, torch.tensor(values)[:, None, None])

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` must be called before the first step."""
        return self.stain is not None or self.normalize == "own"

    @property
    def fitted(self) -> bool:
        """Whether all values have been fitted or loaded from a checkpoint."""
        unfit = self.stain is not None and not bool(self.stain.first.any())
        return not unfit and not (self.normalize == "own" and not bool(self.mean.any()))

    def fit(self, image: torch.Tensor) -> None:
        """Fit the stain target and the pixel statistics, if the options require them.

        Args:
            image: patches of the training split, uint8 (N, 96, 96, 3).

        Raises:
            UserError: no patch contains stain.
        """
        image = to_float(image).contiguous()
        if self.stain is not None:
            try:
                self.stain.fit(image)
            except ValueError as error:
                raise UserError(f"`model.stain` {self.stain.method}: cannot fit a target: {error}.") from None
            image = self.stain(image)
        if self.normalize == "own":
            image = self._cropped(image)
            self.mean.copy_(image.mean(dim=(0, 2, 3))[:, None, None])
            self.std.copy_(image.transpose(0, 1).flatten(1).std(dim=1).clamp(min=1e-3)[:, None, None])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map stored patches, uint8 (B, 96, 96, 3), to float (B, 3, side, side), channels_last."""
        image = to_float(image)
        return self.finish(image if self.stain is None else self.stain(image))

    def finish(self, image: torch.Tensor) -> torch.Tensor:
        """Crop, resize and standardize stain-normalized patches, float (B, 3, 96, 96) in [0, 1]."""
        image = self._cropped(image)
        if self.side != self.crop:
            antialias = self.side < self.crop
            image = functional.interpolate(image, size=(self.side,) * 2, mode="bilinear", antialias=antialias)
        return self.standardize(image)

    def standardize(self, image: torch.Tensor) -> torch.Tensor:
        """Standardize pixels in [0, 1], float (B, 3, side, side)."""
        if self.normalize != "none":
            image = (image - self.mean) / self.std
        return image.contiguous(memory_format=torch.channels_last)

    def _cropped(self, image: torch.Tensor) -> torch.Tensor:
        first = (96 - self.crop) // 2
        return image[..., first : 96 - first, first : 96 - first]
