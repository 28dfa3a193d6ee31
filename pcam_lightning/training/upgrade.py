"""Checkpoints and configs of earlier versions -> the names that this version uses."""

from pathlib import Path
from typing import Any

import yaml

# Of format 1, which is that of version 0.1.0.
_CLASSES = {
    "pcam_lightning.averaging.Averaging": "pcam_lightning.training.weight_averaging.ExponentialMovingAverage",
}
_STATE_KEYS = {
    "KeepCheckpoints": "BestAndLastCheckpoint",
    "MetricsFile": "MetricsCSV",
    "Averaging": "ExponentialMovingAverage",
}
_AUGMENT = {"quarter_turns": "d4", "erase": "random_erasing"}
_TENSORS = {"preprocess.deviation": "preprocess.std"}


def upgrade_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Rename what a checkpoint of an earlier version holds, in place; `pcam.format` tells its version.

    Args:
        checkpoint: with `pcam`, its record of the run.
    """
    record = checkpoint["pcam"]
    if record.get("format", 1) > 1:
        return
    record["config"] = upgrade_config(record["config"])
    checkpoint["init_weights"] = checkpoint.pop("started_from", "none")
    for key in ("state_dict", "current_model_state"):  # the second beside averaged weights
        if key in checkpoint:
            checkpoint[key] = {_TENSORS.get(name, name): value for name, value in checkpoint[key].items()}
    states = checkpoint.get("callbacks", {})
    checkpoint["callbacks"] = {_STATE_KEYS.get(name, name): state for name, state in states.items()}
    record["format"] = 2


def read_config(path: Path) -> Any:
    """Read a run's config.yaml, under the names of this version.

    Raises:
        OSError, yaml.YAMLError, UnicodeDecodeError: it cannot be read.
        AttributeError: it holds no mappings.
    """
    return upgrade_config(yaml.safe_load(path.read_text(encoding="utf-8")))


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's options under the names of this version; those of this version stay as they are."""
    upgraded: dict[str, Any] = _rename_classes(config)
    augment = upgraded.get("model", {}).get("augment")
    if isinstance(augment, dict):
        upgraded["model"]["augment"] = {_AUGMENT.get(name, name): value for name, value in augment.items()}
    if upgraded.get("data", {}).get("unknown_slides") == "group":
        upgraded["data"]["unknown_slides"] = "as_one_slide"
    return upgraded


def _rename_classes(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rename_classes(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rename_classes(each) for each in value]
    return _CLASSES.get(value, value) if isinstance(value, str) else value
