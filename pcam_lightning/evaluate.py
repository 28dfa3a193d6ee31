"""evaluate and compare: labelled predictions -> report.html and report.json, and a difference with its interval."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy.special import expit

from pcam_lightning import __version__
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.files import write_whole
from pcam_lightning.messages import UserError, say
from pcam_lightning.parser import PCamCLI
from pcam_lightning.predictions import read_labelled
from pcam_lightning.report import render
from pcam_lightning.run import Run, run_of
from pcam_lightning.scores import (
    TEMPERATURES,
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
from pcam_lightning.siblings import siblings
from pcam_lightning.split import Leak, find_leak, split_groups
from pcam_lightning.table import UNKNOWN_SLIDE, read_slides

PARTS = 5  # of slides or patches, for what is fitted on all but one of them
FEW = 20  # slides: with fewer a bootstrap over them gives intervals that are too narrow
_RATES = (0.90, 0.95, 0.99)


class Judged(NamedTuple):
    """Labelled predictions: `rows` has id, label, logit and perhaps slide and fold."""

    rows: pd.DataFrame
    report: Path  # of the page and the numbers, without .html and .json
    data: PCamDataModule | None = None  # where its pictures are; of a cross-validation, split as for its first fold
    made_by: dict[str, Any] | None = None  # checkpoint of a single run: `step` of training, `tta`
    split: dict[str, Any] | None = None  # options that the folds, or validation part, were drawn by
    chosen_by_these: bool = False  # the checkpoint is the epoch that was best on these very patches


def evaluate(
    target: Path,
    labels: Path | None = None,
    slides: Path | None = None,
    root: Path | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> None:
    """Judge a run, a cross-validation or a file of predictions: report.html and report.json.

    Args:
        target: a run's folder (its best checkpoint is validated again), a cross-validation's, or a CSV with id,logit or
            a submission.
        labels: CSV with id,label, for a CSV that has no labels itself.
        slides: CSV with id,wsi, where the slides are not known already.
        root: data folder, where it has moved since the run.
        draws: bootstrap samples for the intervals.
        seed: of the bootstrap and of the parts that threshold and temperature are cross-fitted on.
    """
    _check_draws(draws, seed)
    judged = _read(target, labels, slides, root)
    rows = judged.rows
    report, calibrated, chosen = _judge(rows, draws, seed)
    report |= {"target": str(target), "version": __version__, "seed": seed, "made_by": judged.made_by}
    report["chosen_by_these"] = judged.chosen_by_these
    leak = _leak(judged, slides)
    report["leak"] = f"This score {leak.verb}: {leak.told}." if leak.told else ""
    if target.is_dir():
        report["splits"] = siblings(target)
        if (target / "oof.csv").is_file():
            report["folds"] = _folds(rows)
    page = render(rows, judged.data, report, calibrated, chosen)
    folder, name = judged.report.parent, judged.report.name
    write_whole(folder / f"{name}.json", json.dumps(report, indent=2) + "\n")
    write_whole(folder / f"{name}.html", page)
    value = report["auroc"]
    bounds = "no interval" if value["low"] is None else f"95 % {value['low']:.4f} to {value['high']:.4f}"
    say(
        f"AUROC {value['value']:.4f} ({bounds}, over {report['clusters']:,} {report['clustered_by']}), "
        f"n = {report['patches']:,}."
    )
    for told in (*report["warnings"], report["leak"]):
        if told:
            say(told)
    say(f"{folder / name}.html: open it in a browser.")


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
    read = [_read(target, None, slides, pictures=False) for target in (first, second)]
    one, other = (judged.rows.set_index("id") for judged in read)
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
    for target, judged, logit in zip((first, second), read, (a, b), strict=True):
        best = " (best.ckpt, chosen by these patches)" if judged.chosen_by_these else ""
        say(f"{target}{best}: AUROC {auroc(label, logit):.4f}")
    say(f"n = {len(label):,} patches")
    difference, p = delong(label, a, b)
    _tell("difference, patches taken for independent (DeLong)", difference, f", p = {p:.2g}")
    cluster, name = _clusters((one if "slide" in one else other).reset_index())
    count = len(np.unique(cluster))
    if name == "slides" and count > 1:
        drawn = draw_scores(label, a, cluster, draws, seed)[0] - draw_scores(label, b, cluster, draws, seed)[0]
        drawn = drawn[np.isfinite(drawn)]
        told = f"difference, bootstrap over {count:,} slides"
        _tell(told, interval(difference.value, drawn), f", {np.mean(drawn > 0):.1%} of {len(drawn):,} draws above 0")
        if count < FEW:
            say(f"{count} slides are few: an interval from fewer than {FEW} is too narrow.")
    elif name == "slides":
        say("all patches are of one slide: what another slide would say cannot be told.")
    else:
        say("no slides are known: --slides FILE gives the interval that counts.")


def _check_draws(draws: int, seed: int) -> None:
    if draws < 100:
        raise UserError(f"--draws {draws}: should be at least 100, for 95 % intervals.")
    if seed < 0:
        raise UserError(f"--seed {seed}: should be at least 0.")


def _tell(what: str, value: Interval, more: str) -> None:
    bounds = "no interval" if value.low is None else f"95 % {value.low:+.4f} to {value.high:+.4f}"
    say(f"{what}: {value.value:+.4f} ({bounds}){more}")


def _read(
    target: Path, labels: Path | None, slides: Path | None, root: Path | None = None, *, pictures: bool = True
) -> Judged:
    report = target / "report"
    if (target / "oof.csv").is_file():
        options = yaml.safe_load(Run(target).config.read_text(encoding="utf-8"))["data"]
        data = _data(options, root, Run(target / "fold_0").split) if pictures else None
        rows = read_labelled(target / "oof.csv", labels)
        judged = Judged(rows, report, data, split=options)
    elif target.is_dir():
        run = Run(target)
        checkpoint = run.best if run.best.is_file() else run.last
        if not checkpoint.is_file():
            raise UserError(f"{target}: neither a run nor a finished cross-validation: no checkpoints/, no oof.csv.")
        moved = [] if root is None else ["--data.root", str(root)]
        try:
            validated = PCamCLI(["validate", "--ckpt_path", str(checkpoint), *moved])
        except UserError as error:
            raise UserError(f"{error} (evaluate --root names a folder that has moved.)") from error
        assert validated.checkpoint is not None
        rows = read_labelled(run_of(checkpoint).predictions("val"), labels)
        made_by = {"step": validated.checkpoint["global_step"], "tta": validated.model.hparams["tta"]}
        split = validated.checkpoint["pcam"]["config"]["data"]
        judged = Judged(rows, report, validated.datamodule, made_by, split, checkpoint == run.best)
    else:
        # Its own name: a run's report holds the temperature for predict, which no test label may have a say in.
        judged = Judged(read_labelled(target, labels), target.with_name(f"{target.stem}_report"))
    if slides is not None:
        judged.rows["slide"] = judged.rows["id"].map(read_slides(slides))
        if unknown := int(judged.rows["slide"].isna().sum()):
            raise UserError(f"{slides}: {unknown:,} of {len(judged.rows):,} patches have no slide there; complete it.")
    return judged


def _data(options: dict[str, Any], root: Path | None, split: Path) -> PCamDataModule | None:
    """Return the data that pictures are taken from; None, said aloud, where it is not there any more."""
    cache_dir = Path(options["cache_dir"]) if options["cache_dir"] else None
    data = PCamDataModule(root or Path(options["root"]), split_file=split, cache_dir=cache_dir)
    try:
        data.setup("fit")
    except UserError as error:
        say(f"no pictures: {error}")
        return None
    return data


def _leak(judged: Judged, slides: Path | None) -> Leak:
    """Find out whether slides of these patches trained the network too; nothing of a file of predictions."""
    rows, data, split = judged.rows, judged.data, judged.split
    if split is None:
        return Leak()
    if "fold" in rows:
        if "slide" not in rows:  # those that were known went into the file
            return Leak("patches of one slide stand in several folds")
        several = int((rows.groupby("slide")["fold"].transform("nunique") > 1).sum())
        if several:
            return Leak(f"{several:,} of {len(rows):,} patches are of slides that stand in several folds")
        unknown = int((rows["slide"] == UNKNOWN_SLIDE).sum())
        told = f"{unknown:,} patches are of unknown slides, which may stand in several folds"
        return Leak(told, sure=False) if unknown else Leak()
    assert data is not None
    assert data.table is not None
    assert data.val_mask is not None
    table = data.table
    if slides is not None:
        table = table.assign(slide=table["id"].map(read_slides(slides)))
    return find_leak(table, data.val_mask, by_file=split.get("split_file") is not None)


def _folds(rows: pd.DataFrame) -> dict[str, float]:
    each = [auroc(fold["label"].to_numpy(), fold["logit"].to_numpy()) for _, fold in rows.groupby("fold")]
    return {"count": len(each), "mean": float(np.mean(each)), "sd": float(np.std(each, ddof=1))}


def _clusters(rows: pd.DataFrame) -> tuple[np.ndarray, str]:
    return (rows["slide"].to_numpy(), "slides") if "slide" in rows else (rows["id"].to_numpy(), "patches")


def _judge(rows: pd.DataFrame, draws: int, seed: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return the report's numbers, the cross-calibrated logits, and the decisions at the cross-fitted threshold."""
    label, logit = rows["label"].to_numpy(dtype=np.int64), rows["logit"].to_numpy()
    cluster, clustered_by = _clusters(rows)
    drawn = draw_scores(label, logit, cluster, draws, seed)
    part, parted_by = _parts(rows, cluster, clustered_by, seed)
    count, of_one_class = len(np.unique(cluster)), int((~np.isfinite(drawn[0])).sum())
    warnings = []
    if clustered_by == "patches":
        warnings.append("No slides are known: these intervals take patches for independent, and are too narrow.")
    elif count < FEW:
        warnings.append(f"{count} slides are few: intervals from fewer than {FEW} are too narrow.")
    if of_one_class:
        warnings.append(f"{of_one_class:,} of {draws:,} draws were of one class and are left out: too few slides.")
    if parted_by != clustered_by and parted_by != "folds":
        warnings.append(f"Threshold and temperature are cross-fitted over {parted_by}, for want of {clustered_by}.")
    calibrated, chosen = np.empty_like(logit), np.empty(len(logit), dtype=bool)
    for mask, temperature in cross_fit(label, logit, part, fit_temperature):
        calibrated[mask] = logit[mask] / temperature
    for mask, threshold in cross_fit(label, logit, part, fit_threshold):
        chosen[mask] = logit[mask] >= threshold
    of_all = fit_temperature(label, logit)
    if not (fits := 1.01 * TEMPERATURES[0] < of_all < 0.99 * TEMPERATURES[1]):
        warnings.append("No temperature fits: too few patches are wrong, or too few are right.")
    report: dict[str, Any] = {
        "patches": len(rows),
        "tumour_share": float(label.mean()),
        "clusters": count,
        "clustered_by": clustered_by,
        "cross_fitted_over": parted_by,
        "draws": draws,
        "warnings": warnings,
        "auroc": interval(auroc(label, logit), drawn[0])._asdict(),
        "average_precision": interval(average_precision(label, logit), drawn[1])._asdict(),
        "at_0.5": _told(operate(label, logit >= 0)),
        "at_threshold": _told(operate(label, chosen)),
        "threshold": float(expit(fit_threshold(label, logit))),
        "temperature": of_all if fits else None,
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
    choices = [(cluster, clustered_by), (rows["id"].to_numpy(), "patches")]
    if clustered_by == "patches" and "fold" in rows:
        choices.insert(0, (rows["fold"].astype(str).to_numpy(), "folds"))
    for group, name in choices:
        part = group if name == "folds" else split_groups(rows, group, [1 / PARTS] * PARTS, seed)
        rest = [rows["label"][part != one].nunique() for one in np.unique(part)]
        if len(rest) > 1 and min(rest) == 2:
            return part, name
    raise UserError("too few patches of each class to fit a threshold on some for the others.")


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
