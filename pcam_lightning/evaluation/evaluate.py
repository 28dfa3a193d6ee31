"""evaluate: score labeled predictions and write report.html and report.json."""

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
from pcam_lightning.evaluation.decisions import (
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
from pcam_lightning.evaluation.report_metrics import score_with_intervals
from pcam_lightning.evaluation.report_page import render
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

CROSS_FIT_FOLDS = 5  # folds of slides or patches to fit threshold and temperature
_RATES = (0.90, 0.95, 0.99)


class Evaluation(NamedTuple):
    """The result of `evaluate`.

    Attributes:
        report: contents of report.json.
        page: path of report.html.
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
    """Score a run, a cross-validation or a predictions file, and write report.html and report.json.

    Args:
        target: folder of a run, whose best checkpoint is validated again, or of a cross-validation; CSV file with
            id,logit or a submission; or pcam or pcam-small (included in the package; requires `root`).
        labels: CSV file with id,label, if the predictions file has no labels.
        slides: CSV file with id,wsi, if slides are not known yet.
        root: data folder, if it has moved since the run.
        bootstrap_samples: number of bootstrap samples for the intervals.
        seed: random seed for the bootstrap and the cross-fitting folds.
        abstain: maximum error rate of each class, such as 0.05; patches between the resulting thresholds are called
            neither normal nor tumor. By default, all patches are called.

    Returns:
        The contents of report.json and the path of report.html.

    Raises:
        UserError: an input is missing or malformed.
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
    """Count labeled patches without a prediction, and warn about them."""
    if labels is None:
        return
    labeled = read_labels(labels)["id"]
    missing = report["labels_without_prediction"] = int((~labeled.isin(without_suffix(rows["id"]))).sum())
    if missing:
        message = f"{missing:,} of the {len(labeled):,} patches in {labels} have no prediction and are not scored."
        report["warnings"].insert(0, message)


def _report_leakage(report: dict[str, Any], predictions: LabeledPredictions) -> None:
    """Add the reasons why scores are optimistic; with training patches, drop temperature and thresholds."""
    report["training_overlap"], report["leak"] = predictions.overlap, describe_leakage(predictions)
    if not predictions.overlap:
        return
    message = f"{predictions.overlap:,} of these {report['patches']:,} patches trained the network: all scores are"
    report["warnings"].insert(0, f"{message} optimistic.")
    report["temperature"] = None  # not valid for new patches if fitted on training patches
    report["thresholds"] = None


def _keep_features(loaded: LoadedRun, predictions: LabeledPredictions) -> None:
    """Measure features of training patches if needed; `predict` uses them to detect out-of-distribution patches."""
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
        rank_zero_info(f"predict will not mark out-of-distribution patches: {error}")


def _folds(rows: pd.DataFrame) -> dict[str, float]:
    each = [auroc(fold["label"].to_numpy(), fold["logit"].to_numpy()) for _, fold in rows.groupby("fold")]
    return {"count": len(each), "mean": float(np.mean(each)), "sd": float(np.std(each, ddof=1))}


def _score(
    rows: pd.DataFrame, bootstrap_samples: int, seed: int, abstain: float | None
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return the numbers of the report, cross-fitted calibrated logits, and decisions at cross-fitted thresholds."""
    label, logit = rows["label"].to_numpy(dtype=np.int64), rows["logit"].to_numpy()
    cluster, clustered_by = clusters(rows)
    scores, of_one_class = score_with_intervals(label, logit, cluster, bootstrap_samples, seed)
    fold, folded_by = _cross_fit_folds(rows, cluster, clustered_by, seed)
    count = len(np.unique(cluster))
    warnings = _interval_warnings(count, clustered_by, of_one_class, bootstrap_samples)
    if folded_by != clustered_by and folded_by != "folds":
        warnings.append(
            f"Threshold and temperature are cross-fitted over {folded_by}, because there are too few {clustered_by}."
        )
    calibrated, chosen = np.empty_like(logit), np.empty(len(logit), dtype=bool)
    for mask, temperature in cross_fit(label, logit, fold, fit_temperature):
        calibrated[mask] = logit[mask] / temperature
    for mask, threshold in cross_fit(label, logit, fold, youden_threshold):
        chosen[mask] = logit[mask] >= threshold
    of_all = fit_temperature(label, logit)
    if not (fits := 1.01 * TEMPERATURES[0] < of_all < 0.99 * TEMPERATURES[1]):
        warnings.append("Temperature scaling failed: too few patches are wrong, or too few are correct.")
    report: dict[str, Any] = {
        "patches": len(rows),
        "tumor_share": float(label.mean()),
        "clusters": count,
        "clustered_by": clustered_by,
        "cross_fitted_over": folded_by,
        "bootstrap_samples": bootstrap_samples,
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
    rows, thresholds = find_decisions(rows, fold, abstain)
    report["abstention"] = report_abstention(rows, abstain)
    report["thresholds"] = thresholds
    report["ood"] = report_ood(rows)
    report["area_under_risk_coverage"] = areas_under_risk_coverage(rows)
    rows = rows.assign(wrong=chosen != (label == 1))
    report |= {f"{level}s": by_group(rows, level, bootstrap_samples, seed) for level in LEVELS if level in rows}
    return report, calibrated, chosen


def _interval_warnings(count: int, clustered_by: str, of_one_class: int, bootstrap_samples: int) -> list[str]:
    """Return warnings about intervals that are too narrow."""
    warnings = []
    if clustered_by == "patches":
        warnings.append("Intervals are too narrow: slides are unknown, so patches are treated as independent.")
    elif count < FEW:
        name = clustered_by.removesuffix("s") if count == 1 else clustered_by
        warnings.append(f"Intervals are too narrow: they are based on {count} {name}, fewer than {FEW}.")
    if of_one_class:
        warnings.append(
            f"{of_one_class:,} of {bootstrap_samples:,} bootstrap samples had a single class and were dropped: too few "
            f"{clustered_by}."
        )
    return warnings


def _calibration(label: np.ndarray, logit: np.ndarray) -> dict[str, float]:
    return {
        "nll": negative_log_likelihood(label, logit),
        "brier": brier_score(label, logit),
        "ece": expected_calibration_error(label, logit),
    }


def _cross_fit_folds(rows: pd.DataFrame, cluster: np.ndarray, clustered_by: str, seed: int) -> tuple[np.ndarray, str]:
    """Return the cross-fitting fold of each patch, and the groups that the folds consist of."""
    choices = [(cluster, clustered_by), (rows["id"].to_numpy(), "patches")]
    if clustered_by == "patches" and "fold" in rows:
        choices.insert(0, (rows["fold"].astype(str).to_numpy(), "folds"))
    for group, name in choices:
        fold = group if name == "folds" else split_groups(rows, group, [1 / CROSS_FIT_FOLDS] * CROSS_FIT_FOLDS, seed)
        rest = [rows["label"][fold != one].nunique() for one in np.unique(fold)]
        if len(rest) > 1 and min(rest) == 2:
            return fold, name
    raise UserError("too few patches of each class to cross-fit a threshold.")


def _rates(counts: ConfusionCounts) -> dict[str, float]:
    return {**counts._asdict(), **{name: getattr(counts, name) for name in sorted(RATES)}}
