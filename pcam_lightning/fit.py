"""fit: checks in order, a folder for the run, what is said and kept."""

import shlex
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.strategies import DDPStrategy

from pcam_lightning import __version__
from pcam_lightning.checkpoint import FORMAT, epochs_done
from pcam_lightning.classifier import MEASURED
from pcam_lightning.figures import best_epoch
from pcam_lightning.files import write_whole
from pcam_lightning.logs import TensorBoard
from pcam_lightning.messages import UserError, say, warn
from pcam_lightning.overlap import TrainingPatches
from pcam_lightning.pictures import Pictures
from pcam_lightning.rehearsal import load_start
from pcam_lightning.resume import check_checkpoint, check_recipe, check_steps, check_validation, steps_per_epoch
from pcam_lightning.run import claim_run, run_of
from pcam_lightning.split import describe, find_leak, split_digest, write_split
from pcam_lightning.stages import PROG, StagesCLI
from pcam_lightning.table import find_slides
from pcam_lightning.trainer import check_monitors


class FitCLI(StagesCLI):
    """What fit does beyond Lightning: a folder is claimed for the run when flags, data and weights are well."""

    def before_fit(self) -> None:
        """Check data, then weights, and only then claim a folder for the run."""
        data, model, chosen = self.datamodule, self.model, self.config[self.subcommand]
        if self.resumed is not None:
            self._take_split_of(self.resumed)
        data.setup("fit")
        if self.checkpoint is None:
            load_start(model, rehearses=self.rehearsal)
            if model.preprocess.measures:
                model.preprocess.measure(data.sample(MEASURED))
        else:
            model.started_from = self.checkpoint["started_from"]
            self._check_resumed(self.checkpoint)
        if chosen.model.compile:  # a machine without a compiler is found out before a folder is claimed
            torch.compile(torch.neg)(torch.zeros(2, device=self.trainer.strategy.root_device))
        if model.freezes and isinstance(self.trainer.strategy, DDPStrategy):
            # What is frozen gets no gradient in the first epoch, which DDP takes for an error unless told to look.
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        train, val = int((~data.val_mask).sum()), int(data.val_mask.sum())
        if train == 0:
            raise UserError(f"{data.split_file}: all patches are in the validation part, none is left to train on.")
        check_validation(self.trainer, data)
        self._report_held_out()
        check_monitors(self.trainer, val)
        sides = (describe(data.table, ~data.val_mask), describe(data.table, data.val_mask))
        own = (
            ", PCam's own parts"
            if "val" in data.table and data.folds is None and chosen.data.split_file is None
            else ""
        )
        say(f"data: {data.root}: {sides[0]} to train on, {sides[1]} to validate{own}.")
        leak = find_leak(data.table, data.val_mask, by_file=chosen.data.split_file is not None)
        if val and not self.rehearsal and leak.told:
            found = find_slides(data.root)
            way_on = f"--data.slides {found} holds out whole slides."
            if chosen.data.split_file is not None and leak.sure:
                way_on = f"Leave --data.split_file out: {chosen.data.split_file} parts slides."
            elif data.slides is not None:
                way_on = f"{data.slides} should name them all."
            elif found is None:
                way_on = "--data.slides FILE (id,wsi) holds out whole slides; the README tells how to get it."
            will = "will be optimistic, by 0.035 on the data in README" if leak.sure else "may be optimistic"
            say(f"val/auroc {will}: {leak.told}. {way_on}")
        say(
            f"network: {chosen.model.backbone} from {'random' if model.started_from == 'none' else model.started_from} "
            f"weights, {chosen.trainer.precision or '32-true'} on {self.trainer.strategy.root_device}."
        )
        if not chosen.trainer.fast_dev_run:
            self._open_run()

    def _report_held_out(self) -> None:
        """Count the validation patches that trained the weights which a new run starts from."""
        data, chosen = self.datamodule, self.config[self.subcommand]
        held_out = data.table[data.val_mask]
        if self.resumed is not None:
            return
        path = Path(chosen.ckpt_path or chosen.model.weights).expanduser()
        before = self.model.trained
        if self.checkpoint is not None:
            before = TrainingPatches.of_checkpoint(path, self.checkpoint)
        if overlap := before.count(held_out):
            split = run_of(path).split
            advice = f" --data.split_file {split} holds out the patches that its run did." if split.is_file() else ""
            warn(
                f"val/auroc will be optimistic: {overlap:,} of {len(held_out):,} validation patches trained the "
                f"weights that this run starts from, {path}.{advice}"
            )

    def _check_resumed(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what cannot be resumed: an ended run, other steps, and within a run another recipe or split."""
        data, chosen = self.datamodule, self.config[self.subcommand]
        path = Path(chosen.ckpt_path)
        check_checkpoint(path, checkpoint, self.model.hparams, self.trainer)
        # With max_steps Lightning takes a run that resumes at an epoch's end for one within it, and ends it twice.
        self.trainer.fit_loop._iteration_based_training = _no_iterations  # type: ignore[method-assign]
        if self.resumed is not None:
            check_recipe(checkpoint["pcam"]["config"], self._plain())
            if split_digest(data.table, data.val_mask) != checkpoint["pcam"]["split"]["sha256"]:
                raise UserError(
                    f"{self.resumed.folder}: the patches or their split differ from this run's, and patches that "
                    "trained it would validate it. Leave --data options out, or start a new run."
                )
            # Version 0.1.0 recorded a hash of the files' names, sizes and times instead.
            if checkpoint["pcam"]["data"].get("pixels", data.train_store.fingerprint) != data.train_store.fingerprint:
                warn(f"{data.root}: the image files have changed since this run began; their ids are the same.")
        check_steps(path, checkpoint, steps_per_epoch(self.trainer, data))

    def _open_run(self) -> None:
        data, chosen = self.datamodule, self.config[self.subcommand]
        plain = {**self._plain(), "ckpt_path": None}
        page = None
        if self.trainer.is_global_zero:
            self.run = self.resumed or self.place or claim_run(self._runs(chosen))
            self.run.best.parent.mkdir(parents=True, exist_ok=True)
            for left_over in self.run.folder.rglob(".*.tmp"):  # of a run that was killed while it saved
                left_over.unlink()
            self.run.diverged.unlink(missing_ok=True)  # of one that is tried again
            write_whole(self.run.config, yaml.safe_dump(plain, sort_keys=False))
            if self.resumed is None:
                write_split(self.run.split, data.table, data.val_mask)
            if chosen.trainer.logger is not False:
                purge = self.checkpoint["global_step"] + 1 if self.resumed and self.checkpoint else None
                page = TensorBoard(self.run, purge)
                self.trainer.loggers = [page, *self.trainer.loggers]
                self._add(LearningRateMonitor("step"))
            say(f"run: {self.run.folder}{self._how_far()}")
        if chosen.trainer.logger is not False:  # in every process: what they say of their patches is gathered
            self._add(Pictures(page, data))
        if self.place is None:
            self.keep.way_on = _resume(self.args)
        self.keep.run = self.metrics_file.run = self.watch.run = self.run
        self.keep.goes_on = self.metrics_file.goes_on = self.resumed is not None
        self.keep.record = {
            "version": __version__,
            "format": FORMAT,
            "config": plain,
            "steps_per_epoch": steps_per_epoch(self.trainer, data),
            "data": {"root": str(data.root), "pixels": data.train_store.fingerprint, "patches": len(data.table)},
            "split": {
                "val": int(data.val_mask.sum()),
                "sha256": split_digest(data.table, data.val_mask),
            },
        }
        self.metrics_file.options = {
            **plain["model"],
            "weights": self.model.started_from,  # in a rehearsal perhaps not those that were asked for
            "augment": {name: value for name, value in plain["model"]["augment"].items() if value},
            **{name: plain["data"][name] for name in ("batch_size", "val_fraction", "split_seed")},
            **{name: plain["trainer"][name] for name in ("max_epochs", "precision")},
            "seed_everything": plain["seed_everything"],
        }

    def _how_far(self) -> str:
        """Tell where a resumed run goes on, and where it ends: the command need not have said so."""
        if self.resumed is None or self.checkpoint is None:
            return ""
        epochs, steps = self.trainer.max_epochs or -1, self.trainer.max_steps
        end = f" of {epochs}" if epochs > 0 else ""
        end += f", to step {steps:,} at most" if steps > 0 else ""
        return f" goes on with epoch {epochs_done(self.checkpoint) + 1}{end}"

    def after_fit(self) -> None:
        """Say where the run is, how good it got, and what to type next."""
        if self.run is None or self.place is not None:  # whoever chose the place says the rest
            return
        # As its file has them: processes that the trainer started leave nothing of their own here.
        metrics = pd.read_csv(self.run.metrics)
        validated = "val/auroc" in metrics and bool(metrics["val/auroc"].notna().any())
        say(f"\nrun: {self.run.folder}, {int(metrics['epoch'].iloc[-1])} epochs.")
        if validated:
            best, row = self.run.best, best_epoch(metrics)
            say(f"best: epoch {int(row['epoch'])}, val/auroc {row['val/auroc']:.4f}.")
        else:
            best = self.run.last
            say("no val/auroc to choose an epoch by: last.ckpt counts.")
        say(f"curves:     tensorboard --logdir {self.run.folder.parent.parent}")
        if validated:
            say(f"report:     {PROG} evaluate {self.run.folder}")
        say(f"submission: {PROG} predict --ckpt_path {best}")
        if self.rehearsal:
            say("This was a rehearsal on drawn tissue; with data in data/, or --data.root DIR, fit trains on them.")


def _no_iterations() -> bool:
    return False


def _resume(args: list[str]) -> str:
    """Return the command that goes on with the run which a command of fit has started."""
    flags = ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--ckpt_path")
    return f"{PROG} {shlex.join([*flags.parse_known_args(args)[1], '--ckpt_path', 'last'])}"
