"""Commands that take the options of a run: each calls a function of the library and prints what it returns."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

from pcam_lightning.cli.arguments import PROG, without_option
from pcam_lightning.cli.command import RunCommand
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import Run, check_output, check_writable, shown

if TYPE_CHECKING:
    from pcam_lightning.cli.parser import PCamCLI
    from pcam_lightning.training.fit import FitResult
    from pcam_lightning.training.loaded_run import LoadedRun
    from pcam_lightning.training.probe import ProbeResult

_KAGGLE_TEST = 57_458  # patches that the competition asks for


def _fit(cli: "PCamCLI") -> None:
    from pcam_lightning.training.fit import fit

    def resume_with(run: Run) -> str:
        args = [*without_option(cli.args, "--ckpt_path"), "--ckpt_path", str(run.last)]
        return f"{PROG} fit {shlex.join(args)}"

    ckpt_path = None if cli.resumed else cli.options.ckpt_path
    result = fit(cli.run_config, run=cli.resumed, ckpt_path=ckpt_path, resume_with=resume_with)
    if result.run is None:
        return
    epochs = int(result.metrics["epoch"].iloc[-1])
    rank_zero_info(f"\nrun: {shown(result.run.folder)}, {epochs} epoch{'s' if epochs > 1 else ''}.")
    if result.best_epoch is None:
        rank_zero_info("no val/auroc to choose an epoch by: last.ckpt counts.")
    else:
        rank_zero_info(f"best: epoch {result.best_epoch}, val/auroc {result.best_score:.4f}.")
    rank_zero_info(f"curves:     tensorboard --logdir {shown(result.run.folder.parent.parent)}")
    _print_next(result, cli, report=result.best_epoch is not None)


def _probe(cli: "PCamCLI") -> None:
    from pcam_lightning.training.probe import probe

    result = probe(cli.run_config)
    for strength, score in zip(result.table["C"], result.table["val/auroc"], strict=True):
        rank_zero_info(f"C {strength:g}: val/auroc {score:.4f}")
    rank_zero_info(f"\nrun: {shown(result.run.folder)}, C {result.C:g}, val/auroc {result.score:.4f}.")
    _print_next(result, cli, report=True)


def _print_next(result: "FitResult | ProbeResult", cli: "PCamCLI", *, report: bool) -> None:
    """Print the commands to run next."""
    from pcam_lightning.data.sources import parts

    assert result.run is not None
    assert result.checkpoint is not None
    if report:
        rank_zero_info(f"report:     {PROG} evaluate {shown(result.run.folder)}")
    data = cli.run_config.options.data
    if "test" in parts(data.root, data.columns):
        rank_zero_info(f"submission: {PROG} predict --ckpt_path {shown(result.checkpoint)}")
    else:
        rank_zero_info(f"prediction: {PROG} predict --ckpt_path {shown(result.checkpoint)} --data.root DIR")
    if result.demo:
        rank_zero_info(
            "This was a demo run on synthetic tissue; with data in data/, or --data.root DIR, fit trains on them."
        )


def _validate(cli: "PCamCLI") -> None:
    from pcam_lightning.training.predict import validate

    validate(_loaded(cli), cli.run_config)


def _test(cli: "PCamCLI") -> None:
    from pcam_lightning.training.predict import test

    test(_loaded(cli), cli.run_config)


def _predict(cli: "PCamCLI") -> None:
    from pcam_lightning.training.demo_run import is_synthetic
    from pcam_lightning.training.predict import predict
    from pcam_lightning.training.predictions import write_submission

    options, loaded = cli.options, _loaded(cli)
    path = _submission(loaded.run, options.output, several=bool(options.ensemble))
    predictions = predict(
        loaded,
        config := cli.run_config,
        ensemble=options.ensemble,
        chosen=cli.chosen,
        calibrate=options.calibrate,
        abstain=options.abstain,
    )
    if len(predictions):  # in the first of several processes
        write_submission(path, predictions, overwrite=options.overwrite)
        _print_submission(path, len(predictions), synthetic=is_synthetic(config.options.data.root))


def _loaded(cli: "PCamCLI") -> "LoadedRun":
    assert cli.loaded is not None  # `ckpt_path` is required
    return cli.loaded


def _submission(run: Run, output: Path | None, *, several: bool) -> Path:
    """Return the path of the submission, checked for write permission before anything is predicted."""
    if output is None:
        if several:
            raise UserError("`ensemble`: its predictions belong to none of the runs; `output` DIR takes them.")
        check_writable(run.folder)
        return run.submission
    if output.suffix.lower() == ".csv":
        raise UserError(f"`output` {output}: takes a folder; {run.submission.name} is put into it.")
    check_output(output)
    return output / run.submission.name


def _print_submission(path: Path, patches: int, *, synthetic: bool) -> None:
    """Print how a submission is sent, where it is one for Kaggle."""
    if synthetic:
        rank_zero_info(
            "Synthetic tissue: nothing to submit. With data in data/, or --data.root DIR, fit trains on them."
        )
    elif patches == _KAGGLE_TEST:
        file = shlex.quote(str(path))
        rank_zero_info(
            f"To submit: kaggle competitions submit -c histopathologic-cancer-detection -f {file} -m MESSAGE"
        )


def _crossval(cli: "PCamCLI") -> None:
    import pandas as pd

    from pcam_lightning.evaluation.crossval import crossval
    from pcam_lightning.training.demo_run import is_synthetic

    config = cli.run_config
    folder = crossval(config, int(cli.options.folds))
    submission = folder / "submission.csv"
    if submission.is_file():
        synthetic = is_synthetic(config.options.data.root)
        _print_submission(submission, len(pd.read_csv(submission)), synthetic=synthetic)
    rank_zero_info(f"report: {PROG} evaluate {shown(folder)}")


def _ablate(cli: "PCamCLI") -> None:
    from pcam_lightning.evaluation.ablate import ablate

    if cli.options.ablations is None:
        raise UserError("`ablations` FILE is required: the changed options of each row, as in configs/ablations.yaml.")
    ablate(cli.run_config, cli.options.ablations, int(cli.options.seeds))


def _explore(cli: "PCamCLI") -> None:
    from pcam_lightning.evaluation.explore import explore

    options, config = cli.options, cli.run_config
    root = config.options.data.root
    next_command = f"{PROG} fit -c configs/base.yaml" + (
        "" if root is None else f" --data.root {shlex.quote(str(root))}"
    )
    explore(
        config,
        output=options.output,
        augmented=options.augmented,
        points=options.points,
        ckpt_path=cli.loaded,
        next_command=next_command,
    )


RUN_COMMANDS: dict[str, RunCommand] = {
    "fit": RunCommand(
        _fit,
        "training.fit",
        "Train, and keep the best and the last epoch's checkpoint in a run folder of its own.",
        "fit -c configs/base.yaml --data.root DIR",
        "resume",
    ),
    "probe": RunCommand(
        _probe,
        "training.probe",
        "Fit a logistic regression on the frozen features of a network, and keep it as a run.",
        "probe -c configs/base.yaml --model.backbone efficientnet_lite0 --data.root DIR",
    ),
    "validate": RunCommand(
        _validate,
        "training.predict",
        "Score a run's checkpoint on the validation part of its split.",
        "validate lightning_logs/base/version_0",
        "required",
    ),
    "test": RunCommand(
        _test,
        "training.predict",
        "Score a run's checkpoint on test/, where answers.csv holds its labels.",
        "test lightning_logs/base/version_0",
        "required",
    ),
    "predict": RunCommand(
        _predict,
        "training.predict",
        "Write submission.csv for test/ into the run of a checkpoint.",
        "predict lightning_logs/base/version_0",
        "required",
        {
            "overwrite": {"action": "store_true", "help": "Replace a submission that exists already."},
            "calibrate": {"action": "store_true", "help": "Divide logits by the temperature that evaluate found."},
            "abstain": {
                "action": "store_true",
                "help": "Call patches normal, tumor or neither by the thresholds that evaluate --abstain found.",
            },
            "ensemble": {
                "type": Path,
                "nargs": "+",
                "default": [],
                "help": "More checkpoints; the mean of all their logits is used.",
            },
            "output": {"type": Path | None, "default": None, "help": "Folder to write into, by default the run's."},
        },
    ),
    "crossval": RunCommand(
        _crossval,
        "evaluation.crossval",
        "Train on all folds but one, for each in turn; write out-of-fold predictions and the folds' mean submission.",
        "crossval -c configs/base.yaml --data.root DIR",
        options={"folds": {"type": PositiveInt, "default": 5, "help": "Number of folds."}},
    ),
    "ablate": RunCommand(
        _ablate,
        "evaluation.ablate",
        "Train a recipe and changed ones, each with several seeds; tabulate what each change is worth.",
        "ablate -c configs/base.yaml --ablations configs/ablations.yaml --data.root DIR",
        options={
            "ablations": {"type": Path | None, "default": None, "help": "YAML with the changed options of each row."},
            "seeds": {"type": PositiveInt, "default": 3, "help": "Seeds per row."},
        },
    ),
    "explore": RunCommand(
        _explore,
        "evaluation.explore",
        "Write explore.html: classes, patches, augmentation, colors, slides, flagged patches, t-SNE of a data folder.",
        "explore -c configs/base.yaml --data.root DIR",
        "optional",
        {
            "output": {
                "type": Path,
                "default": Path("explore"),
                "help": "Folder to write into; a page there is replaced.",
            },
            "augmented": {"type": PositiveInt, "default": 10, "help": "Augmented patches to show."},
            "points": {"type": PositiveInt, "default": 2000, "help": "Patches for t-SNE."},
        },
        defaults={"model.weights": "none"},
    ),
}
