"""ablate: a recipe and changed ones, each with several seeds; what each change is worth."""

import hashlib
import io
import json
import re
import time
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import yaml
from jsonargparse.typing import PositiveInt

from pcam_lightning.backbone import WeightsUnavailable, build_backbone, load_weights
from pcam_lightning.checkpoint import has_ended, read_checkpoint
from pcam_lightning.datamodule import SPLIT_OPTIONS
from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, say
from pcam_lightning.parser import PCamCLI, Study
from pcam_lightning.rehearsal import draw_rehearsal, is_rehearsal
from pcam_lightning.run import Run
from pcam_lightning.sweep import check, claim, fingerprint, open_data, read_record, write_record
from pcam_lightning.watch import Diverged

KIND, BASE, ROWS = "ablate", "base", "rows"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,+=_-]{0,79}")


def ablate(config: dict[str, Any], runs: Path, **options: Any) -> None:
    """Train a recipe and changed ones, each with several seeds; tell what each change is worth.

    All of it lies in `runs/ablate_N/`: `config.yaml`, `rows/<row>-<digest>.yaml`, `rows/<row>-<digest>/seed_S/`, each
    an ordinary run, `ablate.csv` (row,seed,val/auroc,seconds) and `table.md`. A run's score is its last epoch's: no
    choice of an epoch flatters it. A seed is that of the split too, the same for all rows, so that differences are
    paired. The same command goes on where an earlier one was stopped, and rows can be added meanwhile.

    Args:
        config: options of `fit`: the base.
        runs: the folder of the config's runs.
        options: `with`, YAML with the changed options of each row, by its name; `seeds`, how many, counted from the
            base's.
    """
    ablations, seeds = options["with"], options["seeds"]
    check(config, KIND)
    rows = {BASE: {}, **_read(ablations)}
    files = {row: _name(row, changes) for row, changes in rows.items()}
    with TemporaryDirectory() as scratch:
        _write_recipes(Path(scratch), config, rows)
        starts: dict[tuple[str, str, int], str] = {}  # the first row that has each
        for row, name in files.items():
            starts.setdefault(_try(Path(scratch), row, name, ablations, config), row)
        if is_rehearsal(config["data"]["root"]):
            draw_rehearsal()
        data = open_data(config["data"])
        data.setup("fit")
        for start, row in starts.items():
            _try_weights(*start, f"{ablations}: row {row}", rehearses=is_rehearsal(data.root))
    cells = [(row, config["seed_everything"] + number) for number in range(seeds) for row in rows]
    names = [f"{files[row]}/seed_{seed}" for row, seed in cells]
    with ExitStack() as stack:
        folder = claim(runs, KIND, {"config": config, **fingerprint(data)}, "table.md", stack)
        _write_recipes(folder, config, rows)
        record = read_record(folder, KIND)
        done: dict[str, dict[str, Any]] = record.setdefault("cells", {})
        for number, ((row, seed), name) in enumerate(zip(cells, names, strict=True)):
            run = Run(folder / ROWS / name)
            if name not in done:
                left = sum(one not in done for one in names)
                say(f"\n{row}, seed {seed}: run {number + 1} of {len(cells)}{_remaining(done, left)}: {run.folder}")
                done[name] = _fit(folder, row, seed, run)
                write_record(folder, KIND, record)
            if row == list(rows)[-1]:
                known = [{**done[one], "row": of} for (of, _), one in zip(cells, names, strict=True) if one in done]
                _sum_up(folder, known, list(rows))


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None:
        raise UserError("ablate needs --with FILE, such as configs/ablations.yaml: the changed options of each row.")
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
    write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    for row, changes in rows.items():
        write_whole(_recipe(folder, _name(row, changes)), yaml.safe_dump(changes, sort_keys=False))


def _args(folder: Path, name: str) -> list[str]:
    changed = [] if name == BASE else ["-c", str(_recipe(folder, name))]
    return ["fit", "-c", str(folder / "config.yaml"), *changed]


class _Tried(PCamCLI):
    """Parses and builds what fit needs, and stops there."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _try(folder: Path, row: str, name: str, ablations: Path | None, base: dict[str, Any]) -> tuple[str, str, int]:
    """Find out whether a row's options are right, and its scores comparable: now, not after hours.

    Returns:
        What it starts from: backbone, weights and side of the images.
    """
    try:
        with redirect_stderr(io.StringIO()):  # each run says the same again when its turn comes
            tried = _Tried([*_args(folder, name), "--trainer.logger=false"], run=Run(folder / "nowhere"))
        plain = tried._plain()
        check(plain, KIND)
        odd = [name for name in (*SPLIT_OPTIONS, "root") if plain["data"][name] != base["data"][name]]
        odd += ["seed_everything"] if plain["seed_everything"] != base["seed_everything"] else []
        if odd:
            raise UserError(f"{min(odd)} would have it judged on other patches than the base.")
    except Exception as error:
        raise UserError(f"{ablations}: row {row}: {error}") from error
    data, trainer = tried.datamodule, tried.config.fit.trainer
    epochs = trainer.max_epochs or -1
    if not data.val_fraction and data.folds is None and data.split_file is None:
        raise UserError(f"{ablations}: row {row}: --data.val_fraction 0 leaves nothing to compare scores on.")
    if (trainer.check_val_every_n_epoch or 1) > epochs > 0:
        raise UserError(f"{ablations}: row {row}: --trainer.check_val_every_n_epoch: never validates.")
    if trainer.max_steps > 0 or epochs % (trainer.check_val_every_n_epoch or 1):
        raise UserError(
            f"{ablations}: row {row}: a score is the last epoch's: leave --trainer.max_steps out, and let the last of "
            "--trainer.max_epochs be validated."
        )
    model = tried.model
    return model.hparams["backbone"], model.weights, model.preprocess.side


def _try_weights(backbone: str, weights: str, side: int, where: str, *, rehearses: bool) -> None:
    if weights == "none":
        return
    try:
        with redirect_stderr(io.StringIO()):
            load_weights(build_backbone(backbone, side), backbone, weights, side)
    except UserError as error:
        if not (isinstance(error, WeightsUnavailable) and rehearses):
            raise UserError(f"{where}: {error}") from None


def _remaining(done: dict[str, dict[str, Any]], left: int) -> str:
    known = [cell["seconds"] for cell in done.values() if cell["seconds"]]
    return f", about {left * sum(known) / len(known) / 60:.0f} minutes left" if known else ""


def _fit(folder: Path, row: str, seed: int, run: Run) -> dict[str, Any]:
    """Train a cell, or the rest of it, and return its score; `seconds` is None of one that was interrupted.

    The score is None of one that diverged.
    """
    anew, begun, diverged = not run.last.is_file(), time.monotonic(), False
    if anew or not _ended(run):
        recipe = _args(folder, run.folder.parent.name)
        try:
            PCamCLI([*recipe, f"--seed_everything={seed}", f"--data.split_seed={seed}"], run=run)
        except Diverged as error:
            say(f"{row}, seed {seed}: {error}")
            diverged = True
    seconds = round(time.monotonic() - begun, 1) if anew else None
    score = None if diverged else float(pd.read_csv(run.metrics)["val/auroc"].iloc[-1])
    return {"row": row, "seed": seed, "val/auroc": score, "seconds": seconds}


def _ended(run: Run) -> bool:
    trainer = yaml.safe_load(run.config.read_text(encoding="utf-8"))["trainer"]
    return has_ended(read_checkpoint(run.last), trainer["max_epochs"], trainer["max_steps"])


def _sum_up(folder: Path, done: list[dict[str, Any]], rows: list[str]) -> None:
    cells = pd.DataFrame(done)
    write_whole(folder / "ablate.csv", cells.to_csv(index=False, lineterminator="\n"))
    counts = cells.groupby("seed")["row"].nunique()
    seeds = counts.index[counts == len(rows)]  # those that all rows have
    scores = cells.pivot_table("val/auroc", "seed", "row", dropna=False).reindex(index=seeds, columns=rows)
    deltas, minutes = scores.sub(scores[BASE], axis=0), cells.groupby("row")["seconds"].mean() / 60
    lines = ["| row | val/auroc | difference from base | minutes |", "|---|---:|---:|---:|"]
    for row in rows:
        delta = "" if row == BASE else _told(deltas[row], "+")
        lines.append(f"| {row} | {_told(scores[row], '')} | {delta} | {minutes[row]:.1f} |")
    write_whole(folder / "table.md", "\n".join(lines) + "\n")
    count = f"{len(scores)} seeds" if len(scores) > 1 else "1 seed"
    say(f"\n{folder / 'table.md'}, {count}: mean (sd), differences paired by seed\n" + "\n".join(lines))


def _told(values: "pd.Series[float]", sign: str) -> str:
    if (lost := int(values.isna().sum())) == len(values):
        return "diverged"
    spread = f" ({values.std():.4f})" if len(values) - lost > 1 else ""
    return f"{values.mean():{sign}.4f}{spread}" + (f", {lost} of {len(values)} diverged" if lost else "")


ABLATE = Study(
    ablate,
    {
        "with": {"type": Path | None, "default": None, "help": "YAML with the changed options of each row."},
        "seeds": {"type": PositiveInt, "default": 3, "help": "Seeds a row."},
    },
)
