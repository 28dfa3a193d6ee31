"""Folders with several runs, such as the folds of a cross-validation, and their resumption."""

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

FIRST = "fold_0", "rows/base"  # possible folders of the first run


def check_options(config: Config, name: str) -> None:
    """Check that the options of a run can be repeated over folds or rows.

    Raises:
        UserError: an option is not supported.
    """
    trainer = config.options.trainer
    for wrong, message in (
        (
            trainer.fast_dev_run or trainer.limit_val_batches is not None,
            f"{name} validates on all held-out patches: omit `trainer.fast_dev_run` and `trainer.limit_val_batches`.",
        ),
        (str(trainer.devices) != "1", f"{name} trains on one device: set `trainer.devices` to 1."),
    ):
        if wrong:
            raise UserError(message)


@quiet_lightning()
def try_build(config: Config) -> PCamClassifier:
    """Build network and trainer without messages to check the options; return the network.

    Raises:
        UserError: an option is invalid.
    """
    with redirect_stderr(io.StringIO()):  # each run prints the same messages later
        _, model, trainer = config.build()
        trainer.logger = False
        build_trainer(trainer, [], fits=True)
    return model


def fingerprint(data: PCamDataModule) -> dict[str, str]:
    """Return fingerprints of the data that must be unchanged to resume an earlier call."""
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
    """Return the newest folder with the same identity, or a new one, and lock it.

    The stack releases the lock. It also removes a new folder if no run was started.

    Args:
        runs: folder for the runs of the config.
        kind: crossval or ablate; folders are named `<kind>_N` and the record is `<kind>.json`.
        identity: values that must match an earlier call to resume it, including `config`.
        result: name of a file that exists in finished folders.
        stack: stack that holds the lock.
    """
    for folder in numbered_folders(runs, kind):
        try:
            recorded = read_record(folder, kind)["of"]
            same = json.dumps(recorded) == json.dumps(identity)  # distinguishes 1 (one batch) from 1.0 (all batches)
        except (OSError, ValueError, KeyError, TypeError):
            rank_zero_warn(f"{folder}: cannot be resumed without a valid {kind}.json; skipped.")
            continue
        if same:
            _lock(folder, stack)
            return folder
        if not (folder / result).is_file():
            rank_zero_info(f"{folder}: unfinished, but with other options or data; skipped.")
    folder = create_numbered_folder(runs, kind)
    stack.callback(_remove_empty, folder)
    _lock(folder, stack)
    atomic_write(folder / "config.yaml", yaml.safe_dump(identity["config"], sort_keys=False))
    write_record(folder, kind, {"of": identity})
    return folder


def _remove_empty(folder: Path) -> None:
    """Remove a folder without a run, and its parent folder if empty."""
    if not any((folder / name).exists() for name in FIRST):
        shutil.rmtree(folder)
        with suppress(OSError):
            folder.parent.rmdir()


def _lock(folder: Path, stack: ExitStack) -> None:
    try:
        stack.enter_context(filelock.FileLock(folder / ".lock", timeout=0))
    except filelock.Timeout:
        raise UserError(f"{folder}: in use by another process; wait until it ends, or stop it.") from None


def read_record(folder: Path, kind: str) -> dict[str, Any]:
    """Read the progress record of a folder."""
    record: dict[str, Any] = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
    return record


def write_record(folder: Path, kind: str, record: dict[str, Any]) -> None:
    """Write the progress record of a folder."""
    atomic_write(folder / f"{kind}.json", json.dumps(record, indent=2) + "\n")
