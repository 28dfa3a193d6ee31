"""Checkpoint files: how they are written and read, and the network and options in them."""

import io
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from pcam_lightning import __version__
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.lightning_internals import LAUNCHER_CHECKPOINT
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.bundled import BUNDLED, bundled_file
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.extensions import import_modules
from pcam_lightning.utils.run_dir import Run
from pcam_lightning.utils.safe_load import safe_load

FORMAT = 3  # of what a checkpoint records of its run; another one is refused


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads tensors and plain values only.

    Lightning's own writer goes through a temporary file in the system's folder: moved across file systems, that is a
    copy, and a copy can stop half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint under a temporary name, then rename it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # of a callback of the user's own
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        atomic_write(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of this project, see `read_checkpoint`, or the weights that started processes leave."""
        if Path(path).name == LAUNCHER_CHECKPOINT:
            state: dict[str, Any] = safe_load(Path(path))
            return state
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project, tensors on the CPU, and import the modules that its run did.

    Args:
        path: of a checkpoint, or of weights that `write_weights` wrote, or the name of a network that comes with the
            package: pcam or pcam-small.

    Raises:
        UserError: missing, damaged, or not one of ours; a pickle that would run code is not read. Or a module of its
            run's `import` is not here.
    """
    path = bundled_file(path) or path
    if found := next((one for one in (Run(path).best, Run(path).last) if one.is_file()), None):
        raise UserError(f"{path}: the folder of a run, and no checkpoint; {found} is one.")
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint; runs keep theirs in lightning_logs/NAME/version_N/checkpoints/, and "
            f"{' and '.join(BUNDLED)} come with this package."
        )
    try:
        checkpoint = safe_load(path)
    except ValueError as error:
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({error}).") from None
    record = checkpoint.get("pcam") if isinstance(checkpoint, dict) else None
    if not (isinstance(record, dict) and {"config", "data", "split"} <= set(record) and "state_dict" in checkpoint):
        raise UserError(f"{path}: not a checkpoint of this project; weights from elsewhere go to fit `model.weights`.")
    if (found := record.get("format")) != FORMAT:
        raise UserError(
            f"{path}: written by pcam_lightning {record.get('version')} in format {found}, and this version, "
            f"{__version__}, reads format {FORMAT}; install the version that wrote it."
        )
    if not isinstance(record["config"], dict):
        raise UserError(f"{path}: damaged (its record of the run has no options).")
    modules = record["config"].get("import", [])
    if isinstance(modules, list) and (new := [str(name) for name in modules if name not in sys.modules]):
        rank_zero_info(f"{path}: its run imported {', '.join(new)}, which is imported now.")
    import_modules(modules)
    read: dict[str, Any] = checkpoint
    return read


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return the whole epochs that a checkpoint's run has had."""
    return int(checkpoint["epoch"]) + 1 if checkpoint["global_step"] else 0


def is_finished(checkpoint: dict[str, Any], max_epochs: int | None, max_steps: int) -> bool:
    """Return whether a checkpoint's run has had all epochs or steps, -1 for no limit."""
    return 0 < (max_epochs or -1) <= epochs_done(checkpoint) or 0 < max_steps <= checkpoint["global_step"]


def run_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a checkpoint's run that count beyond training.

    A stranger's checkpoint may hold others, callbacks with a class of their choice for one: these are left out.
    """
    config = checkpoint["pcam"]["config"]
    return {
        "import": config.get("import", []),
        "seed_everything": config["seed_everything"],
        "data": config["data"],
        # To compile pays in training at most, and needs a compiler that the machine which predicts may not have.
        "model": {**config["model"], "compile": False},
        "trainer": {"precision": config["trainer"]["precision"]},
    }


def load_classifier(path: Path, checkpoint: dict[str, Any], tta: str | None) -> PCamClassifier:
    """Build the network of a checkpoint of this project.

    Args:
        path: of the checkpoint.
        checkpoint: what `read_checkpoint` returns.
        tta: test-time augmentation; by default what its run had.

    Raises:
        UserError: it is damaged.
    """
    try:
        options = {**checkpoint["pcam"]["config"]["model"], "weights": "none", "compile": False}
        model = PCamClassifier(**{**options, "tta": tta or options.get("tta", "none")})
        model.on_load_checkpoint(checkpoint)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: damaged, or of another version of this project ({error}).") from None
    model.load_state_dict(checkpoint["state_dict"])
    return model


def load_pretrained(checkpoint: Path | str, tta: str | None = None) -> PCamClassifier:
    """Load a trained network, ready to predict.

    Args:
        checkpoint: pcam or pcam-small, which come with the package, or the path of a checkpoint of this project.
        tta: test-time augmentation, `none` or `d4`; by default what its run had.

    Returns:
        The network on the CPU, in evaluation mode; `predict_logits` maps uint8 patches to logits.

    Raises:
        UserError: missing, damaged, or not of this project.
    """
    path = Path(checkpoint).expanduser()
    return load_classifier(path, read_checkpoint(path), tta).eval()
