"""crossval: train one run per fold; write out-of-fold predictions, their scores, and an averaged submission."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from pcam_lightning.data.csv_tables import read_text
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.sources import parts
from pcam_lightning.evaluation.multi_run import (
    check_options,
    claim_folder,
    fingerprint,
    read_record,
    try_build,
    write_record,
)
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.training.checkpoint import is_finished, read_checkpoint
from pcam_lightning.training.demo_run import draw_demo_data, is_demo_folder
from pcam_lightning.training.fit import fit
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.training.options import Config
from pcam_lightning.training.predict import predict, validate
from pcam_lightning.training.predictions import read_predictions_csv, write_submission
from pcam_lightning.utils.atomic_io import atomic_link, atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import Run

KIND = "crossval"


def crossval(config: Config, folds: int = 5) -> Path:
    """Train one run per fold on the other folds; write out-of-fold predictions and the mean submission.

    Results are written to `crossval_N/` below `config.runs`: `config.yaml`; for each fold I the run folder `fold_I/`,
    `oof_I.csv` and `predictions_I.csv` (predictions for the held-out fold and the test split); `oof.csv`
    (id,label,logit,fold and, if known, slide); and `crossval.json`. With a test split, `submission.csv` and
    `predictions.csv` (id,logit) are added. Calling it again resumes an interrupted cross-validation.

    Args:
        config: options of the runs.
        folds: number of folds.

    Returns:
        The result folder.

    Raises:
        UserError: an option, the data or the weights are invalid.
    """
    _check(config, folds)
    config.resolve(what=KIND)
    try_build(config)
    root = config.options.data.root
    if is_demo_folder(root):
        draw_demo_data()
    has_test = "test" in parts(root, config.options.data.columns)
    data, test = _open(config, folds, has_test=has_test)
    with ExitStack() as stack:
        identity = {"config": config.plain(), "folds": folds, **fingerprint(data)}
        folder = claim_folder(config.runs, KIND, identity, "oof.csv", stack)
        record = read_record(folder, KIND)
        if has_test:
            if record.get("test", test) != test:
                rank_zero_info(f"{root}: the test split has changed; all folds predict it again.")
                for path in (*folder.glob("predictions*.csv"), folder / "submission.csv"):
                    path.unlink(missing_ok=True)
            record["test"] = test
        for fold in range(folds):
            rank_zero_info(f"\nfold {fold + 1} of {folds}: {Run(folder / f'fold_{fold}').folder}")
            _run_fold(config.replace(data={"folds": folds, "fold": fold}), folder, fold, record, has_test=has_test)
        _summarize(folder, record, set(data.table["id"][~data.always_train]), folds, has_test=has_test)
    return folder.absolute()


def _run_fold(config: Config, folder: Path, fold: int, record: dict[str, Any], *, has_test: bool) -> None:
    """Run the remaining steps of a fold: train, validate, predict the test split."""
    run, trainer = Run(folder / f"fold_{fold}"), config.options.trainer
    if fold not in record.setdefault("fitted", []):
        limits = trainer.max_epochs, trainer.max_steps
        if not run.last.is_file() or not is_finished(read_checkpoint(run.last), *limits):
            fit(config, run=run, resume_with=lambda _: f"{KIND} with the same options")
        record["fitted"].append(fold)
        write_record(folder, KIND, record)
    scored = _oof(folder, fold).is_file()
    predicted = not has_test or _predictions(folder, fold).is_file()
    if scored and predicted:
        return
    # Use the last epoch, because the best epoch was selected on the patches to score. Keep separate files, so that
    # validating the run of a fold with another checkpoint does not change the result.
    loaded = LoadedRun.open(run.last)
    if not scored:
        validate(loaded, _of_last(config, loaded))
        atomic_link(run.predictions("val"), _oof(folder, fold))
    if not predicted:
        write_submission(run.submission, predict(loaded, _of_last(config, loaded)), overwrite=True)
        atomic_link(run.submission.with_name("predictions.csv"), _predictions(folder, fold))


def _of_last(config: Config, loaded: LoadedRun) -> Config:
    """Return the options to run the last checkpoint of a fold on the accelerator of the config."""
    accelerator = config.options.trainer.accelerator
    return Config.of_run(loaded, trainer={"accelerator": accelerator})


def _check(config: Config, folds: int) -> None:
    check_options(config, KIND)
    data = config.options.data
    for wrong, message in (
        (folds < 2, f"`folds` {folds}: should be at least 2, such as 5."),
        (data.split_file is not None, "crossval creates its own folds: omit `data.split_file`."),
        (data.folds is not None or data.fold, "crossval runs all folds: use `folds`, and omit `data.folds`."),
    ):
        if wrong:
            raise UserError(message)


def _open(config: Config, folds: int, *, has_test: bool) -> tuple[PCamDataModule, str]:
    """Read, pack and split the data of all folds, so that errors are raised before training.

    Returns:
        The data, split for the first fold, and the fingerprint of the test split. All folds are assigned at once, so
        one check covers all.
    """
    data, test = config.data_module(folds=folds, fold=0), ""
    if has_test:
        data.setup("predict")
        test = data.test_store.fingerprint
    data.setup("fit")
    config.record_groups(data)
    return data, test


def _oof(folder: Path, fold: int) -> Path:
    return folder / f"oof_{fold}.csv"


def _predictions(folder: Path, fold: int) -> Path:
    return folder / f"predictions_{fold}.csv"


def _summarize(folder: Path, record: dict[str, Any], ids: set[str], folds: int, *, has_test: bool) -> None:
    each_fold = [read_predictions_csv(_oof(folder, fold)).assign(fold=fold) for fold in range(folds)]
    oof = pd.concat(each_fold).sort_values("id", ignore_index=True)
    if oof["id"].duplicated().any() or set(oof["id"]) != ids:
        raise UserError(f"{folder}: oof_I.csv do not list each patch once; remove them and run crossval again.")
    atomic_write(folder / "oof.csv", oof.to_csv(index=False, lineterminator="\n"))
    scores = [auroc(part["label"].to_numpy(), part["logit"].to_numpy()) for part in each_fold]
    record |= {
        "val/auroc": scores,
        "mean": float(np.mean(scores)),
        "sd": float(np.std(scores, ddof=1)),
        "oof/auroc": auroc(oof["label"].to_numpy(), oof["logit"].to_numpy()),
    }
    write_record(folder, KIND, record)
    rank_zero_info(f"\n{folder / 'oof.csv'}: {len(oof):,} patches, each predicted by the run that did not train on it.")
    message = ", ".join(f"{score:.4f}" for score in scores)
    rank_zero_info(
        f"val/auroc {message}: mean {record['mean']:.4f}, sd {record['sd']:.4f}; pooled {record['oof/auroc']:.4f}."
    )
    if has_test:
        each = [read_text(_predictions(folder, fold)).set_index("id")["logit"] for fold in range(folds)]
        logit = pd.concat(each, axis=1).astype(float).mean(axis=1, skipna=False).loc[each[0].index]
        mean = pd.DataFrame({"id": logit.index, "logit": logit.to_numpy(), "prob": expit(logit.to_numpy())})
        write_submission(folder / "submission.csv", mean, overwrite=True)
