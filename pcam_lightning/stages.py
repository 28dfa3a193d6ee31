"""The stages: what all share beyond Lightning, and what validate, test and predict say and keep."""

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI

from pcam_lightning.checkpoint import KeepCheckpoints, read_checkpoint
from pcam_lightning.classifier import PCamClassifier
from pcam_lightning.datamodule import SPLIT_OPTIONS
from pcam_lightning.files import write_whole
from pcam_lightning.logs import MetricsFile
from pcam_lightning.machine import precision_here
from pcam_lightning.messages import UserError, say, warn
from pcam_lightning.official import is_official
from pcam_lightning.overlap import TrainingPatches
from pcam_lightning.predictions import Collector, say_where_it_goes, write_labelled, write_submission
from pcam_lightning.rehearsal import NOTHING_REAL, draw_rehearsal, is_drawn, is_rehearsal, rehearse
from pcam_lightning.run import Run, run_of
from pcam_lightning.split import split_digest
from pcam_lightning.table import SLIDES_FILES, find_slides
from pcam_lightning.trainer import build_trainer
from pcam_lightning.watch import Watch

PROG = "python -m pcam_lightning"


class StagesCLI(LightningCLI):
    """What LightningCLI's stages share after parsing, and what validate, test and predict do beyond Lightning."""

    checkpoint: dict[str, Any] | None = None  # that --ckpt_path names
    resumed: Run | None = None  # the run that `fit --ckpt_path last` goes on with
    place: Run | None = None  # where the run is to be, if not in a folder of its own claiming
    run: Run | None = None
    overlap: int | None = 0  # patches of the judged part that trained the network; None where it is not recorded
    said: Namespace | None = None  # with several networks: what the user said, without what run and defaults add
    args: list[str]  # as the user wrote them
    name = "default"  # of the run's folder: the stem of the last -c

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.watch, self.keep, self.metrics_file = Watch(), KeepCheckpoints(), MetricsFile()
        super().__init__(*args, **kwargs)

    @property
    def _fits(self) -> bool:
        """Whether the command is fit, or takes its options."""
        return self.subcommand not in ("validate", "test", "predict")

    @property
    def _trains(self) -> bool:
        """Whether the command trains, once or several times."""
        return self.subcommand == "fit"

    def _runs(self, chosen: Namespace) -> Path:
        return Path(chosen.trainer.default_root_dir or ".") / "lightning_logs" / self.name

    def _plain(self) -> dict[str, Any]:
        """Return the command's options as plain values, as a config file has them."""
        plain: dict[str, Any] = yaml.safe_load(
            self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
        )
        plain.pop("config", None)
        return plain

    def before_instantiate_classes(self) -> None:
        """Settle what depends on the machine: the data folder, the precision."""
        chosen = self.config[self.subcommand]
        if chosen.data.root is None and self.checkpoint is not None:  # a null in the user's -c names no other folder
            chosen.data.root = Path(self.checkpoint["pcam"]["data"]["root"])
        no_data = chosen.data.root is None and not Path("data").is_dir()
        if no_data:
            what = f"{self.name}.yaml" if self.name != StagesCLI.name else str(self.subcommand)
            rehearse(chosen.data, what, looks=not self._trains)
        chosen.data.root = chosen.data.root or Path("data")
        for name in ("root", "cache_dir", "split_file", "slides"):  # the run is to find them again from another folder
            if isinstance(chosen.data[name], Path):
                chosen.data[name] = chosen.data[name].absolute()
        self.rehearsal = is_rehearsal(chosen.data.root)
        if is_drawn(chosen.data.root) and not no_data and self.place is None:
            say(f"DRAWN TISSUE: {chosen.data.root}. {NOTHING_REAL}")
        self._follow_slides(chosen.data)
        new = self.resumed is None and self.place is None
        if self._fits and new and (chosen.data.folds is not None or "folds" in chosen):
            self._find_slides(chosen.data)
        chosen.trainer.precision = precision_here(chosen.trainer.accelerator, chosen.trainer.precision)

    def _follow_slides(self, data: Namespace) -> None:
        """Look for a run's map of slides in the folder that its data have moved to, where it lay in the old one."""
        if self.checkpoint is None or data.slides is None:
            return
        recorded = self.checkpoint["pcam"]["config"]["data"]
        if str(data.slides) == recorded.get("slides") and data.slides.parent == Path(recorded["root"]):
            data.slides = data.root / data.slides.name

    @staticmethod
    def _find_slides(data: Namespace) -> None:
        """Have folds hold out whole slides where a map of them lies in the data folder."""
        if data.slides is not None or data.split_file is not None or is_official(data.root):
            return
        # The rehearsal's may not be drawn yet.
        found = data.root / SLIDES_FILES[0] if is_rehearsal(data.root) else find_slides(data.root)
        if found is not None:
            data.slides = found
            say(f"folds are of whole slides, by {found}.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with what always belongs to it.

        Raises:
            UserError: the flags do not go together, or not with this machine.
        """
        callbacks: list[Callback] = [self.watch, self.metrics_file, self.keep] if self._fits else []
        return build_trainer(self.config_init[self.subcommand].trainer, callbacks, fits=self._fits, **kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        ours: dict[str, Any] = {"weights_only": True}
        if subcommand == "predict":
            ours["return_predictions"] = False
        return {**super()._prepare_subcommand_kwargs(subcommand), **ours}

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand != "fit":
            self._written_run()
        if self.rehearsal:
            draw_rehearsal()
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"--model.compile true: torch.compile fails on this machine ({reason}); leave the option out, or false."
            ) from error

    def _take_split_of(self, run: Run) -> None:
        """Take the split that a run was made with, unless the user asks for another one."""
        assert self.checkpoint is not None
        recorded, chosen = self.checkpoint["pcam"]["config"]["data"], self.config[self.subcommand].data
        if run.split.is_file() and all(
            str(recorded.get(name)) == str(chosen[name]) for name in ("root", *SPLIT_OPTIONS)
        ):
            self.datamodule.split_file = run.split

    def before_validate(self) -> None:
        """Take the network to the data that its run held out."""
        assert self.checkpoint is not None
        self._take_split_of(self._written_run())
        self.datamodule.setup("validate")
        if not self.datamodule.val_mask.any():
            raise UserError("--data.val_fraction 0: this run held nothing out, so there is nothing to validate on.")
        recorded = self.checkpoint["pcam"]["split"]["sha256"]
        if split_digest(self.datamodule.table, self.datamodule.val_mask) != recorded:
            warn("this is not the validation part of the checkpoint's run.")
        self._report_overlap(self.datamodule.table[self.datamodule.val_mask])
        self._collect("val", self.datamodule.table)

    def _report_overlap(self, table: pd.DataFrame) -> None:
        """Count the patches of a part, with columns `id` and `pixel_sha1`, that trained one of the networks."""
        assert self.checkpoint is not None
        path = Path(self.config[self.subcommand].ckpt_path)
        trained = TrainingPatches.of_checkpoint(path, self.checkpoint)
        for other in self.model.others:
            trained |= other.trained
        self.overlap = trained.count(table)
        if self.overlap:
            warn(f"{self.overlap:,} of these {len(table):,} patches trained the network of {path}.")
        elif not trained.known:
            self.overlap = None
            say(f"{path}: does not record all patches that trained it, so that these may be among them.")

    def before_test(self) -> None:
        """Take the network to the answers."""
        self.datamodule.setup("test")
        self._report_overlap(self.datamodule.test_table)
        self._collect("test", self.datamodule.test_table)

    def _collect(self, part: str, table: pd.DataFrame) -> None:
        path = self._written_run().predictions(part)
        self._add(Collector(partial(write_labelled, path, table)))

    def _add(self, callback: Callback) -> None:
        self.trainer.callbacks.append(callback)  # type: ignore[attr-defined]

    def after_validate(self) -> None:
        """Keep the scores in the run."""
        self._write_scores("validate")

    def after_test(self) -> None:
        """Keep the scores in the run."""
        self._write_scores("test")

    def before_predict(self) -> None:
        """Have the submission written."""
        chosen, data = self.config[self.subcommand], self.datamodule
        run = self._written_run()
        data.setup("predict")
        assert self.checkpoint is not None
        temperature = _temperature(run, self.made_by) if chosen.calibrate else 1.0
        self.model.others = [self._load_other(path) for path in chosen.also]
        path = chosen.output / run.submission.name if chosen.output else run.submission

        write = partial(write_submission, path, data.test_table["id"], temperature=temperature)
        self._add(Collector(partial(write, overwrite=chosen.overwrite)))
        self._report_overlap(data.test_table)
        say(f"data: {self.datamodule.root}; checkpoint: {', '.join(map(str, (chosen.ckpt_path, *chosen.also)))}")

    def after_predict(self) -> None:
        """Print how a submission is sent."""
        chosen, data = self.config[self.subcommand], self.datamodule
        run = self._written_run()
        path = chosen.output / run.submission.name if chosen.output else run.submission
        if self.place is None:
            say_where_it_goes(path, len(data.test_table), drawn=is_drawn(data.root))

    def _write_scores(self, stage: str) -> None:
        chosen = self.config[self.subcommand]
        scores = {name: float(value) for name, value in sorted(self.trainer.callback_metrics.items())}
        known = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        assert self.checkpoint is not None
        made_by = {"checkpoint": str(chosen.ckpt_path), "step": self.checkpoint["global_step"]}
        told = {**made_by, "root": str(self.datamodule.root), "training_overlap": self.overlap, **known}
        path = self._written_run().folder / f"{stage}.json"
        if self.trainer.is_global_zero:
            write_whole(path, json.dumps(told, indent=2) + "\n")
            say(f"{path}: {', '.join(f'{name} {value:.4f}' for name, value in scores.items())}")

    @property
    def made_by(self) -> dict[str, Any]:
        """What the logits of a checkpoint depend on: the step of training, and the views they are the mean of."""
        assert self.checkpoint is not None
        return {"step": self.checkpoint["global_step"], "tta": self.model.hparams["tta"]}

    def _load_other(self, path: Path) -> PCamClassifier:
        """Load one more network; refuse one of other data or precision, unless the user says which counts."""
        assert self.checkpoint is not None
        assert self.said is not None
        checkpoint = read_checkpoint(path)
        for kind, name in (("data", "root"), ("trainer", "precision")):
            own, other = (str(one["pcam"]["config"][kind][name]) for one in (self.checkpoint, checkpoint))
            if own != other and self.said.get(f"{kind}.{name}") is None:
                first = self.config[self.subcommand].ckpt_path
                raise UserError(
                    f"{path}: its run had --{kind}.{name} {other}, and that of {first} {own}; say which one counts."
                )
        return load_classifier(path, checkpoint, self.said.get("model.tta"))  # for all, or as each one's run had it

    def _check_ensemble(self, chosen: Namespace) -> None:
        if not chosen.also:
            return
        if chosen.output is None:
            raise UserError("--also: what several networks say belongs to none of their runs; --output DIR takes it.")
        if chosen.calibrate:
            raise UserError("--calibrate: a temperature is of one run, and --also makes it several.")
        paths = [Path(path).resolve() for path in (chosen.ckpt_path, *chosen.also)]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise UserError(f"--also: {twice} stands twice.")

    def _written_run(self) -> Run:
        """Return the run of the checkpoint; refuse what cannot be written before there is anything to write."""
        chosen = self.config[self.subcommand]
        run = run_of(Path(chosen.ckpt_path))
        if self.subcommand == "predict":
            self._check_ensemble(chosen)
            if chosen.output is not None:
                if chosen.output.suffix.lower() == ".csv":
                    raise UserError(f"--output {chosen.output}: takes a folder; {run.submission.name} is put into it.")
                chosen.output.mkdir(parents=True, exist_ok=True)
                if not os.access(chosen.output, os.W_OK):
                    raise UserError(f"--output {chosen.output}: cannot be written.")
                return run
        if not os.access(run.folder, os.W_OK):
            raise UserError(f"{run.folder}: cannot be written, and results go there; copy the checkpoint elsewhere.")
        return run


def _temperature(run: Run, made_by: dict[str, Any]) -> float:
    """Return the temperature that `evaluate` found for a run's checkpoint of a step and kind of views."""
    path = run.folder / "report.json"
    way_on = f"{PROG} evaluate {run.folder} finds that of its best.ckpt"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        temperature, of = float(report["temperature"]), {**report["made_by"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no temperature there; {way_on}, where there is one.") from None
    for name in made_by:
        if of.get(name) != made_by[name]:
            raise UserError(
                f"{path}: its temperature is of {name} {of.get(name)}, and this is {name} {made_by[name]}; {way_on}, "
                "judged as its run was."
            )
    return temperature


def load_classifier(path: Path, checkpoint: dict[str, Any], tta: str | None) -> PCamClassifier:
    """Build the network of a checkpoint of this project.

    Args:
        path: of the checkpoint.
        checkpoint: what `read_checkpoint` returns.
        tta: test-time augmentation; by default what its run had.

    Raises:
        UserError: it is damaged.
    """
    try:
        options = {**checkpoint["pcam"]["config"]["model"], "weights": "none", "compile": False}
        model = PCamClassifier(**{**options, "tta": tta or options.get("tta", "none")})
        model.on_load_checkpoint(checkpoint)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: damaged, or of another version of this project ({error}).") from None
    model.load_state_dict(checkpoint["state_dict"])
    return model
