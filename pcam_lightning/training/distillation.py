"""Distillation: a network learns what other, trained networks say about its augmented patches."""

import lightning as L
import torch

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.patch_network import mean_logit
from pcam_lightning.training.loaded_run import load_pretrained
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn


class Distillation(L.Callback):
    """Trains towards the probabilities of trained networks as well as towards the labels (Hinton et al. 2015).

    The teachers see the same augmented patches as the network (Beyer et al. 2022); of several the mean logit counts. A
    step costs one forward pass of each teacher more. `model.label_smoothing` is of the targets, whoever they are from.

    Args:
        teachers: checkpoints of this project, or pcam. They should not have been trained on patches of the validation
            part, or val/auroc is optimistic; how many those are is reported.
        share: of the teachers' probabilities in the targets, in (0, 1]; the labels have the rest.
    """

    def __init__(self, teachers: list[str], share: float = 0.5) -> None:
        if not 0 < share <= 1:
            raise UserError(f"`trainer.callbacks.share` {share}: should be more than 0 and at most 1, such as 0.5.")
        if not teachers:
            raise UserError("`trainer.callbacks.teachers` []: names no checkpoint to learn from.")
        self.share = share
        self.paths = [str(path) for path in teachers]
        self.teachers = [load_pretrained(path) for path in teachers]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the network its teachers.

        Raises:
            UserError: a teacher normalizes stains otherwise.
        """
        assert isinstance(pl_module, PCamClassifier)
        data, stain = getattr(trainer, "datamodule", None), pl_module.hparams["stain"]
        for path, teacher in zip(self.paths, self.teachers, strict=True):
            if teacher.hparams["stain"] != stain:
                raise UserError(
                    f"`trainer.callbacks.teachers` {path}: has `model.stain` {teacher.hparams['stain']}, not {stain}."
                )
            pl_module.trained |= teacher.trained
            if isinstance(data, PCamDataModule) and (overlap := teacher.trained.count(data.table[data.val_mask])):
                rank_zero_warn(
                    f"val/auroc will be optimistic: {overlap:,} of {int(data.val_mask.sum()):,} validation patches "
                    f"trained {path}, a teacher of this run."
                )
            if teacher.trained.caution:
                rank_zero_warn(f"val/auroc may be optimistic: {path} was {teacher.trained.caution}.")
            teacher.to(pl_module.device).fold()
        rank_zero_info(f"distillation: {self.share:g} of the targets from {', '.join(self.paths)}.")
        pl_module.teach = self._soften

    @torch.no_grad()
    def _soften(self, patches: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mix the teachers' probabilities for augmented patches, float (B, 3, 96, 96), into targets (B,)."""
        logits = [teacher._run(teacher.predictor, teacher.finish(patches)) for teacher in self.teachers]
        return torch.lerp(target, mean_logit(logits).sigmoid(), self.share)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the teachers away."""
        assert isinstance(pl_module, PCamClassifier)
        pl_module.teach = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the teachers away from a run that was stopped."""
        self.on_train_end(trainer, pl_module)
