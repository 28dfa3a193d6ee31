"""Runs and cross-validations of one recipe and data: how their splits differ, and their scores."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pcam_lightning.data.datamodule import SPLIT_OPTIONS
from pcam_lightning.data.sources import source_of

# Options of the trainer that a network depends on.
_TRAINING = (
    *("max_epochs", "max_steps", "limit_train_batches", "precision", "callbacks"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
)


def related_runs(folder: Path) -> list[dict[str, Any]]:
    """List the runs and cross-validations that differ from one in their split and seed alone, and that one.

    Args:
        folder: of a run or a cross-validation; others are looked for in the same lightning_logs/.

    Returns:
        For each: `run`, `split`, `val` (AUROC; of a run the best epoch's, of a cross-validation the mean of its folds'
        last epochs) and `test`, None where it is not known. Empty where the folder tells nothing of its recipe, and for
        a single fold of a cross-validation.
    """
    if (own := _recipe(folder)) is None:
        return []
    logs = folder.absolute().parent.parent
    if (folder / "probe.csv").is_file():  # what a recipe scores in fit is no score of a probe
        found = list(logs.glob("*/probe_*/config.yaml"))
    else:
        found = [*logs.glob("*/version_*/config.yaml"), *logs.glob("*/crossval_*/crossval.json")]
    return [_tell(file.parent) for file in sorted(found) if _recipe(file.parent) == own]


def _tell(folder: Path) -> dict[str, Any]:
    data = _options(folder)["data"]
    split = _kind(data)
    if data.get("folds"):
        of_all = (folder / "crossval.json").is_file()
        split += f", {data['folds']} folds" if of_all else f", fold {data['fold'] + 1} of {data['folds']}"
    scores, test = _read(folder / "crossval.json"), _read(folder / "test.json")
    try:
        metrics = pd.read_csv(folder / "metrics.csv")
        scores.setdefault("mean", float(metrics["val/auroc"].max()))
        best = metrics["step"][metrics["val/auroc"] == metrics["val/auroc"].max()].iloc[0]
        own = test.get("root") == data["root"] and test.get("step") == int(best)
    except (OSError, ValueError, KeyError, IndexError):
        scores.setdefault("mean", None)
        own = False
    return {
        "run": f"{folder.parent.name}/{folder.name}",
        "split": split,
        "val": scores["mean"],
        "test": test.get("test/auroc") if own else None,
    }


def _read(file: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing where it is not there, or not one of ours."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _options(folder: Path) -> dict[str, Any]:
    """Return the options of a run, or of a cross-validation's first fold."""
    folder = folder / "fold_0" if (folder / "crossval.json").is_file() else folder
    options: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return options


def _recipe(folder: Path) -> dict[str, Any] | None:
    """Return a run's options but for those that choose its split and its seed; None of a folder of another kind."""
    try:
        options = _options(folder)
        apart = (*SPLIT_OPTIONS, "cache_dir", "num_workers", "verify")
        return {
            "model": options["model"],
            "data": {name: value for name, value in options["data"].items() if name not in apart and value is not None},
            **{name: options["trainer"][name] for name in _TRAINING},
        }
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return None


def _kind(data: dict[str, Any]) -> str:
    if data.get("split_file"):
        return f"as {data['split_file']}"
    if data.get("holdout"):
        return f"by {data['holdout']}, held out whole"
    source = source_of(Path(data["root"]), data.get("columns"))
    if source.own_split is not None:
        if not data.get("folds"):
            return source.own_split
        return "whole slides" if source.knows_slides() else "random"
    return "random" if data.get("slides") is None else "whole slides"
