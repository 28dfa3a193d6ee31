"""curves: plot loss and AUROC of one or more runs."""

from pathlib import Path

import pandas as pd

from pcam_lightning.plotting.plots import best_epoch, learning_curves
from pcam_lightning.plotting.style import as_png
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import Run


def curves(runs: list[Path], output: Path | None = None) -> None:
    """Plot training and validation loss and AUROC by epoch, and mark the best epoch.

    Args:
        runs: folders of runs or cross-validations; for a cross-validation, all folds are plotted.
        output: image file; by default curves.png in the run, or in the working folder for several runs.
    """
    found = [Run(path) for run in runs for path in (sorted(run.glob("fold_*")) or [run])]
    names = [f"{run.folder.absolute().parent.name}/{run.folder.name}" for run in found]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in found]
    if len(set(names)) < len(names):
        raise UserError("curves: a run is listed twice.")
    rows = {name: _read(run.metrics) for name, run in zip(names, found, strict=True)}
    output = output or (runs[0] / "curves.png" if len(runs) == 1 else Path("curves.png"))
    if not output.absolute().parent.is_dir():
        raise UserError(f"`output` {output}: the folder does not exist.")
    atomic_write(output, as_png(learning_curves(rows)))
    for name, of_run in rows.items():
        if "val/auroc" in of_run and of_run["val/auroc"].notna().any():
            best = best_epoch(of_run)
            rank_zero_info(f"{name}: best epoch {best['epoch']:.0f}, val/auroc {best['val/auroc']:.4f}.")
    rank_zero_info(f"{output}: {len(rows)} {'run' if len(rows) == 1 else 'runs'}.")


def _read(file: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(file)
        rows[["epoch", "train/loss"]].astype(float)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); curves needs run folders.") from None
    except (ValueError, KeyError, UnicodeDecodeError):  # pandas errors are ValueErrors
        raise UserError(f"{file}: not the metrics of a run: columns epoch and train/loss are needed.") from None
    if rows.empty:
        raise UserError(f"{file}: contains no epoch yet.")
    return rows
