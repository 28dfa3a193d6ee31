"""AdaptBatchNorm: BatchNorm's statistics measured on the very patches that are to be predicted."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from pcam_lightning.models.batchnorm import measure_statistics
from pcam_lightning.utils.errors import UserError, rank_zero_info

PATCHES = 5120  # that statistics are measured on, at most
BATCH = 256


class AdaptBatchNorm(Callback):
    """Replaces the running statistics of BatchNorm by those of the patches that are validated, tested or predicted.

    AdaBN (Li et al. 2016; Schneider et al. 2020). It is transductive: no label is used, but the logit of a patch
    depends on the others that are predicted with it, so that they should be of one hospital, and many. Nothing is
    changed in fit, nor in the checkpoint. They are measured on 5,120 patches at most, drawn at random, since patches
    that follow each other may be of one slide.

    Args:
        share: of the new statistics, the rest being those of training, in (0, 1].

    Raises:
        UserError: the share is out of range; or, when a stage starts, a network has no BatchNorm.
    """

    def __init__(self, share: float = 1.0) -> None:
        if not 0 < share <= 1:
            raise UserError(f"AdaptBatchNorm: share {share} should be above 0 and at most 1.")
        self.share = share

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure on the validation part, unless it is that of fit."""
        if trainer.state.fn != "fit":
            self._measure(trainer, pl_module, trainer.val_dataloaders)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure on test/."""
        self._measure(trainer, pl_module, trainer.test_dataloaders)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure on what is to be predicted, before BatchNorm is folded."""
        self._measure(trainer, pl_module, trainer.predict_dataloaders)

    @torch.no_grad()
    def _measure(self, trainer: L.Trainer, pl_module: Any, loader: Any) -> None:
        for network in (pl_module, *getattr(pl_module, "ensemble", ())):
            network.to(pl_module.device).eval()
            norms = [norm for norm in network.net.modules() if getattr(norm, "running_mean", None) is not None]
            if not norms:
                name = network.hparams["backbone"]
                raise UserError(f"AdaptBatchNorm: {name} has no BatchNorm; leave the callback out.")
            before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
            with trainer.precision_plugin.forward_context():
                measure_statistics(
                    network.net,
                    norms,
                    _images(network, loader, trainer.global_rank, trainer.world_size),
                    lambda mean: trainer.strategy.reduce(mean, reduce_op="mean"),
                )
            for norm, (mean, var) in zip(norms, before, strict=True):
                norm.running_mean.lerp_(mean, 1 - self.share)
                norm.running_var.lerp_(var, 1 - self.share)
        rank_zero_info(
            f"AdaptBatchNorm: BatchNorm's statistics are those of these patches (share {self.share:g}): a patch's "
            "logit depends on the others."
        )


def _images(network: Any, loader: Any, rank: int, processes: int) -> Iterator[torch.Tensor]:
    """Yield preprocessed batches of one process, drawn at random."""
    patches = (loader[0] if isinstance(loader, list) else loader).dataset
    chosen = np.random.default_rng(0).permutation(len(patches))[:PATCHES][rank::processes]
    for rows in np.array_split(chosen, max(1, round(len(chosen) / BATCH))):
        yield network.preprocess(patches[np.sort(rows)]["image"].to(network.device))
