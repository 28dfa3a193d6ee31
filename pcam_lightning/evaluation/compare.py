"""compare: the difference between two AUROCs on the same patches, with intervals."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pcam_lightning.data.csv_tables import looks_like_sha1
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.table_file import LEVELS
from pcam_lightning.evaluation.labeled_predictions import (
    FEW,
    check_bootstrap,
    clusters,
    describe_leakage,
    read_labeled_predictions,
)
from pcam_lightning.metrics.bootstrap import Interval, bootstrap_scores, delong_test, percentile_interval
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.utils.errors import UserError, rank_zero_info

SHOWN = 10  # maximum number of groups to print


def compare(
    first: Path, second: Path, slides: Path | None = None, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compute the difference between the AUROCs of two runs on the same patches, with intervals.

    Args:
        first: folder of a run or a cross-validation, or CSV file with id,label,logit.
        second: another one with the same patches.
        slides: CSV file with id,wsi, if slides are not known yet.
        bootstrap_samples: number of bootstrap samples.
        seed: random seed for the bootstrap.

    Returns:
        `patches`, the number of patches. `first` and `second`, each with `auroc`; `training_overlap`, the number of
        patches that trained the network; and `leak`, the reason why its AUROC is or may be optimistic. `delong`, the
        difference (first minus second) with `value`, `low`, `high` and `p`. `bootstrap`, the same from a bootstrap
        over the `clusters` given by `clustered_by`, or None without groups. `groups`, lists by center, patient and
        slide, if known, of `name`, both AUROCs and the difference, lowest first.
    """
    check_bootstrap(bootstrap_samples, seed)
    for target in (first, second):  # fail before the first run is validated
        if not target.exists():
            raise UserError(f"{target}: no such run, cross-validation or predictions file.")
    read = [read_labeled_predictions(target, None, slides, pictures=False) for target in (first, second)]
    one, other = _pair(first, second, *(predictions.rows.set_index("id") for predictions in read))
    _check_pixels(first, second, [predictions.data for predictions in read], one.index)
    label, a, b = (np.asarray(column) for column in (one["label"], one["logit"], other["logit"]))
    found: dict[str, Any] = {"patches": len(label)}
    for key, target, predictions, logit in zip(("first", "second"), (first, second), read, (a, b), strict=True):
        leak = describe_leakage(predictions)
        found[key] = {"auroc": auroc(label, logit), "training_overlap": predictions.overlap, "leak": leak}
        best = " (best.ckpt, selected on these patches)" if predictions.chosen_by_these else ""
        rank_zero_info(f"{target}{best}: AUROC {found[key]['auroc']:.4f}")
        if predictions.overlap:
            rank_zero_info(
                f"{target}: {predictions.overlap:,} of these patches trained its network; its AUROC is optimistic."
            )
        if leak:
            rank_zero_info(f"{target}: {leak[0].lower()}{leak[1:]}")
    rank_zero_info(f"n = {len(label):,} patches")
    difference, p = delong_test(label, a, b)
    _log_interval("difference, assuming independent patches (DeLong)", difference, f", p = {p:.2g}")
    found["delong"] = {**difference._asdict(), "p": p}
    cluster, name = clusters((one if set(LEVELS) & set(one) else other).reset_index())
    count = len(np.unique(cluster))
    found |= {"clustered_by": name, "clusters": count, "bootstrap": None, "groups": {}}
    if name == "patches":
        rank_zero_info("slides are unknown: use `slides` FILE for an interval over slides.")
    elif count == 1:
        rank_zero_info(f"no interval over {name}: all patches belong to one {name.removesuffix('s')}.")
    else:
        samples = _bootstrap_differences(label, a, b, cluster, bootstrap_samples, seed)
        above = f", {np.mean(samples > 0):.1%} of {len(samples):,} samples above 0"
        interval = percentile_interval(difference.value, samples)
        found["bootstrap"] = interval._asdict()
        _log_interval(f"difference, bootstrap over {count:,} {name}", interval, above)
        if count < FEW:
            rank_zero_info(f"the interval is too narrow: there are {count} {name}, fewer than {FEW}.")
    known = {level: (one if level in one else other)[level] for level in LEVELS if level in one or level in other}
    rows = pd.DataFrame({"label": label, "logit": a, "other": b, **known}, index=one.index).reset_index()
    for level in known:
        if len(set(rows[level])) > 1:
            found["groups"][level] = _compare_groups(rows, level, bootstrap_samples, seed)
    return found


def _bootstrap_differences(
    label: np.ndarray, a: np.ndarray, b: np.ndarray, cluster: np.ndarray, samples: int, seed: int
) -> np.ndarray:
    """Return the difference between both AUROCs in each bootstrap sample with both classes."""
    first, second = (bootstrap_scores(label, logit, cluster, samples, seed)[0] for logit in (a, b))
    difference: np.ndarray = (first - second)[np.isfinite(first)]
    return difference


def _compare_groups(rows: pd.DataFrame, level: str, samples: int, seed: int) -> list[dict[str, Any]]:
    """Compute and print the difference in each group of a level, lowest first.

    Args:
        rows: predictions with id, label, logit, `other` (the second logit), and the columns of the levels.
        level: center, patient or slide. Differences of centers get an interval over their patients or slides.
        samples: number of bootstrap samples.
        seed: random seed for the bootstrap.
    """
    found: list[dict[str, Any]] = []
    for name, group in rows.groupby(level):
        label, a, b = (group[column].to_numpy() for column in ("label", "logit", "other"))
        if label.min() == label.max():
            continue
        scores = (auroc(label, a), auroc(label, b))
        interval = Interval(scores[0] - scores[1], None, None)
        cluster, clustered_by = clusters(group.drop(columns=level))
        if level == LEVELS[0] and len(np.unique(cluster)) > 1:
            differences = _bootstrap_differences(label, a, b, cluster, samples, seed)
            interval = percentile_interval(interval.value, differences)
        both = {"first": scores[0], "second": scores[1]}
        found.append({"name": str(name), **both, **interval._asdict(), "clustered_by": clustered_by})
    found.sort(key=lambda group: (group["value"], group["name"]))
    more = f"; the {SHOWN} lowest of {len(found):,}" if len(found) > SHOWN else ""
    rank_zero_info(f"difference by {level}, lowest first{more}:")
    for one in found[:SHOWN]:
        bounds = ""
        if one["low"] is not None:
            bounds = f" (95 % {one['low']:+.4f} to {one['high']:+.4f}, over {one['clustered_by']})"
        rank_zero_info(f"  {one['name']}: {one['first']:.4f} - {one['second']:.4f} = {one['value']:+.4f}{bounds}")
    return found


def _pair(first: Path, second: Path, one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both predictions, indexed by id, in the order of the first.

    Raises:
        UserError: patches or labels differ, or a class has fewer than two patches.
    """
    if set(one.index) != set(other.index):
        both = len(set(one.index) & set(other.index))
        raise UserError(
            f"{first} has {len(one):,} patches and {second} has {len(other):,}, with {both:,} in common; a paired "
            "comparison needs the same patches: fit the second run with `data.split_file` FIRST/split.csv."
        )
    other = other.loc[one.index]
    if one["label"].value_counts().min() < 2:
        raise UserError(f"{first}: an interval needs at least two patches of each class.")
    if not one["label"].equals(other["label"]):
        raise UserError(f"{first} and {second}: the labels of some patches differ.")
    return one, other


def _check_pixels(first: Path, second: Path, data: list[PCamDataModule | None], ids: "pd.Index[str]") -> None:
    """Check that ids that are file names refer to the same patches in the data of both runs.

    Raises:
        UserError: pixels of some patches differ.
    """
    one, other = data
    if one is None or other is None or (one.resize, one.mpp) != (other.resize, other.mpp):
        return
    named = ids[~looks_like_sha1(ids.to_series())]
    first_sha1, second_sha1 = (each.table.set_index("id")["pixel_sha1"].loc[named] for each in (one, other))
    if differ := int((first_sha1 != second_sha1).sum()):
        raise UserError(
            f"{first} and {second}: {differ:,} of {len(ids):,} patches have the same id but different pixels in "
            f"{one.root} and {other.root}; a paired comparison needs the same patches."
        )


def _log_interval(name: str, value: Interval, more: str) -> None:
    bounds = "no interval" if value.low is None else f"95 % {value.low:+.4f} to {value.high:+.4f}"
    rank_zero_info(f"{name}: {value.value:+.4f} ({bounds}){more}")
