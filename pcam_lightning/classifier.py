"""PCamClassifier: one step for all stages; BCE, AUROC, AdamW, cosine."""

import math
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.nn import functional
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

from pcam_lightning.augment import (
    apply_symmetries,
    draw_flips_and_turns,
    draw_symmetries,
    flip_and_turn,
    to_unit,
)
from pcam_lightning.backbone import body, build_backbone, load_weights
from pcam_lightning.datamodule import Batch
from pcam_lightning.messages import UserError, say


class PCamClassifier(L.LightningModule):
    """A network with one logit: is there tumour in the centre 32 x 32 of the patch?

    Args:
        backbone: name of the network: resnet18.
        weights: what it starts from: imagenet, none (random) or the path of a state dict with torchvision's names.
        freeze_epochs: epochs in which the head alone learns, at the start; BatchNorm's running statistics stay as
            they are too. Skipped where the network starts from random weights.
        optimizer: adamw or sgd.
        lr: learning rate at its highest.
        weight_decay: as the optimizer defines it.
        momentum: of sgd.
        warmup_epochs: epochs in which the rate rises from zero; it then follows a cosine to zero, step by step.
        label_smoothing: share of each label that is spread evenly over both classes, in [0, 1).
        degrees: training patches are flipped and turned by an angle drawn from [-degrees, degrees].
        quarter_turns: training patches go through one of the eight symmetries of the square instead, drawn for each:
            no corner is black, no pixel moves by a fraction. Needs degrees 0.
        compile: let torch.compile build the network for this machine before the first step.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: str = "imagenet",
        freeze_epochs: int = 1,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.9,
        warmup_epochs: float = 0.0,
        label_smoothing: float = 0.0,
        degrees: float = 90.0,
        quarter_turns: bool = False,
        compile: bool = False,  # noqa: A002 - what torch calls it
    ) -> None:
        super().__init__()
        if quarter_turns and degrees:
            raise UserError(
                f"--model.quarter_turns {quarter_turns}: goes with --model.degrees 0, symmetries instead of angles."
            )
        if not 0 <= label_smoothing < 1:
            raise UserError(f"--model.label_smoothing {label_smoothing}: should be at least 0 and less than 1.")
        for name, value in (
            ("lr", lr),
            ("weight_decay", weight_decay),
            ("momentum", momentum),
            ("warmup_epochs", warmup_epochs),
            ("degrees", degrees),
            ("freeze_epochs", freeze_epochs),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"--model.{name} {value}: should be a number from 0 up.")
        # A checkpoint carries its weights; where they once started from is no parameter for loading it.
        self.save_hyperparameters(ignore="weights", logger=False)
        self.weights = weights
        self.started_from = "none"  # what was loaded in truth; travels with the checkpoint
        self.net = build_backbone(backbone).to(memory_format=torch.channels_last)
        self._seed = 0
        self._whole = 0  # patches of the largest batch that was not for training
        if compile:
            self.net.compile(dynamic=False)  # in place: checkpoints keep the names of the plain network
        metrics = MetricCollection(
            {"auroc": BinaryAUROC(validate_args=False), "accuracy": BinaryAccuracy(validate_args=False)}
        )
        mean = MeanMetric(nan_strategy="disable")  # looking for NaN would wait for the device in every step
        self.train_metrics, self.train_loss = metrics.clone(prefix="train/"), mean.clone()
        self.val_metrics, self.val_loss = metrics.clone(prefix="val/"), mean.clone()
        self.test_metrics, self.test_loss = metrics.clone(prefix="test/"), mean.clone()

    def load_start(self) -> None:
        """Load the weights that training starts from.

        Raises:
            UserError: see `backbone.load_weights`.
        """
        load_weights(self.net, self.weights)
        self.started_from = self.weights

    @property
    def freezes(self) -> bool:
        """Whether there is a frozen epoch at the start."""
        return self.hparams["freeze_epochs"] > 0 and self.started_from != "none"

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map float images (B, 3, 96, 96) in [0, 1] to float32 logits (B,)."""
        count = len(image)
        if self.hparams["compile"] and not self.training:
            # A last, smaller batch would be compiled for all over again.
            self._whole = max(self._whole, count)
            if count < self._whole:
                image = functional.pad(image, (0, 0, 0, 0, 0, 0, 0, self._whole - count))
        logit: torch.Tensor = self.net(image).squeeze(1)[:count]
        return logit

    def _augment(self, image: torch.Tensor) -> torch.Tensor:
        """Map a training batch, uint8 (B, 96, 96, 3), to float (B, 3, 96, 96)."""
        if self.hparams["quarter_turns"]:
            return to_unit(apply_symmetries(image, draw_symmetries(len(image))))
        return flip_and_turn(to_unit(image), draw_flips_and_turns(len(image), self.hparams["degrees"]))

    def _step(self, batch: Batch, stage: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, and the logits (B,)."""
        label = batch["label"]
        logit = self(self._augment(batch["image"]) if stage == "train" else to_unit(batch["image"]))
        smoothing = self.hparams["label_smoothing"] if stage == "train" else 0.0
        smooth = label * (1 - smoothing) + smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(logit, smooth, reduction="none")
        mean: MeanMetric = getattr(self, f"{stage}_loss")
        metrics: MetricCollection = getattr(self, f"{stage}_metrics")
        mean.update(losses.detach())
        metrics.update(logit.detach().sigmoid(), label.int())
        # Logged as objects: an epoch's AUROC is computed from all its patches, not averaged over batches.
        self.log(f"{stage}/loss", mean, on_step=False, on_epoch=True, prog_bar=True)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=stage == "val")
        return losses.mean(), logit

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of one batch, augmented."""
        return self._step(batch, "train")[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Update the validation metrics; return `row` int64 (B,) and `logit` float32 (B,)."""
        return {"row": batch["row"], "logit": self._step(batch, "val")[1]}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Update the test metrics; return `row` int64 (B,) and `logit` float32 (B,)."""
        return {"row": batch["row"], "logit": self._step(batch, "test")[1]}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Return `row` int64 (B,) and `logit` float32 (B,)."""
        return {"row": batch["row"], "logit": self(to_unit(batch["image"]))}

    def on_fit_start(self) -> None:
        """Note the seed, before any step draws from it."""
        self._seed = torch.initial_seed()
        if self.hparams["freeze_epochs"] and not self.freezes:
            say("--model.freeze_epochs is skipped: the network starts from random weights, all of it learns at once.")

    def on_train_epoch_start(self) -> None:
        """Freeze the body, or let it learn."""
        frozen = self.freezes and self.current_epoch < self.hparams["freeze_epochs"]
        for module in body(self.net):
            module.requires_grad_(not frozen)
            module.train(not frozen)  # in evaluation mode BatchNorm leaves its running statistics alone

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let every draw follow from (seed, epoch, step, process): a resumed run is the same run."""
        place = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW or SGD, and a cosine over the run with an optional linear warm-up."""
        rate, decay = float(self.hparams["lr"]), float(self.hparams["weight_decay"])
        fused = self._fuses()
        optimizer: torch.optim.Optimizer
        if self.hparams["optimizer"] == "sgd":
            momentum = self.hparams["momentum"]
            optimizer = torch.optim.SGD(self.parameters(), rate, momentum, weight_decay=decay, fused=fused)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), rate, weight_decay=decay, fused=fused)
        steps = int(self.trainer.estimated_stepping_batches)
        if self.trainer.train_dataloader is None:  # where max_epochs is -1, nobody has asked for it yet
            self.trainer.fit_loop.setup_data()
        an_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        warmup = round(an_epoch * float(self.hparams["warmup_epochs"]))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "train/lr"}}

    def _fuses(self) -> bool:
        """Tell whether the optimizer runs one kernel for all parameters.

        Not where gradients are clipped in mixed precision: Lightning clips none that an optimizer unscales by itself.
        """
        clips = bool(self.trainer.gradient_clip_val) and str(self.trainer.precision).endswith("-mixed")
        return self.trainer.strategy.root_device.type in ("cpu", "cuda") and not clips

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which weights training started from."""
        checkpoint["started_from"] = self.started_from

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over which weights training started from; refuse another network's before they are loaded.

        Whether the optimizer is fused is of this machine and its flags, and is not taken over.

        Raises:
            UserError: the names or shapes are not this network's.
        """
        self.started_from = checkpoint.get("started_from", "none")
        for state in checkpoint.get("optimizer_states", []) if self._trainer else []:
            for group in state["param_groups"]:
                group["fused"] = self._fuses()
        own, state = self.state_dict(), checkpoint["state_dict"]
        odd = sorted(set(own) ^ set(state)) + [
            key for key in own if key in state and own[key].shape != state[key].shape
        ]
        if odd:
            raise UserError(
                f"the checkpoint does not fit --model.backbone {self.hparams['backbone']}: {len(odd)} names or shapes "
                f"differ, {odd[0]} for one; leave the option out, it comes with the checkpoint."
            )
