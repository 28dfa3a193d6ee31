"""crossval: each fold an ordinary run; out-of-fold predictions, their scores, and a submission that averages."""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pcam_lightning.checkpoint import read_checkpoint
from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, say, warn
from pcam_lightning.official import has_part, is_official
from pcam_lightning.parser import PCamCLI
from pcam_lightning.predictions import write_submission
from pcam_lightning.run import Run
from pcam_lightning.scores import auroc


def crossval(args: list[str], config: dict[str, Any], runs: Path) -> None:
    """Train on all folds but one, for each in turn; write out-of-fold predictions and the folds' mean submission.

    All of it lies in `runs/crossval_N/`: `fold_I/`, each an ordinary run, `oof.csv` (id,label,logit,fold and, where
    known, slide), `crossval.json`, and `submission.csv` where there is a test part. The same command goes on where an
    earlier one was stopped.

    Args:
        args: flags of `fit`, and `--folds`.
        config: what they come to.
        runs: the folder of the config's runs.
    """
    flags = ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--folds")
    rest = flags.parse_known_args(args)[1]
    folds = config["folds"]
    if folds < 2:
        raise UserError(f"--folds {folds}: should be at least 2, such as 5.")
    if config["data"]["split_file"] is not None:
        raise UserError("crossval draws its own folds: leave --data.split_file out.")
    if config["trainer"]["fast_dev_run"] or config["trainer"]["limit_val_batches"] not in (None, 1.0):
        raise UserError("crossval validates whole folds: leave --trainer.fast_dev_run and limit_val_batches out.")
    if str(config["trainer"]["devices"]) != "1":
        raise UserError("crossval trains on one device; fit --data.folds K --data.fold I trains one fold on several.")
    folder = _folder(runs, config)
    record = json.loads((folder / "crossval.json").read_text(encoding="utf-8"))
    for fold in range(folds):
        run = Run(folder / f"fold_{fold}")
        say(f"\nfold {fold + 1} of {folds}: {run.folder}")
        if fold not in record["fitted"]:
            if _epochs(run) < (config["trainer"]["max_epochs"] or np.inf):
                PCamCLI(["fit", *rest, f"--data.folds={folds}", f"--data.fold={fold}"], run=run)
            # What somebody had this fold say before it was done would be taken for its last word.
            for early in (run.predictions("val"), run.submission, run.submission.with_name("predictions.csv")):
                early.unlink(missing_ok=True)
            record["fitted"].append(fold)
            _write_record(folder, record)
        # Not the best epoch's: it was chosen by the very patches that it is to be judged on.
        ran = ["--ckpt_path", str(run.last), f"--trainer.accelerator={config['trainer']['accelerator']}"]
        if not run.predictions("val").is_file():
            PCamCLI(["validate", *ran])
        if _has_test(run) and not run.submission.is_file():
            PCamCLI(["predict", *ran])
    _sum_up(folder, record, folds)


def _folder(runs: Path, config: dict[str, Any]) -> Path:
    """Return the folder of the newest cross-validation with this very configuration, or a new one."""
    numbers = sorted(int(path.name[9:]) for path in runs.glob("crossval_*") if path.name[9:].isdecimal())
    for number in reversed(numbers):
        folder = runs / f"crossval_{number}"
        try:
            if json.loads((folder / "crossval.json").read_text(encoding="utf-8"))["config"] == config:
                return folder
        except (OSError, ValueError, KeyError):
            warn(f"{folder}: no crossval.json to go on from; left alone.")
        else:
            if not (folder / "oof.csv").is_file():
                say(f"{folder} is not finished, and of another configuration; left alone.")
    folder = runs / f"crossval_{numbers[-1] + 1 if numbers else 0}"
    folder.mkdir(parents=True, exist_ok=True)
    _write_record(folder, {"config": config, "fitted": []})
    return folder


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_whole(folder / "crossval.json", json.dumps(record, indent=2) + "\n")


def _epochs(run: Run) -> int:
    """Return the whole epochs that a run has had."""
    if not run.last.is_file():
        return 0
    checkpoint = read_checkpoint(run.last)
    return checkpoint["epoch"] + 1 if checkpoint["global_step"] else 0


def _has_test(run: Run) -> bool:
    root = Path(read_checkpoint(run.last)["pcam"]["data"]["root"])
    return (root / "test").is_dir() or (is_official(root) and has_part(root, "test"))


def _sum_up(folder: Path, record: dict[str, Any], folds: int) -> None:
    runs = [Run(folder / f"fold_{fold}") for fold in range(folds)]
    parts = [
        pd.read_csv(run.predictions("val"), dtype={"id": str}, keep_default_na=False).assign(fold=fold)
        for fold, run in enumerate(runs)
    ]
    oof = pd.concat(parts).sort_values("id", ignore_index=True)
    if oof["id"].duplicated().any():
        raise UserError(f"{folder}: the folds share patches: the data changed in between; remove the folder.")
    write_whole(folder / "oof.csv", oof.to_csv(index=False, lineterminator="\n"))
    scores = [auroc(part["label"].to_numpy(), part["logit"].to_numpy()) for part in parts]
    record |= {
        "val/auroc": scores,
        "mean": float(np.mean(scores)),
        "sd": float(np.std(scores, ddof=1)),
        "oof/auroc": auroc(oof["label"].to_numpy(), oof["logit"].to_numpy()),
    }
    _write_record(folder, record)
    say(f"\n{folder / 'oof.csv'}: {len(oof):,} patches, each predicted by the fold that had not seen it.")
    told = ", ".join(f"{score:.4f}" for score in scores)
    say(f"val/auroc {told}: mean {record['mean']:.4f}, sd {record['sd']:.4f}; all together {record['oof/auroc']:.4f}.")
    if all(run.submission.is_file() for run in runs):
        each = [pd.read_csv(run.submission.with_name("predictions.csv"), dtype={"id": str}) for run in runs]
        logit = pd.concat([one.set_index("id")["logit"] for one in each], axis=1).mean(axis=1)
        write_submission(folder / "submission.csv", each[0]["id"], logit, overwrite=True)
