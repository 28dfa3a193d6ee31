"""PatchNetwork: how uint8 patches become logits where nothing is trained."""

import lightning as L
import torch
from torch import nn
from torch.nn import functional

from pcam_lightning.data.batches import Batch
from pcam_lightning.models.batchnorm import fold_batchnorm
from pcam_lightning.transforms.geometry import d4_views
from pcam_lightning.transforms.preprocess import Preprocess


class PatchNetwork(L.LightningModule):
    """A network with one logit, and the preprocessing before it.

    Subclasses set the attributes, and the hyper-parameters `tta` (none, or d4 for the mean logit of eight views) and
    `compile`.

    Attributes:
        preprocess: from uint8 (B, 96, 96, 3) to float (B, 3, side, side).
        net: from these to (B, 1).
    """

    preprocess: Preprocess
    net: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.ensemble: list[PatchNetwork] = []  # others, in predict; in no checkpoint of this one
        self._folded: list[nn.Module] = []  # `net` with BatchNorm folded; a list, to be no submodule
        self._largest_batch = 0  # patches of the largest batch that was not for training

    @property
    def predictor(self) -> nn.Module:
        """What maps preprocessed patches to logits in predict: the copy that `fold` made, or `net`."""
        return self._folded[0] if self._folded else self.net

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map preprocessed patches, float (B, 3, side, side), to float32 logits (B,)."""
        return self._run(self.net, image)

    def _run(self, net: nn.Module, image: torch.Tensor) -> torch.Tensor:
        count = len(image)
        if self.hparams["compile"] and not self.training:
            # A last, smaller batch would be compiled for all over again.
            self._largest_batch = max(self._largest_batch, count)
            if count < self._largest_batch:
                image = functional.pad(image, (0, 0, 0, 0, 0, 0, 0, self._largest_batch - count))
        logit: torch.Tensor = net(image).squeeze(1)[:count]
        return logit

    def predict_logits(self, image: torch.Tensor, *, folded: bool = False) -> torch.Tensor:
        """Map patches that are not for training, uint8 (B, 96, 96, 3), to logits (B,).

        Args:
            image: of the patches, on the module's device.
            folded: let the copy predict that the last call of `fold` made of the network as it was then.
        """
        return mean_logit(self.view_logits(image, folded=folded))

    def view_logits(self, image: torch.Tensor, *, folded: bool = False) -> list[torch.Tensor]:
        """Map the same patches to the logits (B,) of each view that `predict_logits` returns the mean of."""
        image = self.preprocess(image)
        views = d4_views(image) if self.hparams["tta"] == "d4" else [image]
        net = self.predictor if folded else self.net
        return [self._run(net, view) for view in views]

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Return `row` int64 (B,) of `PCamDataModule.ids` and `logit` float32 (B,), with others the mean of all.

        With several views or networks, `sd_views` (B,) is the sd of their logits.
        """
        views = [network.view_logits(batch["image"], folded=True) for network in (self, *self.ensemble)]
        predicted = {"row": batch["row"], "logit": mean_logit([mean_logit(logits) for logits in views])}
        every = torch.stack([logit for logits in views for logit in logits])
        return predicted if len(every) == 1 else {**predicted, "sd_views": every.float().std(dim=0, correction=0)}

    def on_predict_start(self) -> None:
        """Take the others to the device, and fold BatchNorm into convolutions."""
        for network in (self, *self.ensemble):
            network.to(self.device).eval()
            network.fold()

    def on_predict_end(self) -> None:
        """Drop the folded copies."""
        for network in (self, *self.ensemble):
            network.drop_folded()

    def fold(self) -> None:
        """Make a copy of the network for predictions, with BatchNorm folded, where that is possible."""
        side = self.preprocess.side
        image = torch.linspace(-1, 1, 3 * side * side, device=self.device).view(1, 3, side, side)
        folded = fold_batchnorm(self.net, image)
        self._folded = [] if folded is None else [folded.to(memory_format=torch.channels_last)]
        if folded is not None and self.hparams["compile"]:
            folded.compile(dynamic=False)

    def drop_folded(self) -> None:
        """Drop the copy that `fold` made."""
        self._folded.clear()


def mean_logit(logits: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean of several (B,), the same to its last bit in whichever order they come."""
    return torch.stack(logits).sort(dim=0).values.mean(dim=0)
