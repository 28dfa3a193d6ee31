"""PCamClassifier: one step for all stages; BCE, AUROC, AdamW, cosine."""

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torchmetrics import MeanMetric, MetricCollection

from pcam_lightning.data.batches import Batch
from pcam_lightning.metrics.torch_metrics import build_metrics
from pcam_lightning.models.backbones import build_backbone, freeze
from pcam_lightning.models.checks import check_checkpoint, check_options
from pcam_lightning.models.losses import LOSSES
from pcam_lightning.models.optim import SCHEDULES, Schedule, StepSchedule, build_optimizer, build_schedule
from pcam_lightning.models.timm_networks import absolute_name
from pcam_lightning.models.trained_network import TrainedNetwork
from pcam_lightning.transforms.augment import Augmentation, augment
from pcam_lightning.transforms.preprocess import Preprocess
from pcam_lightning.utils.errors import rank_zero_info

_NEVER = sys.maxsize  # epochs between two steps of a schedule that Lightning is to leave alone


class PCamClassifier(TrainedNetwork):
    """A network with one logit: is there tumor in the center 32 x 32 of the patch?

    Args:
        backbone: resnet18, resnet34, resnet50, convnext_tiny, efficientnet_b0, efficientnet_b3, efficientnet_lite0,
            efficientnet_lite0_s16 (its stages up to stride 16, a fifth of the parameters), efficientnet_lite1,
            efficientnet_lite2, p4m_resnet16, which gives all eight symmetries of a patch the same logit, or timm/NAME
            for any network of timm's, such as timm/vit_small_patch16_224, timm/hf-hub:OWNER/NAME or
            timm/local-dir:PATH.
        weights: what it starts from: imagenet, none (random), pcam or pcam-small (which come with the package), or the
            path of a state dict (.safetensors too).
        normalize: mean and deviation that pixels in [0, 1] are brought to: none, imagenet, half (0.5 both; what
            EfficientNet-Lite's weights were trained with), lunit (of Lunit's weights) or own, those of the training
            patches.
        crop: side of the center square that the network sees, in pixels, from 32 to 96.
        size: side to which that is scaled, in pixels; by default it is not.
        features: inputs of the last layer: last, the network's own features, or stages, these and the spatial mean of
            each stage's output; not for p4m_resnet16.
        stain: bring each patch's stains to those of the training part: none, macenko or reinhard.
        augment: what happens to training patches.
        freeze_epochs: epochs in which the head alone learns, at the start; BatchNorm's running statistics stay as
            they are too. Skipped where the network starts from random weights.
        optimizer: adamw or sgd.
        lr: learning rate at its highest.
        weight_decay: as the optimizer defines it.
        momentum: of sgd.
        schedule: cosine, from the highest rate to zero, step by step; or plateau, which takes a tenth of it where
            val/auroc no longer rises.
        warmup_epochs: of cosine: epochs in which the rate rises from zero first.
        patience: of plateau: validations without a higher val/auroc that the rate outlasts.
        loss: bce, the binary cross-entropy; or focal (Lin et al. 2017), in which patches that are classified well
            already count for little. Validation has the same.
        positive_weight: factor of the loss of tumor patches: more than 1 where these are rare or must not be missed.
            Probabilities shift with it.
        label_smoothing: share of each label that is spread evenly over both classes, in [0, 1).
        tta: test-time augmentation in all stages but training, validation within fit too: none, or d4, the mean of
            the logits of the eight symmetries of the square.
        compile: let torch.compile build the network for this machine before the first step.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: str = "imagenet",
        normalize: str = "none",
        crop: int = 96,
        size: int | None = None,
        features: Literal["last", "stages"] = "last",
        stain: Literal["none", "macenko", "reinhard"] = "none",
        augment: Augmentation = Augmentation(degrees=90.0),  # noqa: B008 - never changed, and shown in --help
        freeze_epochs: int = 1,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.9,
        schedule: str = "cosine",
        warmup_epochs: float = 0.0,
        patience: int = 2,
        loss: str = "bce",
        positive_weight: float = 1.0,
        label_smoothing: float = 0.0,
        tta: Literal["none", "d4"] = "none",
        compile: bool = False,  # noqa: A002 - what torch calls it
    ) -> None:
        super().__init__(weights)
        backbone = absolute_name(backbone)
        self.augmentation = Augmentation.of(augment)
        # A checkpoint carries its weights; where they once started from is no parameter for loading it.
        self.save_hyperparameters(ignore=["weights", "augment"], logger=False)
        self.hparams["augment"] = asdict(self.augmentation)  # a checkpoint holds plain values only
        check_options(self.hparams)
        self.preprocess = Preprocess(stain, crop, size, normalize)
        self.net = build_backbone(backbone, self.preprocess.side, features).to(memory_format=torch.channels_last)
        self.teach: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None  # set by Distillation, in fit
        self._seed = 0
        if compile:
            self.net.compile(dynamic=False)  # in place: checkpoints keep the names of the plain network
        self.train_metrics, self.train_loss = build_metrics("train")
        self.val_metrics, self.val_loss = build_metrics("val")
        self.test_metrics, self.test_loss = build_metrics("test")

    @property
    def schedule(self) -> Schedule:
        """The schedule of the learning rate."""
        return SCHEDULES[self.hparams["schedule"]]

    @property
    def logged_metrics(self) -> list[str]:
        """Names of the metrics that an epoch logs, of training and validation."""
        names = [name for metrics in (self.train_metrics, self.val_metrics) for name in metrics]
        return [*map(str, names), "train/loss", "val/loss"]

    def augmented(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment and preprocess training patches; return float (B, 3, side, side) and labels (B,)."""
        patches, target = self._augment(batch)
        return self.finish(patches), target

    def _augment(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):  # pixels keep all their gray levels
            return augment(batch["image"], batch["label"], self.augmentation, self.preprocess.stain)

    def finish(self, patches: torch.Tensor) -> torch.Tensor:
        """Crop, scale and standardize augmented patches, float (B, 3, 96, 96)."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.preprocess.finish(patches)

    def training_batch(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a step trains on: augmented patches, float (B, 3, side, side), and targets (B,)."""
        patches, target = self._augment(batch)
        if self.teach is not None:
            target = self.teach(patches, target)
        return self.finish(patches), target

    def _step(self, batch: Batch, stage: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, and the logits (B,)."""
        label = target = batch["label"]
        if stage == "train":
            image, target = self.training_batch(batch)
            logit = self(image)
            smoothing = self.hparams["label_smoothing"]
            target = target * (1 - smoothing) + smoothing / 2
        else:
            logit = self.predict_logits(batch["image"])
        losses = LOSSES[self.hparams["loss"]](logit, target, self.hparams)
        if "weight" in batch:  # of training patches alone
            losses = losses * batch["weight"]
        mean: MeanMetric = getattr(self, f"{stage}_loss")
        metrics: MetricCollection = getattr(self, f"{stage}_metrics")
        mean.update(losses.detach())
        metrics.update(logit.detach(), label.int())
        # Logged as objects: an epoch's AUROC is computed from all its patches, not averaged over batches.
        self.log(f"{stage}/loss", mean, on_step=False, on_epoch=True, prog_bar=True)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=stage == "val")
        return losses.mean(), logit

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of one batch, augmented."""
        return self._step(batch, "train")[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Update the validation metrics; return `row` int64 (B,) of `PCamDataModule.ids` and `logit` float32 (B,)."""
        return {"row": batch["row"], "logit": self._step(batch, "val")[1]}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Update the test metrics; return `row` int64 (B,) of `PCamDataModule.ids` and `logit` float32 (B,)."""
        return {"row": batch["row"], "logit": self._step(batch, "test")[1]}

    def on_fit_start(self) -> None:
        """Note the seed, and prepare the weights, see `TrainedNetwork`."""
        self._seed = torch.initial_seed()
        super().on_fit_start()
        if self.hparams["freeze_epochs"] and not self.freezes:
            rank_zero_info(
                "`model.freeze_epochs` is skipped: the network starts from random weights, all of it learns at once."
            )

    def on_train_start(self) -> None:
        """Set the learning rate of the first step, where it follows the number of steps."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, StepSchedule):
                config.scheduler.restore()

    def on_train_epoch_start(self) -> None:
        """Freeze the backbone, or unfreeze it."""
        freeze(self.net, self.freezes and self.current_epoch < self.hparams["freeze_epochs"])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the draws of a step by (seed, epoch, step, process), so that a resumed run equals one never stopped."""
        entropy = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and the learning rate schedule."""
        optimizer = build_optimizer(self.net, self.hparams, fused=self._fuses())
        steps = int(self.trainer.estimated_stepping_batches)
        if self.trainer.train_dataloader is None:  # where max_epochs is -1, nobody has asked for it yet
            self.trainer.fit_loop.setup_data()
        an_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        schedule = build_schedule(optimizer, self.hparams, steps, an_epoch)
        config = LRSchedulerConfigType(scheduler=schedule, interval="step", name="train/lr")
        if self.schedule.by_score:  # Lightning would step it once the epoch's checkpoint has been saved
            config |= LRSchedulerConfigType(scheduler=schedule, interval="epoch", frequency=_NEVER, monitor="val/auroc")
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_validation_end(self) -> None:
        """Step a schedule that goes by val/auroc."""
        score = self.trainer.callback_metrics.get("val/auroc", torch.tensor(torch.nan))
        if self.trainer.sanity_checking or self.trainer.state.fn != "fit" or not score.isfinite():
            return
        for config in self.trainer.lr_scheduler_configs:
            if config.frequency == _NEVER:
                scheduler: Any = config.scheduler
                scheduler.step(score.item())

    def _fuses(self) -> bool:
        """Return whether the optimizer runs one kernel for all parameters.

        Not where gradients are clipped in mixed precision: Lightning clips none that an optimizer unscales by itself.
        """
        clips = bool(self.trainer.gradient_clip_val) and str(self.trainer.precision).endswith("-mixed")
        return self.trainer.strategy.root_device.type in ("cpu", "cuda") and not clips

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what is recorded of the weights; check that they fit the network before they are loaded.

        Whether the optimizer is fused is of this machine and its flags, and is not taken over.

        Raises:
            UserError: the names or shapes are not this network's.
        """
        super().on_load_checkpoint(checkpoint)
        groups = [group for state in checkpoint.get("optimizer_states", []) for group in state["param_groups"]]
        with suppress(RuntimeError):  # there is no trainer
            for group in groups:
                if group.get("fused") is not None:  # as ours have it
                    group["fused"] = self._fuses()
        check_checkpoint(checkpoint, self.state_dict(), self.hparams)
