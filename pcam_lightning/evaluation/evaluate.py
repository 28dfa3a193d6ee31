"""evaluate: labeled predictions -> report.html and report.json."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from pcam_lightning import __version__
from pcam_lightning.data.csv_tables import read_labels, without_suffix
from pcam_lightning.data.splits import split_groups
from pcam_lightning.data.table_file import LEVELS
from pcam_lightning.evaluation.abstain import (
    areas_under_risk_coverage,
    check_abstain,
    drop_unknown,
    find_decisions,
    report_abstention,
    report_ood,
)
from pcam_lightning.evaluation.group_scores import by_group
from pcam_lightning.evaluation.labeled_predictions import (
    FEW,
    LabeledPredictions,
    check_bootstrap,
    clusters,
    describe_leakage,
    open_target,
    read_labeled_predictions,
)
from pcam_lightning.evaluation.report import render
from pcam_lightning.evaluation.report_metrics import score_with_intervals
from pcam_lightning.metrics.calibration import (
    TEMPERATURES,
    brier_score,
    cross_fit,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from pcam_lightning.metrics.classification import (
    RATES,
    ConfusionCounts,
    auroc,
    confusion_counts,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    youden_threshold,
)
from pcam_lightning.training.demo_run import NOT_REAL, is_synthetic
from pcam_lightning.training.feature_distance import FeatureDistance, features_file, measure_feature_distance
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.errors import UserError, rank_zero_info

PARTS = 5  # of slides or patches, for what is fitted on all but one of them
_RATES = (0.90, 0.95, 0.99)


class Evaluation(NamedTuple):
    """What `evaluate` found.

    Attributes:
        report: the numbers, as report.json has them.
        page: report.html.
    """

    report: dict[str, Any]
    page: Path


def evaluate(
    target: Path | str,
    labels: Path | None = None,
    slides: Path | None = None,
    root: Path | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    abstain: float | None = None,
) -> Evaluation:
    """Score a run, a cross-validation or a file of predictions: report.html and report.json.

    Args:
        target: a run's folder (its best checkpoint is validated again), a cross-validation's, a CSV with id,logit or a
            submission, or pcam or pcam-small, the networks that come with the package, with `root`.
        labels: CSV with id,label, for a CSV that has no labels itself.
        slides: CSV with id,wsi, where the slides are not known already.
        root: data folder, where it has moved since the run.
        bootstrap_samples: for the intervals.
        seed: of the bootstrap and of the parts that thresholds and temperature are cross-fitted on.
        abstain: share of each class that may be called the other one, such as 0.05; patches between the two thresholds
            that follow are called neither. By default all are called.

    Returns:
        The numbers and the page, which are in report.json and report.html.

    Raises:
        UserError: something is missing or malformed.
    """
    target = Path(target)
    check_bootstrap(bootstrap_samples, seed)
    check_abstain(abstain)
    opened = open_target(target)
    predictions = read_labeled_predictions(opened, labels, slides, root)
    rows = drop_unknown(predictions.rows, target)
    if abstain is not None and isinstance(opened, LoadedRun) and not opened.bundled:
        _keep_features(opened, predictions)
    report, calibrated, chosen = _score(rows, bootstrap_samples, seed, abstain)
    report |= {"target": str(target), "version": __version__, "seed": seed, "made_by": predictions.made_by}
    report["root"] = None if predictions.data is None else str(predictions.data.root)
    report["chosen_by_these"] = predictions.chosen_by_these
    _report_missing(report, rows, labels)
    _report_leakage(report, predictions)
    synthetic = predictions.split is not None and is_synthetic(root or predictions.split["root"])
    report["synthetic"] = f"Synthetic tissue. {NOT_REAL}" if synthetic else ""
    if (target / "oof.csv").is_file():
        report["folds"] = _folds(rows)
    page = render(rows, predictions.data, report, calibrated, chosen)
    folder, name = predictions.report.parent, predictions.report.name
    atomic_write(folder / f"{name}.json", json.dumps(report, indent=2) + "\n")
    atomic_write(folder / f"{name}.html", page)
    return Evaluation(report, folder.absolute() / f"{name}.html")


def _report_missing(report: dict[str, Any], rows: pd.DataFrame, labels: Path | None) -> None:
    """Add how many patches of a file of labels have no prediction, and a warning of them."""
    if labels is None:
        return
    labeled = read_labels(labels)["id"]
    missing = report["labels_without_prediction"] = int((~labeled.isin(without_suffix(rows["id"]))).sum())
    if missing:
        message = f"{missing:,} of the {len(labeled):,} patches in {labels} have no prediction and are not scored."
        report["warnings"].insert(0, message)


def _report_leakage(report: dict[str, Any], predictions: LabeledPredictions) -> None:
    """Add why the numbers are optimistic, and drop what `predict` would take from patches that trained the network."""
    report["training_overlap"], report["leak"] = predictions.overlap, describe_leakage(predictions)
    if not predictions.overlap:
        return
    message = f"{predictions.overlap:,} of these {report['patches']:,} patches trained the network: all numbers are"
    report["warnings"].insert(0, f"{message} optimistic.")
    report["temperature"] = None  # what it was fitted on says nothing about patches that are new
    report["thresholds"] = None


def _keep_features(loaded: LoadedRun, predictions: LabeledPredictions) -> None:
    """Measure features of some training patches, by which `predict` detects out-of-distribution patches, if needed."""
    if predictions.data is None or predictions.made_by is None:
        return
    file = features_file(loaded)
    with suppress(UserError):  # missing or damaged
        if FeatureDistance.read(file).is_of(loaded.checkpoint):
            return
    file.unlink(missing_ok=True)
    try:
        measure_feature_distance(loaded, predictions.data).write(file)
    except UserError as error:
        rank_zero_info(f"out-of-distribution patches will not be marked: {error}")


def _folds(rows: pd.DataFrame) -> dict[str, float]:
    each = [auroc(fold["label"].to_numpy(), fold["logit"].to_numpy()) for _, fold in rows.groupby("fold")]
    return {"count": len(each), "mean": float(np.mean(each)), "sd": float(np.std(each, ddof=1))}


def _score(
    rows: pd.DataFrame, bootstrap_samples: int, seed: int, abstain: float | None
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return the report's numbers, the cross-calibrated logits, and the decisions at the cross-fitted threshold."""
    label, logit = rows["label"].to_numpy(dtype=np.int64), rows["logit"].to_numpy()
    cluster, clustered_by = clusters(rows)
    scores, of_one_class = score_with_intervals(label, logit, cluster, bootstrap_samples, seed)
    part, parted_by = _parts(rows, cluster, clustered_by, seed)
    count = len(np.unique(cluster))
    warnings = _interval_warnings(count, clustered_by, of_one_class, bootstrap_samples)
    if parted_by != clustered_by and parted_by != "folds":
        warnings.append(f"Threshold and temperature are cross-fitted over {parted_by}, for want of {clustered_by}.")
    calibrated, chosen = np.empty_like(logit), np.empty(len(logit), dtype=bool)
    for mask, temperature in cross_fit(label, logit, part, fit_temperature):
        calibrated[mask] = logit[mask] / temperature
    for mask, threshold in cross_fit(label, logit, part, youden_threshold):
        chosen[mask] = logit[mask] >= threshold
    of_all = fit_temperature(label, logit)
    if not (fits := 1.01 * TEMPERATURES[0] < of_all < 0.99 * TEMPERATURES[1]):
        warnings.append("No temperature fits: too few patches are wrong, or too few are right.")
    report: dict[str, Any] = {
        "patches": len(rows),
        "tumor_share": float(label.mean()),
        "clusters": count,
        "clustered_by": clustered_by,
        "cross_fitted_over": parted_by,
        "draws": bootstrap_samples,
        "warnings": warnings,
        **{name: interval._asdict() for name, interval in scores.items()},
        "at_0.5": _rates(confusion_counts(label, logit >= 0)),
        "at_threshold": _rates(confusion_counts(label, chosen)),
        "threshold": float(expit(youden_threshold(label, logit))),
        "temperature": of_all if fits else None,
        "sensitivity_at_specificity": {
            f"{rate:.2f}": sensitivity_at_specificity(label, logit, rate) for rate in _RATES
        },
        "specificity_at_sensitivity": {
            f"{rate:.2f}": specificity_at_sensitivity(label, logit, rate) for rate in _RATES
        },
        "calibration": {"as_it_is": _calibration(label, logit), "calibrated": _calibration(label, calibrated)},
    }
    rows, thresholds = find_decisions(rows, part, abstain)
    report["abstention"] = report_abstention(rows, abstain)
    report["thresholds"] = thresholds
    report["ood"] = report_ood(rows)
    report["area_under_risk_coverage"] = areas_under_risk_coverage(rows)
    rows = rows.assign(wrong=chosen != (label == 1))
    report |= {f"{level}s": by_group(rows, level, bootstrap_samples, seed) for level in LEVELS if level in rows}
    return report, calibrated, chosen


def _interval_warnings(count: int, clustered_by: str, of_one_class: int, bootstrap_samples: int) -> list[str]:
    """Return why the intervals may be too narrow."""
    warnings = []
    if clustered_by == "patches":
        warnings.append("No slides are known: these intervals take patches for independent, and are too narrow.")
    elif count < FEW:
        warnings.append(f"{count} {clustered_by} are few: intervals from fewer than {FEW} are too narrow.")
    if of_one_class:
        warnings.append(
            f"{of_one_class:,} of {bootstrap_samples:,} draws were of one class and left out: too few {clustered_by}."
        )
    return warnings


def _calibration(label: np.ndarray, logit: np.ndarray) -> dict[str, float]:
    return {
        "nll": negative_log_likelihood(label, logit),
        "brier": brier_score(label, logit),
        "ece": expected_calibration_error(label, logit),
    }


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


def _rates(counts: ConfusionCounts) -> dict[str, float]:
    return {**counts._asdict(), **{name: getattr(counts, name) for name in sorted(RATES)}}
