"""fit: check the options, the data and the weights in turn, claim a run folder, train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.training.demo_run import draw_demo_data
from pcam_lightning.training.fit_session import FitSession
from pcam_lightning.training.lightning_internals import keyboard_interrupt
from pcam_lightning.training.options import Config
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import Run, run_to_resume, shown
from pcam_lightning.utils.system import compile_errors, quiet_lightning


@dataclass(frozen=True)
class FitResult:
    """The result of a run; its paths are absolute.

    Attributes:
        run: its folder; None of a `fast_dev_run`, which keeps nothing.
        metrics: a row an epoch, as in metrics.csv.
        best_epoch: the epoch with the highest val/auroc, counted from 1; None where nothing was validated.
        best_score: its val/auroc.
        checkpoint: of that epoch, or of the last one where nothing was validated.
        demo: whether it was a demo run on synthetic tissue, because there were no data.
    """

    run: Run | None
    metrics: pd.DataFrame
    best_epoch: int | None = None
    best_score: float | None = None
    checkpoint: Path | None = None
    demo: bool = False


@quiet_lightning()
def fit(
    config: Config,
    *,
    run: Run | None = None,
    ckpt_path: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
    resume_with: Callable[[Run], str] | None = None,
) -> FitResult:
    """Train a network.

    Flags are checked before data, data before weights, and only then a folder is claimed for the run.

    Args:
        config: the options.
        run: where the run is kept; one that holds a last.ckpt is resumed. By default a new folder is claimed.
        ckpt_path: the last.ckpt of a run, which is resumed in its folder; or another checkpoint, from which a new run
            continues.
        callbacks: besides those of the options.
        resume_with: returns what resumes a run, for the message of one that is stopped; by default a call of `fit`.

    Returns:
        The run's folder, metrics and best epoch.

    Raises:
        UserError: an option, the data, the weights or a checkpoint cannot be used.
        LossDiverged: the loss is NaN or infinite.
        KeyboardInterrupt: the run was stopped; a message says how it is resumed.
    """
    if run is None and ckpt_path is not None:
        run = run_to_resume(Path(ckpt_path).expanduser())
    resumed = run if run is not None and run.last.is_file() else None
    if resumed is not None:
        ckpt_path = resumed.last
    checkpoint = None if ckpt_path is None else read_checkpoint(Path(ckpt_path))
    if checkpoint is not None and "optimizer_states" not in checkpoint:
        raise UserError(f"`ckpt_path` {ckpt_path}: weights alone, nothing to resume; `model.weights` starts from them.")
    config.resolve(checkpoint)
    if resumed is not None:
        rank_zero_info(f"resuming {shown(resumed.folder)}, on {config.options.data.root}")
    seed_everything(config.options.seed_everything, workers=True, verbose=False)
    session = FitSession(config, resumed, None if ckpt_path is None else Path(ckpt_path), checkpoint, callbacks)
    if session.demo:
        draw_demo_data()
    session.prepare()
    if not config.options.trainer.fast_dev_run:
        session.open_run(run)
        if session.run is not None:
            session.keep.resume_with = (resume_with or partial(_python_call, callbacks=bool(callbacks)))(session.run)
    with keyboard_interrupt(), compile_errors():
        session.trainer.fit(session.model, datamodule=session.data, ckpt_path=ckpt_path, weights_only=True)
    return _result(session)


def _python_call(run: Run, *, callbacks: bool) -> str:
    folder, more = run.folder.absolute(), ", callbacks=..." if callbacks else ""
    return f'fit(Config.load("{Run(folder).config}"), ckpt_path="{Run(folder).last}"{more})'


def _result(session: FitSession) -> FitResult:
    """Return what the run's files say: processes that the trainer started leave nothing of their own here."""
    if session.run is None:
        return FitResult(None, pd.DataFrame(session.metrics.rows), demo=session.demo)
    run = Run(session.run.folder.absolute())  # the program may go to another folder
    metrics = pd.read_csv(run.metrics)
    if "val/auroc" not in metrics or not metrics["val/auroc"].notna().any():
        return FitResult(run, metrics, checkpoint=run.last, demo=session.demo)
    best = metrics.iloc[int(metrics["val/auroc"].argmax())]
    return FitResult(run, metrics, int(best["epoch"]), float(best["val/auroc"]), run.best, session.demo)
