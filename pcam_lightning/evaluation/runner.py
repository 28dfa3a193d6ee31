"""Several runs in one folder, such as the folds of a cross-validation, which the same call resumes."""

import hashlib
import io
import json
import shutil
from contextlib import ExitStack, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import filelock
import yaml

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.splits import split_digest
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.options import Config
from pcam_lightning.training.run_record import data_record
from pcam_lightning.training.trainer import build_trainer
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.run_dir import create_numbered_folder, numbered_folders
from pcam_lightning.utils.system import quiet_lightning

FIRST = "fold_0", "rows/base"  # the folder of the first run


def check_options(config: Config, name: str) -> None:
    """Check for options of a run that cannot be repeated over folds or rows.

    Raises:
        UserError: there is one.
    """
    trainer = config.options.trainer
    for wrong, message in (
        (
            trainer.fast_dev_run or trainer.limit_val_batches is not None,
            f"{name} validates on all held-out patches: leave `trainer.fast_dev_run` and `trainer.limit_val_batches` "
            "out.",
        ),
        (str(trainer.devices) != "1", f"{name} trains on one device; fit trains one run on several."),
    ):
        if wrong:
            raise UserError(message)


@quiet_lightning()
def try_build(config: Config) -> PCamClassifier:
    """Build network and trainer without messages, to check the options; return the network.

    Raises:
        UserError: they are not.
    """
    with redirect_stderr(io.StringIO()):  # each run says the same again when its turn comes
        _, model, trainer = config.build()
        trainer.logger = False
        build_trainer(trainer, [], fits=True)
    return model


def fingerprint(data: PCamDataModule) -> dict[str, str]:
    """Return what the data must have in common with those of an earlier call, for it to be resumed."""
    slides = data.table[[name for name in ("id", "slide") if name in data.table]]
    record = data_record(data)
    more: dict[str, str] = {name: record[name] for name in ("extra_train", "extra_labels") if name in record}
    if "sample_weight" in data.table:
        more["weights"] = record["labels"]
    return {
        "data": data.train_store.fingerprint,
        "labels": split_digest(data.table, data.table["label"].to_numpy(dtype=bool)),
        "split": split_digest(data.table, data.val_mask),
        "slides": hashlib.sha256(slides.to_csv(index=False).encode()).hexdigest(),
        **more,
    }


def claim_folder(runs: Path, kind: str, identity: dict[str, Any], result: str, stack: ExitStack) -> Path:
    """Return the newest folder of the same identity, or a new one; hold its lock.

    A new one is removed with the stack where nothing was trained in it.

    Args:
        runs: the folder of the config's runs.
        kind: crossval or ablate: its folders are `<kind>_N`, and its record is `<kind>.json`.
        identity: what it must have in common with an earlier one to resume it, `config` for one.
        result: the file that a finished one has.
        stack: that holds the lock.
    """
    for folder in numbered_folders(runs, kind):
        try:
            recorded = read_record(folder, kind)["of"]
            same = json.dumps(recorded) == json.dumps(identity)  # 1 and 1.0 are one batch and all of them
        except (OSError, ValueError, KeyError, TypeError):
            rank_zero_warn(f"{folder}: no {kind}.json to resume from; left alone.")
            continue
        if same:
            _lock(folder, stack)
            return folder
        if not (folder / result).is_file():
            rank_zero_info(f"{folder} is not finished, and of other options or data; left alone.")
    folder = create_numbered_folder(runs, kind)
    stack.callback(_remove_empty, folder)
    _lock(folder, stack)
    atomic_write(folder / "config.yaml", yaml.safe_dump(identity["config"], sort_keys=False))
    write_record(folder, kind, {"of": identity})
    return folder


def _remove_empty(folder: Path) -> None:
    """Remove a folder in which nothing was trained, and the one around it where it is empty."""
    if not any((folder / name).exists() for name in FIRST):
        shutil.rmtree(folder)
        with suppress(OSError):
            folder.parent.rmdir()


def _lock(folder: Path, stack: ExitStack) -> None:
    try:
        stack.enter_context(filelock.FileLock(folder / ".lock", timeout=0))
    except filelock.Timeout:
        raise UserError(f"{folder}: another process is using it; let it finish, or stop it first.") from None


def read_record(folder: Path, kind: str) -> dict[str, Any]:
    """Read what has been done so far."""
    record: dict[str, Any] = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
    return record


def write_record(folder: Path, kind: str, record: dict[str, Any]) -> None:
    """Write what has been done so far."""
    atomic_write(folder / f"{kind}.json", json.dumps(record, indent=2) + "\n")
