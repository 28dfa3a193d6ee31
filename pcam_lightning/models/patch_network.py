"""PatchNetwork: prediction of logits from uint8 patches."""

import lightning as L
import torch
from torch import nn
from torch.nn import functional

from pcam_lightning.data.batches import Batch
from pcam_lightning.models.batchnorm import fold_batchnorm
from pcam_lightning.transforms.geometry import d4_views
from pcam_lightning.transforms.preprocess import Preprocess


class PatchNetwork(L.LightningModule):
    """Preprocessing and a network with one logit.

    Subclasses set the attributes and the hyper-parameters `tta` (none, or d4 for the mean logit of eight views) and
    `compile`.

    Attributes:
        preprocess: maps uint8 (B, 96, 96, 3) to float (B, 3, side, side).
        net: maps preprocessed patches to (B, 1).
    """

    preprocess: Preprocess
    net: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.ensemble: list[PatchNetwork] = []  # other networks for predict; not part of checkpoints
        self._folded: list[nn.Module] = []  # `net` with BatchNorm folded; in a list, so that it is not a submodule
        self._largest_batch = 0  # size of the largest batch outside training

    @property
    def predictor(self) -> nn.Module:
        """The network used by predict: the folded copy made by `fold`, or `net`."""
        return self._folded[0] if self._folded else self.net

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map preprocessed patches, float (B, 3, side, side), to float32 logits (B,)."""
        return self._run(self.net, image)

    def _run(self, net: nn.Module, image: torch.Tensor) -> torch.Tensor:
        count = len(image)
        if self.hparams["compile"] and not self.training:
            # Pad the smaller last batch to avoid a second compilation.
            self._largest_batch = max(self._largest_batch, count)
            if count < self._largest_batch:
                image = functional.pad(image, (0, 0, 0, 0, 0, 0, 0, self._largest_batch - count))
        logit: torch.Tensor = net(image).squeeze(1)[:count]
        return logit

    def predict_logits(self, image: torch.Tensor, *, folded: bool = False) -> torch.Tensor:
        """Predict the logits (B,) of patches without augmentation.

        Args:
            image: patches, uint8 (B, 96, 96, 3), on the device of the module.
            folded: use the copy made by the last call of `fold`, with the weights of that time.
        """
        return mean_logit(self.view_logits(image, folded=folded))

    def view_logits(self, image: torch.Tensor, *, folded: bool = False) -> list[torch.Tensor]:
        """Predict the logits (B,) of each view; `predict_logits` returns their mean."""
        image = self.preprocess(image)
        views = d4_views(image) if self.hparams["tta"] == "d4" else [image]
        net = self.predictor if folded else self.net
        return [self._run(net, view) for view in views]

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Return `row` in `PCamDataModule.ids`, int64 (B,), and the mean `logit` of all networks, float32 (B,).

        With several views or networks, add `sd_views` (B,), the standard deviation of their logits.
        """
        views = [network.view_logits(batch["image"], folded=True) for network in (self, *self.ensemble)]
        predicted = {"row": batch["row"], "logit": mean_logit([mean_logit(logits) for logits in views])}
        every = torch.stack([logit for logits in views for logit in logits])
        return predicted if len(every) == 1 else {**predicted, "sd_views": every.float().std(dim=0, correction=0)}

    def on_predict_start(self) -> None:
        """Move the ensemble to the device and fold BatchNorm into convolutions."""
        for network in (self, *self.ensemble):
            network.to(self.device).eval()
            network.fold()

    def on_predict_end(self) -> None:
        """Drop the folded copies."""
        for network in (self, *self.ensemble):
            network.drop_folded()

    def fold(self) -> None:
        """Make a copy of the network with BatchNorm folded, if possible."""
        side = self.preprocess.side
        image = torch.linspace(-1, 1, 3 * side * side, device=self.device).view(1, 3, side, side)
        folded = fold_batchnorm(self.net, image)
        self._folded = [] if folded is None else [folded.to(memory_format=torch.channels_last)]
        if folded is not None and self.hparams["compile"]:
            folded.compile(dynamic=False)

    def drop_folded(self) -> None:
        """Drop the folded copy."""
        self._folded.clear()


def mean_logit(logits: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean of several logits (B,), bit-equal for any order."""
    return torch.stack(logits).sort(dim=0).values.mean(dim=0)
