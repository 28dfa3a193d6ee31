"""The folder of a run: its files, and how it is created and found."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pcam_lightning.utils.bundled import bundled_file
from pcam_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Run:
    """One run's folder, `lightning_logs/<name>/version_N`."""

    folder: Path

    @property
    def config(self) -> Path:
        """The whole configuration, as it was run."""
        return self.folder / "config.yaml"

    @property
    def split(self) -> Path:
        """Which patches trained and which validated: id,split."""
        return self.folder / "split.csv"

    @property
    def metrics(self) -> Path:
        """A row an epoch."""
        return self.folder / "metrics.csv"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch with the highest val/auroc."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        """The checkpoint of the last whole epoch, or of the start."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint, or the last one where nothing was validated."""
        return self.best if self.best.is_file() else self.last

    def predictions(self, part: str) -> Path:
        """Predictions for the labeled patches of `val` or `test`: id,label,logit and, where known, slide."""
        return self.folder / f"{part}_predictions.csv"

    @property
    def diverged(self) -> Path:
        """The patches of the step that stopped a run because its loss was NaN or infinite: id."""
        return self.folder / "diverged.csv"

    @property
    def submission(self) -> Path:
        """The Kaggle submission: id,label."""
        return self.folder / "submission.csv"


@dataclass(frozen=True)
class BundledRun(Run):
    """Where results of a network that comes with the package go: `lightning_logs/<its name>` in the working folder.

    Args:
        file: of its weights, which no run of this machine has made.
    """

    file: Path

    @property
    def last(self) -> Path:
        """The file of its weights."""
        return self.file

    @property
    def checkpoint(self) -> Path:
        """The file of its weights."""
        return self.file


def run_at(target: Path | str) -> Run:
    """Return the run whose folder is named, or that of a network that comes with the package."""
    file = bundled_file(target)
    return Run(Path(target)) if file is None else BundledRun(Path("lightning_logs") / file.stem, file)


def create_run(runs: Path, kind: str = "version") -> Run:
    """Make the next free `<kind>_N`, with `checkpoints/` in it; of several processes each gets its own.

    Raises:
        UserError: the folder cannot be written.
    """
    run = Run(create_numbered_folder(runs, kind))
    run.best.parent.mkdir()
    return run


def create_numbered_folder(runs: Path, kind: str) -> Path:
    """Make the next free `<kind>_N`; of several processes each gets its own.

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
            f"{runs}: cannot be made or written ({error.strerror}); runs go below `trainer.default_root_dir`."
        ) from None


def numbered_folders(runs: Path, kind: str) -> list[Path]:
    """Return the folders `<kind>_N`, the newest first."""
    found = [path for path in runs.glob(f"{kind}_*") if _number(path, kind) >= 0]
    return sorted(found, key=lambda path: _number(path, kind), reverse=True)


def newest_run(runs: Path) -> Run:
    """Return the run with the highest version that has a `last.ckpt`.

    Raises:
        UserError: there is none.
    """
    for folder in numbered_folders(runs, "version"):
        if Run(folder).last.is_file():
            return Run(folder)
    raise UserError(f"{runs}: no run with a last.ckpt to resume; start one without `ckpt_path`.")


def run_of(checkpoint: Path) -> Run:
    """Return the run that a checkpoint lies in; of one that was moved away, the folder it lies in counts as the run."""
    bundled = run_at(checkpoint)
    if isinstance(bundled, BundledRun):
        return bundled
    folder = checkpoint.absolute().parent
    inside = folder.name == "checkpoints" and Run(folder.parent).config.is_file()
    return Run(folder.parent if inside else folder)


def run_to_resume(checkpoint: Path | str) -> Run | None:
    """Return the run that a checkpoint is the last.ckpt of; None of any other checkpoint."""
    run = run_of(Path(checkpoint))
    return run if run.last == Path(checkpoint).absolute() else None


def shown(path: Path) -> Path:
    """Return a path as a message shows it: relative where it is below the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written before there is anything to write; it is made where it is missing.

    Raises:
        UserError: it cannot.
    """
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written, and results go there; copy the checkpoint elsewhere.")


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
