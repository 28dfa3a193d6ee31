"""crossval: each fold an ordinary run; out-of-fold predictions, their scores, and a submission that averages."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jsonargparse.typing import PositiveInt

from pcam_lightning.checkpoint import has_ended, read_checkpoint
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.files import link_whole, write_whole
from pcam_lightning.layout import parts
from pcam_lightning.messages import UserError, say
from pcam_lightning.parser import PCamCLI, Study
from pcam_lightning.predictions import read_labelled, say_where_it_goes, write_submission
from pcam_lightning.rehearsal import draw_rehearsal, is_drawn, is_rehearsal
from pcam_lightning.run import Run
from pcam_lightning.scores import auroc
from pcam_lightning.stages import PROG
from pcam_lightning.sweep import check, claim, fingerprint, open_data, read_record, write_record

KIND = "crossval"


def crossval(config: dict[str, Any], runs: Path, folds: int) -> None:
    """Train on all folds but one, for each in turn; write out-of-fold predictions and the folds' mean submission.

    All of it lies in `runs/crossval_N/`: `config.yaml`, `fold_I/`, each an ordinary run, `oof_I.csv` and
    `predictions_I.csv`, what it says of its fold and of the test part, and at the end `oof.csv` (id,label,logit,fold
    and, where known, slide), `crossval.json`, and where there is a test part `submission.csv` and `predictions.csv`
    (id,logit). The same command goes on where an earlier one was stopped.

    Args:
        config: options of `fit`.
        runs: the folder of the config's runs.
        folds: their number.
    """
    _check(config, folds)
    root, limits = Path(config["data"]["root"]), (config["trainer"]["max_epochs"], config["trainer"]["max_steps"])
    if is_rehearsal(root):
        draw_rehearsal()
    has_test = "test" in parts(root)
    data, test = _open(config["data"], folds, has_test=has_test)
    assert data.table is not None
    with ExitStack() as stack:
        identity = {"config": config, "folds": folds, **fingerprint(data)}
        folder = claim(runs, KIND, identity, "oof.csv", stack)
        record = read_record(folder, KIND)
        if has_test:
            if record.get("test", test) != test:
                say(f"{root}: its test part has changed since; all folds predict it again.")
                for path in (*folder.glob("predictions*.csv"), folder / "submission.csv"):
                    path.unlink(missing_ok=True)
            record["test"] = test
        for fold in range(folds):
            run = Run(folder / f"fold_{fold}")
            say(f"\nfold {fold + 1} of {folds}: {run.folder}")
            if fold not in record.setdefault("fitted", []):
                if not run.last.is_file() or not has_ended(read_checkpoint(run.last), *limits):
                    chosen = [f"--data.folds={folds}", f"--data.fold={fold}"]
                    PCamCLI(["fit", "-c", str(folder / "config.yaml"), *chosen], run=run)
                record["fitted"].append(fold)
                write_record(folder, KIND, record)
            # Not the best epoch's: it was chosen by the very patches that it is to be judged on. And kept under names
            # of their own: whoever validates a fold's run with another checkpoint has no say in what comes out here.
            ran = ["--ckpt_path", str(run.last), f"--trainer.accelerator={config['trainer']['accelerator']}"]
            if not _oof(folder, fold).is_file():
                PCamCLI(["validate", *ran], run=run)
                link_whole(run.predictions("val"), _oof(folder, fold))
            if has_test and not _predictions(folder, fold).is_file():
                PCamCLI(["predict", "--overwrite", *ran], run=run)
                link_whole(run.submission.with_name("predictions.csv"), _predictions(folder, fold))
        assert data.always_train is not None
        _sum_up(folder, record, set(data.table["id"][~data.always_train]), folds, has_test=has_test)
        if has_test:
            submission = folder / "submission.csv"
            say_where_it_goes(submission, len(pd.read_csv(submission)), drawn=is_drawn(root))


def _check(config: dict[str, Any], folds: int) -> None:
    check(config, KIND)
    data = config["data"]
    for wrong, told in (
        (folds < 2, f"--folds {folds}: should be at least 2, such as 5."),
        (data["split_file"] is not None, "crossval draws its own folds: leave --data.split_file out."),
        (data["folds"] is not None or data["fold"], "crossval runs all folds: --folds K, and no --data.folds."),
    ):
        if wrong:
            raise UserError(told)


def _open(options: dict[str, Any], folds: int, *, has_test: bool) -> tuple[PCamDataModule, str]:
    """Read, pack and split all that the folds will need: what is wrong with it shows now, not after hours.

    Returns:
        The data, split for the first fold, which stands for all: they are dealt in one go. And the fingerprint of the
        test part.
    """
    data, test = open_data(options, folds=folds, fold=0), ""
    if has_test:
        data.setup("predict")
        assert data.test_store is not None
        test = data.test_store.fingerprint
    data.setup("fit")
    return data, test


def _oof(folder: Path, fold: int) -> Path:
    return folder / f"oof_{fold}.csv"


def _predictions(folder: Path, fold: int) -> Path:
    return folder / f"predictions_{fold}.csv"


def _sum_up(folder: Path, record: dict[str, Any], ids: set[str], folds: int, *, has_test: bool) -> None:
    each_fold = [read_labelled(_oof(folder, fold)).assign(fold=fold) for fold in range(folds)]
    oof = pd.concat(each_fold).sort_values("id", ignore_index=True)
    if oof["id"].duplicated().any() or set(oof["id"]) != ids:
        raise UserError(f"{folder}: its oof_I.csv are not of each patch once; remove them, and run crossval again.")
    write_whole(folder / "oof.csv", oof.to_csv(index=False, lineterminator="\n"))
    scores = [auroc(part["label"].to_numpy(), part["logit"].to_numpy()) for part in each_fold]
    record |= {
        "val/auroc": scores,
        "mean": float(np.mean(scores)),
        "sd": float(np.std(scores, ddof=1)),
        "oof/auroc": auroc(oof["label"].to_numpy(), oof["logit"].to_numpy()),
    }
    write_record(folder, KIND, record)
    say(f"\n{folder / 'oof.csv'}: {len(oof):,} patches, each predicted by the fold that had not seen it.")
    told = ", ".join(f"{score:.4f}" for score in scores)
    say(f"val/auroc {told}: mean {record['mean']:.4f}, sd {record['sd']:.4f}; all together {record['oof/auroc']:.4f}.")
    if has_test:
        each = [pd.read_csv(_predictions(folder, fold), dtype={"id": str}) for fold in range(folds)]
        logit = pd.concat([one.set_index("id")["logit"] for one in each], axis=1).mean(axis=1, skipna=False)
        write_submission(folder / "submission.csv", each[0]["id"], logit, overwrite=True)
    say(f"report: {PROG} evaluate {folder}")


CROSSVAL = Study(crossval, {"folds": {"type": PositiveInt, "default": 5, "help": "Number of folds."}})
