"""A run or a checkpoint, read once, and what follows from it: folder, options, network, training patches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.run_dir import BundledRun, Run, run_at, run_of


@dataclass(frozen=True)
class LoadedRun:
    """A trained network's checkpoint, and the run that it belongs to.

    Attributes:
        name: as the user gave it.
        path: of the checkpoint; of a network that comes with the package, its name.
        run: the folder of the run, where results go.
        checkpoint: what `read_checkpoint` returns.
    """

    name: str
    path: Path
    run: Run
    checkpoint: dict[str, Any]

    @classmethod
    def open(cls, target: "LoadedRun | Path | str") -> "LoadedRun":
        """Read a checkpoint.

        Args:
            target: a run's folder, whose best checkpoint is read, or the last one where nothing was validated; a
                checkpoint; pcam or pcam-small, which come with the package; or a run that is loaded already.

        Raises:
            UserError: see `read_checkpoint`.
        """
        if isinstance(target, LoadedRun):
            return target
        path = Path(target).expanduser()
        run = run_at(path)
        if not isinstance(run, BundledRun):
            folder = run.checkpoint.is_file()
            path = run.checkpoint if folder else path
            run = run if folder else run_of(path)
        return cls(str(target), path, run, read_checkpoint(path))

    @property
    def bundled(self) -> bool:
        """Whether the network comes with the package."""
        return isinstance(self.run, BundledRun)

    @property
    def config(self) -> dict[str, Any]:
        """All options of the run, as its config.yaml has them."""
        config: dict[str, Any] = self.checkpoint["pcam"]["config"]
        return config

    @property
    def step(self) -> int:
        """Steps of training."""
        return int(self.checkpoint["global_step"])

    @cached_property
    def trained(self) -> TrainingPatches:
        """The patches that trained the network."""
        return TrainingPatches.of_checkpoint(self.checkpoint)

    def inference_config(self) -> dict[str, Any]:
        """Return the options that count beyond training.

        A stranger's checkpoint may hold others, callbacks with a class of their choice for one: these are left out.
        """
        return {
            "import": self.config.get("import", []),
            "seed_everything": self.config["seed_everything"],
            "data": self.config["data"],
            # To compile pays in training at most, and needs a compiler that the machine which predicts may not have.
            "model": {**self.config["model"], "compile": False},
            "trainer": {"precision": self.config["trainer"]["precision"]},
        }

    def load_into(self, model: PCamClassifier) -> PCamClassifier:
        """Load the weights into a network of the run's options, and return it.

        Raises:
            UserError: the checkpoint is damaged.
        """
        with self._reports_damage():
            model.on_load_checkpoint(self.checkpoint)
            model.load_state_dict(self.checkpoint["state_dict"])
        return model

    def classifier(self, tta: str | None = None) -> PCamClassifier:
        """Build the network, on the CPU.

        Args:
            tta: test-time augmentation, `none` or `d4`; by default that of the run.

        Raises:
            UserError: the checkpoint is damaged.
        """
        with self._reports_damage():
            options = {**self.config["model"], "weights": "none", "compile": False}
            model = PCamClassifier(**{**options, "tta": tta or options.get("tta", "none")})
        return self.load_into(model)

    @contextmanager
    def _reports_damage(self) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{self.path}: damaged, or of another version of this project ({error}).") from None


def load_pretrained(checkpoint: Path | str, tta: str | None = None) -> PCamClassifier:
    """Load a trained network, ready to predict.

    Args:
        checkpoint: pcam or pcam-small, which come with the package, or the path of a run or a checkpoint.
        tta: test-time augmentation, `none` or `d4`; by default that of its run.

    Returns:
        The network on the CPU, in evaluation mode; `predict_logits` maps uint8 patches to logits.

    Raises:
        UserError: missing, damaged, or not of this project.
    """
    return LoadedRun.open(checkpoint).classifier(tta).eval()
