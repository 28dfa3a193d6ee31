"""evaluate: labelled predictions -> report.html and report.json."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from pcam_lightning import __version__
from pcam_lightning.files import write_whole
from pcam_lightning.judged import FEW, check_draws, clusters, find_judged_leak, read_judged
from pcam_lightning.messages import UserError, say
from pcam_lightning.rehearsal import NOTHING_REAL, is_drawn
from pcam_lightning.report import render
from pcam_lightning.run import Run
from pcam_lightning.scores import (
    TEMPERATURES,
    Operation,
    auroc,
    average_precision,
    brier,
    calibration_error,
    cross_fit,
    draw_scores,
    fit_temperature,
    fit_threshold,
    interval,
    nll,
    operate,
    rate_at,
)
from pcam_lightning.siblings import siblings
from pcam_lightning.split import split_groups
from pcam_lightning.stages import PROG

PARTS = 5  # of slides or patches, for what is fitted on all but one of them
_RATES = (0.90, 0.95, 0.99)


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
    check_draws(draws, seed)
    judged = read_judged(target, labels, slides, root)
    rows = judged.rows
    report, calibrated, chosen = _judge(rows, draws, seed)
    report |= {"target": str(target), "version": __version__, "seed": seed, "made_by": judged.made_by}
    report["chosen_by_these"] = judged.chosen_by_these
    report["training_overlap"] = judged.overlap
    if judged.overlap:
        report["warnings"].insert(
            0, f"{judged.overlap:,} of these {len(rows):,} patches trained the network: all numbers are optimistic."
        )
        report["temperature"] = None  # what it was fitted on says nothing about patches that are new
    leak = find_judged_leak(judged)
    report["leak"] = f"This score {leak.verb}: {leak.told}." if leak.told else ""
    drawn = judged.split is not None and is_drawn(root or judged.split["root"])
    report["drawn"] = f"Drawn tissue. {NOTHING_REAL}" if drawn else ""
    if target.is_dir():
        report["splits"] = siblings(target)
        if (target / "oof.csv").is_file():
            report["folds"] = _folds(rows)
    ways_on = {}
    if judged.made_by is not None:
        checkpoint = Run(target).best if judged.chosen_by_these else Run(target).last
        explain, predict = ["explain", str(target)], ["predict", "--ckpt_path", str(checkpoint)]
        if root is not None:
            explain, predict = [*explain, "--root", str(root)], [*predict, "--data.root", str(root)]
        ways_on["shows where in its most wrong patches the network finds tumour"] = f"{PROG} {shlex.join(explain)}"
        ways_on["writes a submission for test/"] = f"{PROG} {shlex.join(predict)}"
    page = render(rows, judged.data, report, calibrated, chosen, ways_on)
    folder, name = judged.report.parent, judged.report.name
    write_whole(folder / f"{name}.json", json.dumps(report, indent=2) + "\n")
    write_whole(folder / f"{name}.html", page)
    value = report["auroc"]
    bounds = "no interval" if value["low"] is None else f"95 % {value['low']:.4f} to {value['high']:.4f}"
    say(
        f"AUROC {value['value']:.4f} ({bounds}, over {report['clusters']:,} {report['clustered_by']}), "
        f"n = {report['patches']:,}."
    )
    for told in (report["drawn"], *report["warnings"], report["leak"]):
        if told:
            say(told)
    say(f"{folder / name}.html: open it in a browser.")


def _folds(rows: pd.DataFrame) -> dict[str, float]:
    each = [auroc(fold["label"].to_numpy(), fold["logit"].to_numpy()) for _, fold in rows.groupby("fold")]
    return {"count": len(each), "mean": float(np.mean(each)), "sd": float(np.std(each, ddof=1))}


def _judge(rows: pd.DataFrame, draws: int, seed: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return the report's numbers, the cross-calibrated logits, and the decisions at the cross-fitted threshold."""
    label, logit = rows["label"].to_numpy(dtype=np.int64), rows["logit"].to_numpy()
    cluster, clustered_by = clusters(rows)
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
