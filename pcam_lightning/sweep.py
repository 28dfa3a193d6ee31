"""Sweeps: commands that run fit several times, in a folder that the same command goes on with."""

import hashlib
import json
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import filelock
import yaml

from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, say, warn
from pcam_lightning.run import claim_folder, folders
from pcam_lightning.split import split_digest

FIRST = "fold_0", "rows/base"  # the folder of a sweep's first run


def check(config: dict[str, Any], name: str) -> None:
    """Refuse options of fit that no sweep goes with.

    Raises:
        UserError: there is one.
    """
    trainer = config["trainer"]
    for wrong, told in (
        (config["ckpt_path"] is not None, f"{name} takes no --ckpt_path: the same command goes on where it was."),
        (
            trainer["fast_dev_run"] or trainer["limit_val_batches"] is not None,
            f"{name} validates on all it holds out: leave --trainer.fast_dev_run and --trainer.limit_val_batches out.",
        ),
        (str(trainer["devices"]) != "1", f"{name} trains on one device; fit trains one run on several."),
    ):
        if wrong:
            raise UserError(told)


def open_data(options: dict[str, Any], **more: Any) -> PCamDataModule:
    """Return the data of plain options; nothing is read yet."""
    paths = ("root", "cache_dir", "slides", "split_file")
    given = {name: Path(options[name]) for name in paths if options[name] is not None}
    return PCamDataModule(**{**options, **given, **more})


def fingerprint(data: PCamDataModule) -> dict[str, str]:
    """Return what a sweep's data must have in common with an earlier one's to go on with it."""
    assert data.table is not None
    assert data.val_mask is not None
    assert data.train_store is not None
    slides = data.table[[name for name in ("id", "slide") if name in data.table]]
    return {
        "data": data.train_store.fingerprint,
        "labels": split_digest(data.table, data.table["label"].to_numpy(dtype=bool)),
        "split": split_digest(data.table, data.val_mask),
        "slides": hashlib.sha256(slides.to_csv(index=False).encode()).hexdigest(),
    }


def claim(runs: Path, kind: str, identity: dict[str, Any], result: str, stack: ExitStack) -> Path:
    """Return the folder of the newest sweep of the same identity, or a new one; hold its lock.

    A new one goes away again with the stack where nothing was trained in it.

    Args:
        runs: the folder of the config's runs.
        kind: of sweep: its folders are `<kind>_N`, and its record is `<kind>.json`.
        identity: what it has in common with an earlier one to go on with, `config` for one.
        result: the file that a finished one has.
        stack: that holds the lock.
    """
    for folder in folders(runs, kind):
        try:
            of = read_record(folder, kind)["of"]
            same = json.dumps(of) == json.dumps(identity)  # 1 and 1.0 are one batch and all of them
        except (OSError, ValueError, KeyError, TypeError):
            warn(f"{folder}: no {kind}.json to go on from; left alone.")
            continue
        if same:
            _lock(folder, stack)
            return folder
        if not (folder / result).is_file():
            say(f"{folder} is not finished, and of other options or data; left alone.")
    folder = claim_folder(runs, kind)
    stack.callback(_take_away, folder)
    _lock(folder, stack)
    write_whole(folder / "config.yaml", yaml.safe_dump(identity["config"], sort_keys=False))
    write_record(folder, kind, {"of": identity})
    return folder


def _take_away(folder: Path) -> None:
    """Remove a folder in which nothing was trained, and the one around it where it is empty."""
    if not any((folder / name).exists() for name in FIRST):
        shutil.rmtree(folder)
        with suppress(OSError):
            folder.parent.rmdir()


def _lock(folder: Path, stack: ExitStack) -> None:
    try:
        stack.enter_context(filelock.FileLock(folder / ".lock", timeout=0))
    except filelock.Timeout:
        raise UserError(f"{folder}: another process is at work on it; let it finish, or stop it first.") from None


def read_record(folder: Path, kind: str) -> dict[str, Any]:
    """Read what a sweep has done so far."""
    record: dict[str, Any] = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
    return record


def write_record(folder: Path, kind: str, record: dict[str, Any]) -> None:
    """Write what a sweep has done so far."""
    write_whole(folder / f"{kind}.json", json.dumps(record, indent=2) + "\n")
