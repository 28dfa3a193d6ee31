"""Run folders: their files, creation and lookup."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pcam_lightning.utils.bundled import bundled_file
from pcam_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Run:
    """The folder of a run, `lightning_logs/<name>/version_N`."""

    folder: Path

    @property
    def config(self) -> Path:
        """The complete configuration of the run."""
        return self.folder / "config.yaml"

    @property
    def split(self) -> Path:
        """The split of each patch: id,split."""
        return self.folder / "split.csv"

    @property
    def metrics(self) -> Path:
        """Metrics, one row per epoch."""
        return self.folder / "metrics.csv"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch with the highest val/auroc."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        """The checkpoint of the last completed epoch, or of the start."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint, or the last one if the run was not validated."""
        return self.best if self.best.is_file() else self.last

    def predictions(self, part: str) -> Path:
        """Predictions for the labeled patches of `val` or `test`: id,label,logit and, if known, slide."""
        return self.folder / f"{part}_predictions.csv"

    @property
    def diverged(self) -> Path:
        """Patches of the step whose NaN or infinite loss stopped the run: id."""
        return self.folder / "diverged.csv"

    @property
    def submission(self) -> Path:
        """The Kaggle submission: id,label."""
        return self.folder / "submission.csv"


@dataclass(frozen=True)
class BundledRun(Run):
    """The result folder of a network included in the package, `lightning_logs/<name>` in the working folder.

    Args:
        file: weights file in the package.
    """

    file: Path

    @property
    def last(self) -> Path:
        """The weights file."""
        return self.file

    @property
    def checkpoint(self) -> Path:
        """The weights file."""
        return self.file


def run_at(target: Path | str) -> Run:
    """Return the run of a folder, or that of a network included in the package."""
    file = bundled_file(target)
    return Run(Path(target)) if file is None else BundledRun(Path("lightning_logs") / file.stem, file)


def create_run(runs: Path, kind: str = "version") -> Run:
    """Create the next free folder `<kind>_N` with `checkpoints/`; concurrent processes get different folders.

    Raises:
        UserError: the folder cannot be written.
    """
    run = Run(create_numbered_folder(runs, kind))
    run.best.parent.mkdir()
    return run


def create_numbered_folder(runs: Path, kind: str) -> Path:
    """Create the next free folder `<kind>_N`; concurrent processes get different folders.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
        number = max((_number(path, kind) for path in runs.iterdir()), default=-1) + 1
        while True:
            folder = runs / f"{kind}_{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder
    except OSError as error:
        raise UserError(
            f"{runs}: cannot be created or written ({error.strerror}); set `trainer.default_root_dir` to another one."
        ) from None


def numbered_folders(runs: Path, kind: str) -> list[Path]:
    """Return the folders `<kind>_N`, newest first."""
    found = [path for path in runs.glob(f"{kind}_*") if _number(path, kind) >= 0]
    return sorted(found, key=lambda path: _number(path, kind), reverse=True)


def newest_run(runs: Path) -> Run:
    """Return the run with the highest version that has a `last.ckpt`.

    Raises:
        UserError: no run has a `last.ckpt`.
    """
    for folder in numbered_folders(runs, "version"):
        if Run(folder).last.is_file():
            return Run(folder)
    raise UserError(f"{runs}: no run with a last.ckpt to resume; start one without `ckpt_path`.")


def run_of(checkpoint: Path) -> Run:
    """Return the run that contains a checkpoint; outside a run, its folder is used as the run."""
    bundled = run_at(checkpoint)
    if isinstance(bundled, BundledRun):
        return bundled
    folder = checkpoint.absolute().parent
    inside = folder.name == "checkpoints" and Run(folder.parent).config.is_file()
    return Run(folder.parent if inside else folder)


def run_to_resume(checkpoint: Path | str) -> Run | None:
    """Return the run whose last.ckpt is this checkpoint, or None."""
    run = run_of(Path(checkpoint))
    return run if run.last == Path(checkpoint).absolute() else None


def shown(path: Path) -> Path:
    """Return a path for a message, relative if it is below the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def check_writable(folder: Path) -> None:
    """Create a folder if needed and check that it is writable.

    Raises:
        UserError: the folder cannot be written.
    """
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: the result folder cannot be written; copy the checkpoint to another folder.")


def check_output(folder: Path) -> None:
    """Refuse an output folder that cannot be written; it is made where it is missing.

    Raises:
        UserError: it cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        check_writable(folder)
    except UserError:
        raise UserError(f"`output` {folder}: cannot be written.") from None


def _number(path: Path, kind: str) -> int:
    number = path.name.removeprefix(f"{kind}_")
    return int(number) if number.isdecimal() and path.name.startswith(f"{kind}_") else -1
