"""evaluate and compare: labelled predictions -> report.html and report.json, and a difference with its interval."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy.special import expit

from pcam_lightning import __version__
from pcam_lightning.checkpoint import read_checkpoint
from pcam_lightning.datamodule import SPLIT_OPTIONS, PCamDataModule
from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, say
from pcam_lightning.parser import PCamCLI
from pcam_lightning.predictions import read_labelled
from pcam_lightning.report import render
from pcam_lightning.run import Run
from pcam_lightning.scores import (
    Interval,
    Operation,
    auroc,
    average_precision,
    brier,
    calibration_error,
    cross_fit,
    delong,
    draw_scores,
    fit_temperature,
    fit_threshold,
    interval,
    nll,
    operate,
    rate_at,
)
from pcam_lightning.split import split_groups
from pcam_lightning.table import read_slides

PARTS = 5  # of slides or patches, for what is fitted on all but one of them
_RATES = (0.90, 0.95, 0.99)


class Judged(NamedTuple):
    """Labelled predictions: `rows` has id, label, logit and perhaps slide and fold."""

    rows: pd.DataFrame
    report: Path  # without its suffix
    data: PCamDataModule | None  # where its pictures are


def evaluate(
    target: Path, labels: Path | None = None, slides: Path | None = None, draws: int = 1000, seed: int = 0
) -> None:
    """Judge a run, a cross-validation or a file of predictions: report.html and report.json.

    Args:
        target: a run's folder (its best checkpoint is validated again), a cross-validation's, or a CSV with id,logit or
            a submission.
        labels: CSV with id,label, for a CSV that has no labels itself.
        slides: CSV with id,wsi, where the slides are not known already.
        draws: bootstrap samples for the intervals.
        seed: of the bootstrap and of the parts that threshold and temperature are cross-fitted on.
    """
    _check_draws(draws, seed)
    judged = _read(target, labels, slides)
    rows = judged.rows
    report, calibrated, chosen = _judge(rows, draws, seed)
    report |= {"target": str(target), "version": __version__, "seed": seed}
    if (target / "config.yaml").is_file():
        report["splits"] = _siblings(target)
    page = render(rows, judged.data, report, calibrated, chosen)
    write_whole(judged.report.with_suffix(".json"), json.dumps(report, indent=2) + "\n")
    write_whole(judged.report.with_suffix(".html"), page)
    value = report["auroc"]
    say(
        f"AUROC {value['value']:.4f} (95 % {value['low']:.4f} to {value['high']:.4f}, over {report['clusters']:,} "
        f"{report['clustered_by']}), n = {report['patches']:,}."
    )
    say(f"{judged.report.with_suffix('.html')}: open it in a browser.")


def compare(first: Path, second: Path, slides: Path | None = None, draws: int = 1000, seed: int = 0) -> None:
    """Tell by how much one run's AUROC is above another's on the same patches, with intervals.

    Args:
        first: a run's folder, a cross-validation's, or a CSV with id,label,logit.
        second: another one, of the same patches.
        slides: CSV with id,wsi, where the slides are not known already.
        draws: bootstrap samples.
        seed: of the bootstrap.
    """
    _check_draws(draws, seed)
    one, other = (_read(target, None, slides).rows.set_index("id") for target in (first, second))
    if set(one.index) != set(other.index):
        both = len(set(one.index) & set(other.index))
        raise UserError(
            f"{first} has {len(one):,} patches and {second} has {len(other):,}, {both:,} of them the same; a paired "
            "comparison needs the same ones: fit the second with --data.split_file FIRST/split.csv."
        )
    other = other.loc[one.index]
    if one["label"].value_counts().min() < 2:
        raise UserError(f"{first}: one patch of a class tells nothing of the spread; two of each at least are needed.")
    if not one["label"].equals(other["label"]):
        raise UserError(f"{first} and {second}: the same patches have other labels.")
    label, a, b = (np.asarray(column) for column in (one["label"], one["logit"], other["logit"]))
    say(f"{first}: AUROC {auroc(label, a):.4f}\n{second}: AUROC {auroc(label, b):.4f}\nn = {len(label):,} patches")
    difference, p = delong(label, a, b)
    _tell("difference, patches taken for independent (DeLong)", difference, f", p = {p:.2g}")
    cluster, name = _clusters(one.reset_index())
    if name == "slides":
        drawn = draw_scores(label, a, cluster, draws, seed)[0] - draw_scores(label, b, cluster, draws, seed)[0]
        drawn = drawn[np.isfinite(drawn)]
        told = f"difference, bootstrap over {len(np.unique(cluster)):,} slides"
        _tell(told, interval(difference.value, drawn), f", {np.mean(drawn > 0):.1%} of {len(drawn):,} draws above 0")
    else:
        say("no slides are known: --slides FILE gives the interval that counts, which is wider.")


def _check_draws(draws: int, seed: int) -> None:
    if draws < 100:
        raise UserError(f"--draws {draws}: should be at least 100, for 95 % intervals.")
    if seed < 0:
        raise UserError(f"--seed {seed}: should be at least 0.")


def _tell(what: str, value: Interval, more: str) -> None:
    say(f"{what}: {value.value:+.4f} (95 % {value.low:+.4f} to {value.high:+.4f}){more}")


def _read(target: Path, labels: Path | None, slides: Path | None) -> Judged:
    data = None
    if (target / "oof.csv").is_file():
        file, report = target / "oof.csv", target / "report"
        data = _data(read_checkpoint(Run(target / "fold_0").last)["pcam"]["config"]["data"])
    elif target.is_dir():
        run, report = Run(target), target / "report"
        checkpoint = run.best if run.best.is_file() else run.last
        if not checkpoint.is_file():
            raise UserError(f"{target}: neither a run nor a finished cross-validation: no checkpoints/, no oof.csv.")
        data = PCamCLI(["validate", "--ckpt_path", str(checkpoint)]).datamodule
        file = run.predictions("val")
    else:
        # Its own name: a run's report holds the temperature for predict, which no test label may have a say in.
        file, report = target, target.with_name(f"{target.stem}_report")
    rows = read_labelled(file, labels)
    if slides is not None:
        rows["slide"] = rows["id"].map(read_slides(slides))
        if unknown := int(rows["slide"].isna().sum()):
            raise UserError(f"{slides}: {unknown:,} of {len(rows):,} patches have no slide there.")
    return Judged(rows, report, data)


def _data(config: dict[str, Any]) -> PCamDataModule | None:
    """Return the data that pictures are taken from; None, said aloud, where it is not there any more."""
    data = PCamDataModule(
        Path(config["root"]), val_fraction=0, cache_dir=Path(config["cache_dir"]) if config["cache_dir"] else None
    )
    try:
        data.setup("fit")
    except UserError as error:
        say(f"no pictures: {error}")
        return None
    return data


def _clusters(rows: pd.DataFrame) -> tuple[np.ndarray, str]:
    return (rows["slide"].to_numpy(), "slides") if "slide" in rows else (rows["id"].to_numpy(), "patches")


def _judge(rows: pd.DataFrame, draws: int, seed: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return the report's numbers, the cross-calibrated logits, and the decisions at the cross-fitted threshold."""
    label, logit = rows["label"].to_numpy(dtype=np.int64), rows["logit"].to_numpy()
    cluster, clustered_by = _clusters(rows)
    drawn = draw_scores(label, logit, cluster, draws, seed)
    part, parted_by = _parts(rows, cluster, clustered_by, seed)
    calibrated, chosen = np.empty_like(logit), np.empty(len(logit), dtype=bool)
    for mask, temperature in cross_fit(label, logit, part, fit_temperature):
        calibrated[mask] = logit[mask] / temperature
    for mask, threshold in cross_fit(label, logit, part, fit_threshold):
        chosen[mask] = logit[mask] >= threshold
    report: dict[str, Any] = {
        "patches": len(rows),
        "tumour_share": float(label.mean()),
        "clusters": len(np.unique(cluster)),
        "clustered_by": clustered_by,
        "cross_fitted_over": parted_by,
        "draws": draws,
        "auroc": interval(auroc(label, logit), drawn[0])._asdict(),
        "average_precision": interval(average_precision(label, logit), drawn[1])._asdict(),
        "at_0.5": _told(operate(label, logit >= 0)),
        "at_threshold": _told(operate(label, chosen)),
        "threshold": float(expit(fit_threshold(label, logit))),
        "temperature": fit_temperature(label, logit),
        "sensitivity_at_specificity": {f"{rate:.2f}": rate_at(label, logit, specificity=rate) for rate in _RATES},
        "specificity_at_sensitivity": {f"{rate:.2f}": rate_at(label, logit, sensitivity=rate) for rate in _RATES},
        "calibration": {
            name: {"nll": nll(label, values), "brier": brier(label, values), "ece": calibration_error(label, values)}
            for name, values in (("as_it_is", logit), ("calibrated", calibrated))
        },
    }
    if "slide" in rows:
        report["slides"] = _by_slide(rows.assign(wrong=chosen != (label == 1)))
    return report, calibrated, chosen


def _parts(rows: pd.DataFrame, cluster: np.ndarray, clustered_by: str, seed: int) -> tuple[np.ndarray, str]:
    """Choose the parts that threshold and temperature are cross-fitted on, each left out in turn."""
    if clustered_by == "patches" and "fold" in rows:
        return rows["fold"].to_numpy(), "folds"
    part = split_groups(rows, cluster, [1 / PARTS] * PARTS, seed)
    rest = [rows["label"][part != one].nunique() for one in np.unique(part)]
    if min(rest) < 2 or len(rest) < 2:
        raise UserError(f"too few {clustered_by} with patches of each class to fit a threshold on some for the others.")
    return part, clustered_by


def _told(operation: Operation) -> dict[str, float]:
    rates = ("accuracy", "balanced_accuracy", "f1", "sensitivity", "specificity")
    return {**operation._asdict(), **{name: getattr(operation, name) for name in rates}}


def _by_slide(rows: pd.DataFrame) -> list[dict[str, Any]]:
    told = []
    for slide, of_slide in rows.groupby("slide"):
        label, logit = of_slide["label"].to_numpy(), of_slide["logit"].to_numpy()
        told.append(
            {
                "slide": str(slide),
                "patches": len(of_slide),
                "tumour_share": float(label.mean()),
                "auroc": auroc(label, logit) if 0 < label.mean() < 1 else None,
                "wrong": float(of_slide["wrong"].mean()),
                "nll": nll(label, logit),
            }
        )
    return sorted(told, key=lambda row: (-row["wrong"], -row["nll"]))


def _siblings(folder: Path) -> list[dict[str, Any]]:
    """List the runs of the same recipe and data, this one among them, with their split and their scores."""
    own, told = _recipe(folder), []
    for config in sorted(folder.absolute().parent.parent.glob("*/*/config.yaml")):
        run = config.parent
        try:
            if _recipe(run) != own:
                continue
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            continue  # a folder of somebody else's
        scores: dict[str, Any] = {}
        for name in ("validate.json", "test.json"):
            if (run / name).is_file():
                scores |= json.loads((run / name).read_text(encoding="utf-8"))
        told.append(
            {
                "run": f"{run.parent.name}/{run.name}",
                "split": _kind(_options(run)["data"]),
                "val": scores.get("val/auroc"),
                "test": scores.get("test/auroc"),
            }
        )
    return told


def _options(folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return options


def _recipe(folder: Path) -> dict[str, Any]:
    """Return a run's options but for those that choose its split."""
    options = _options(folder)
    return {
        "model": options["model"],
        "data": {name: value for name, value in options["data"].items() if name not in (*SPLIT_OPTIONS, "cache_dir")},
        "max_epochs": options["trainer"]["max_epochs"],
    }


def _kind(data: dict[str, Any]) -> str:
    if data.get("split_file"):
        return f"as {data['split_file']}"
    slides = data.get("slides")
    kind = "groups that look alike" if slides == "appearance" else "whole slides" if slides else "random"
    return f"{kind}, fold {data['fold'] + 1} of {data['folds']}" if data.get("folds") else kind
