"""ablate: a recipe and changed ones, each with several seeds; what each change is worth."""

import hashlib
import io
import json
import re
import time
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pcam_lightning.data.datamodule import SPLIT_OPTIONS, PCamDataModule
from pcam_lightning.evaluation.runner import (
    check_options,
    claim_folder,
    fingerprint,
    read_record,
    try_build,
    write_record,
)
from pcam_lightning.models.backbones import build_backbone
from pcam_lightning.models.pretrained import WeightsUnavailable, load_weights
from pcam_lightning.training.checkpoint import is_finished, read_checkpoint
from pcam_lightning.training.demo_run import draw_demo_data, is_demo_folder
from pcam_lightning.training.fit import fit
from pcam_lightning.training.nan_guard import LossDiverged
from pcam_lightning.training.options import Config
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import Run

KIND, BASE, ROWS = "ablate", "base", "rows"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,+=_-]{0,79}")


def ablate(config: Config, ablations: Path, seeds: int = 3) -> Path:
    """Train a recipe and changed ones, each with several seeds; tabulate what each change is worth.

    All of it lies in `ablate_N/` below `config.runs`: `config.yaml`, `rows/<row>-<digest>.yaml`,
    `rows/<row>-<digest>/seed_S/`, each an ordinary run, `ablate.csv` (row,seed,val/auroc,seconds) and `table.md`. A
    run's score is its last epoch's, so that the choice of an epoch does not make it optimistic. A seed is that of the
    split too, the same for all rows, so that differences are paired. The same call resumes where an earlier one was
    stopped, and rows can be added meanwhile.

    Args:
        config: options of a run: the base.
        ablations: YAML with the changed options of each row, by its name.
        seeds: how many, counted from the base's.

    Returns:
        The folder.

    Raises:
        UserError: an option of the base or of a row, the data or the weights cannot be used.
    """
    check_options(config, KIND)
    rows = {BASE: {}, **_read(ablations)}
    config.resolve(what=KIND)
    demo = is_demo_folder(config.options.data.root)
    starts: dict[tuple[str, str, int], str] = {}  # the first row that has each
    for row, changes in rows.items():
        starts.setdefault(_try(config, changes, f"{ablations}: row {row}"), row)
    if demo:
        draw_demo_data()
    data = config.data_module()
    data.setup("fit")
    config.record_groups(data)
    for start, row in starts.items():
        _try_weights(*start, f"{ablations}: row {row}", demo=demo)
    tried = {data.extra_train}
    for row, changes in rows.items():
        changed = config.replace(**changes).data_module()
        if changed.extra_train not in tried:
            tried.add(changed.extra_train)
            _try_data(changed, f"{ablations}: row {row}")
    with ExitStack() as stack:
        identity = {"config": config.plain(), **fingerprint(data)}
        folder = claim_folder(config.runs, KIND, identity, "table.md", stack)
        _write_recipes(folder, config.plain(), rows)
        _run_cells(config, rows, seeds, folder)
    return folder.absolute()


def _run_cells(config: Config, rows: dict[str, dict[str, Any]], seeds: int, folder: Path) -> None:
    """Train each row with each seed, but for those that an earlier call has trained; tabulate after each seed."""
    record = read_record(folder, KIND)
    done: dict[str, dict[str, Any]] = record.setdefault("cells", {})
    cells = [(row, config.options.seed_everything + number) for number in range(seeds) for row in rows]
    names = [f"{_name(row, rows[row])}/seed_{seed}" for row, seed in cells]
    for number, ((row, seed), name) in enumerate(zip(cells, names, strict=True)):
        run = Run(folder / ROWS / name)
        if name not in done:
            left = sum(one not in done for one in names)
            progress = f"run {number + 1} of {len(cells)}{_remaining(done, left)}"
            rank_zero_info(f"\n{row}, seed {seed}: {progress}: {run.folder}")
            changed = config.replace(**rows[row]).replace(seed_everything=seed, data={"split_seed": seed})
            done[name] = _fit(changed, row, seed, run)
            write_record(folder, KIND, record)
        if row == list(rows)[-1]:
            known = [{**done[name], "row": row} for (row, _), name in zip(cells, names, strict=True) if name in done]
            _summarize(folder, known, list(rows))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); configs/ablations.yaml is an example.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(rows, dict) or not all(isinstance(changes, dict) for changes in rows.values()):
        raise UserError(f"{path}: should hold a mapping of options for each row; see configs/ablations.yaml.")
    for row in rows:
        if not _NAME.fullmatch(str(row)):
            raise UserError(f"{path}: row {row!r}: a name is of letters, digits, spaces and .,+=_- only.")
    slugs = [_slug(str(row)) for row in (BASE, *rows)]
    if twice := next((slug for slug in slugs if slugs.count(slug) > 1), None):
        raise UserError(f"{path}: two rows, or one and the base, would be called {twice}.")
    return {str(row): changes for row, changes in rows.items()}


def _slug(row: str) -> str:
    return row.replace(" ", "-").lower()


def _name(row: str, changes: dict[str, Any]) -> str:
    """Return what a row's files are called: a row of the same name whose options were edited is another one."""
    if row == BASE:
        return BASE
    return f"{_slug(row)}-{hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:6]}"


def _recipe(folder: Path, name: str) -> Path:
    return folder / ROWS / f"{name}.yaml"


def _write_recipes(folder: Path, config: dict[str, Any], rows: dict[str, dict[str, Any]]) -> None:
    (folder / ROWS).mkdir(exist_ok=True)
    atomic_write(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    for row, changes in rows.items():
        atomic_write(_recipe(folder, _name(row, changes)), yaml.safe_dump(changes, sort_keys=False))


def _try(base: Config, changes: dict[str, Any], where: str) -> tuple[str, str, int]:
    """Check that a row's options are right and its scores comparable, before anything is trained.

    Returns:
        What it starts from: backbone, weights and side of the images.
    """
    try:
        config = base.replace(**changes)
        with redirect_stderr(io.StringIO()):
            config.resolve()
        check_options(config, KIND)
        _check_comparable(base, config)
        model = try_build(config)
    except Exception as error:
        raise UserError(f"{where}: {error}") from error
    return model.hparams["backbone"], model.weights, model.preprocess.side


def _check_comparable(base: Config, config: Config) -> None:
    """Check that a row is scored on the patches of the base, after its last epoch."""
    data, trainer = config.options.data, config.options.trainer
    other = [name for name in (*SPLIT_OPTIONS, "root") if data[name] != base.options.data[name]]
    other += ["seed_everything"] if config.options.seed_everything != base.options.seed_everything else []
    if other:
        raise UserError(f"{min(other)} would have it scored on other patches than the base.")
    epochs, every = trainer.max_epochs or -1, trainer.check_val_every_n_epoch or 1
    if not data.val_fraction and data.folds is None and data.split_file is None:
        raise UserError("`data.val_fraction` 0 leaves nothing to compare scores on.")
    if every > epochs > 0:
        raise UserError("`trainer.check_val_every_n_epoch`: never validates.")
    if trainer.max_steps > 0 or epochs % every:
        raise UserError(
            "a score is the last epoch's: leave `trainer.max_steps` out, and let the last of `trainer.max_epochs` be "
            "validated."
        )


def _try_weights(backbone: str, weights: str, side: int, where: str, *, demo: bool) -> None:
    if weights == "none":
        return
    try:
        with redirect_stderr(io.StringIO()):
            load_weights(build_backbone(backbone, side), backbone, weights, side)
    except UserError as error:
        if not (isinstance(error, WeightsUnavailable) and demo):
            raise UserError(f"{where}: {error}") from None


def _try_data(data: PCamDataModule, where: str) -> None:
    try:
        with redirect_stderr(io.StringIO()):
            data.setup("fit")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _remaining(done: dict[str, dict[str, Any]], left: int) -> str:
    known = [cell["seconds"] for cell in done.values() if cell["seconds"]]
    return f", about {left * sum(known) / len(known) / 60:.0f} minutes left" if known else ""


def _fit(config: Config, row: str, seed: int, run: Run) -> dict[str, Any]:
    """Train a cell, or the rest of it, and return its score; `seconds` is None of one that was interrupted.

    The score is None of one that diverged.
    """
    new, begun, diverged = not run.last.is_file(), time.monotonic(), False
    if new or not _is_finished(run):
        try:
            fit(config, run=run, resume_with=lambda _: f"{KIND} again, with the same options")
        except LossDiverged as error:
            rank_zero_info(f"{row}, seed {seed}: {error}")
            diverged = True
    seconds = round(time.monotonic() - begun, 1) if new else None
    score = None if diverged else float(pd.read_csv(run.metrics)["val/auroc"].iloc[-1])
    return {"row": row, "seed": seed, "val/auroc": score, "seconds": seconds}


def _is_finished(run: Run) -> bool:
    trainer = yaml.safe_load(run.config.read_text(encoding="utf-8"))["trainer"]
    return is_finished(read_checkpoint(run.last), trainer["max_epochs"], trainer["max_steps"])


def _summarize(folder: Path, done: list[dict[str, Any]], rows: list[str]) -> None:
    cells = pd.DataFrame(done)
    atomic_write(folder / "ablate.csv", cells.to_csv(index=False, lineterminator="\n"))
    counts = cells.groupby("seed")["row"].nunique()
    seeds = counts.index[counts == len(rows)]  # those that all rows have
    scores = cells.pivot_table("val/auroc", "seed", "row", dropna=False).reindex(index=seeds, columns=rows)
    deltas, minutes = scores.sub(scores[BASE], axis=0), cells.groupby("row")["seconds"].mean() / 60
    lines = ["| row | val/auroc | difference from base | minutes |", "|---|---:|---:|---:|"]
    for row in rows:
        delta = "" if row == BASE else _mean_and_sd(deltas[row], "+")
        lines.append(f"| {row} | {_mean_and_sd(scores[row], '')} | {delta} | {minutes[row]:.1f} |")
    atomic_write(folder / "table.md", "\n".join(lines) + "\n")
    count = f"{len(scores)} seeds" if len(scores) > 1 else "1 seed"
    rank_zero_info(f"\n{folder / 'table.md'}, {count}: mean (sd), differences paired by seed\n" + "\n".join(lines))


def _mean_and_sd(values: "pd.Series[float]", sign: str) -> str:
    if (lost := int(values.isna().sum())) == len(values):
        return "diverged"
    spread = f" ({values.std():.4f})" if len(values) - lost > 1 else ""
    return f"{values.mean():{sign}.4f}{spread}" + (f", {lost} of {len(values)} diverged" if lost else "")
