"""ablate: train a recipe and its variants with several seeds, and tabulate the differences."""

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
from pcam_lightning.evaluation.multi_run import (
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
    """Train a recipe and its variants with several seeds, and tabulate the differences in val/auroc.

    Results are written to `ablate_N/` below `config.runs`: `config.yaml`, `rows/<row>-<digest>.yaml`, one run folder
    `rows/<row>-<digest>/seed_S/` per row and seed, `ablate.csv` (row,seed,val/auroc,seconds) and `table.md`. A run is
    scored by its last epoch, because choosing the best epoch would be optimistic. Each seed also sets the split and is
    used for all rows, so differences are paired. Calling it again resumes an interrupted ablation; rows can be added.

    Args:
        config: options of the base run.
        ablations: YAML file that maps row names to changed options.
        seeds: number of seeds, starting with the seed of the base.

    Returns:
        The result folder.

    Raises:
        UserError: an option of the base or a row, the data or the weights are invalid.
    """
    check_options(config, KIND)
    rows = {BASE: {}, **_read(ablations)}
    config.resolve(what=KIND)
    demo = is_demo_folder(config.options.data.root)
    starts: dict[tuple[str, str, int], str] = {}  # first row with each initial network
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
    """Train the remaining rows and seeds, and update the table after each seed."""
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
        raise UserError(f"{path}: cannot be read ({error.strerror}); see configs/ablations.yaml.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(rows, dict) or not all(isinstance(changes, dict) for changes in rows.values()):
        raise UserError(f"{path}: should map each row to its options; see configs/ablations.yaml.")
    for row in rows:
        if not _NAME.fullmatch(str(row)):
            raise UserError(f"{path}: row {row!r}: a name can contain only letters, digits, spaces and .,+=_-.")
    slugs = [_slug(str(row)) for row in (BASE, *rows)]
    if twice := next((slug for slug in slugs if slugs.count(slug) > 1), None):
        raise UserError(f"{path}: two rows have the same name, {twice}; base is reserved.")
    return {str(row): changes for row, changes in rows.items()}


def _slug(row: str) -> str:
    return row.replace(" ", "-").lower()


def _name(row: str, changes: dict[str, Any]) -> str:
    """Return the file name of a row; it changes with the options of the row."""
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
    """Check before training that the options of a row are valid and its scores are comparable.

    Returns:
        Backbone, weights and image side of the initial network.
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
    """Check that a row is scored on the validation split of the base, after its last epoch."""
    data, trainer = config.options.data, config.options.trainer
    other = [name for name in (*SPLIT_OPTIONS, "root") if data[name] != base.options.data[name]]
    other += ["seed_everything"] if config.options.seed_everything != base.options.seed_everything else []
    if other:
        raise UserError(f"{min(other)} cannot differ from the base, because all rows are scored on the same patches.")
    epochs, every = trainer.max_epochs or -1, trainer.check_val_every_n_epoch or 1
    if not data.val_fraction and data.folds is None and data.split_file is None:
        raise UserError("`data.val_fraction` 0 leaves no validation split to compare scores on.")
    if every > epochs > 0:
        raise UserError(f"`trainer.check_val_every_n_epoch` {every}: larger than `trainer.max_epochs` {epochs}.")
    if trainer.max_steps > 0 or epochs % every:
        raise UserError(
            "runs are scored by their last epoch: omit `trainer.max_steps`, and set `trainer.max_epochs` to a multiple "
            "of `trainer.check_val_every_n_epoch`."
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
    minutes = round(left * sum(known) / len(known) / 60) if known else 0
    return f", about {minutes} {'minute' if minutes == 1 else 'minutes'} left" if known else ""


def _fit(config: Config, row: str, seed: int, run: Run) -> dict[str, Any]:
    """Train or resume a run and return its score.

    The score is None if the run diverged, and `seconds` is None if it was interrupted before.
    """
    new, begun, diverged = not run.last.is_file(), time.monotonic(), False
    if new or not _is_finished(run):
        try:
            fit(config, run=run, resume_with=lambda _: f"{KIND} with the same options")
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
    seeds = counts.index[counts == len(rows)]  # seeds finished for all rows
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
    sd = f" ({values.std():.4f})" if len(values) - lost > 1 else ""
    return f"{values.mean():{sign}.4f}{sd}" + (f", {lost} of {len(values)} diverged" if lost else "")
