"""compare: the difference of two AUROCs on the same patches, with its interval."""

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

SHOWN = 10  # groups of a level


def compare(
    first: Path, second: Path, slides: Path | None = None, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compute the difference of two runs' AUROCs on the same patches, with intervals.

    Args:
        first: a run's folder, a cross-validation's, or a CSV with id,label,logit.
        second: another one, of the same patches.
        slides: CSV with id,wsi, where the slides are not known already.
        bootstrap_samples: for the interval over slides.
        seed: of the bootstrap.

    Returns:
        `patches`; `first` and `second`, each with `auroc`, `training_overlap`, how many of the patches trained its
        network, and `leak`, why its AUROC is or may be optimistic; `delong`, the difference (first minus second) with
        `value`, `low`, `high` and `p`; `bootstrap`, the same over `clusters` of `clustered_by`, None where there are no
        groups; and `groups`, by center, patient and slide where these are known, a list of `name`, both AUROCs and the
        difference, the lowest first.
    """
    check_bootstrap(bootstrap_samples, seed)
    for target in (first, second):  # before the first one is validated for nothing
        if not target.exists():
            raise UserError(f"{target}: no such run, cross-validation or CSV of predictions.")
    read = [read_labeled_predictions(target, None, slides, pictures=False) for target in (first, second)]
    one, other = _pair(first, second, *(predictions.rows.set_index("id") for predictions in read))
    _check_pixels(first, second, [predictions.data for predictions in read], one.index)
    label, a, b = (np.asarray(column) for column in (one["label"], one["logit"], other["logit"]))
    found: dict[str, Any] = {"patches": len(label)}
    for key, target, predictions, logit in zip(("first", "second"), (first, second), read, (a, b), strict=True):
        leak = describe_leakage(predictions)
        found[key] = {"auroc": auroc(label, logit), "training_overlap": predictions.overlap, "leak": leak}
        best = " (best.ckpt, chosen by these patches)" if predictions.chosen_by_these else ""
        rank_zero_info(f"{target}{best}: AUROC {found[key]['auroc']:.4f}")
        if predictions.overlap:
            rank_zero_info(
                f"{target}: {predictions.overlap:,} of these patches trained its network; its AUROC is optimistic."
            )
        if leak:
            rank_zero_info(f"{target}: {leak[0].lower()}{leak[1:]}")
    rank_zero_info(f"n = {len(label):,} patches")
    difference, p = delong_test(label, a, b)
    _tell("difference, patches taken for independent (DeLong)", difference, f", p = {p:.2g}")
    found["delong"] = {**difference._asdict(), "p": p}
    cluster, name = clusters((one if set(LEVELS) & set(one) else other).reset_index())
    count = len(np.unique(cluster))
    found |= {"clustered_by": name, "clusters": count, "bootstrap": None, "groups": {}}
    if name == "patches":
        rank_zero_info("no slides are known: `slides` FILE gives the interval that counts.")
    elif count == 1:
        rank_zero_info(f"all patches are of one group: there is no interval over {name}.")
    else:
        drawn = _bootstrap_differences(label, a, b, cluster, bootstrap_samples, seed)
        above = f", {np.mean(drawn > 0):.1%} of {len(drawn):,} draws above 0"
        interval = percentile_interval(difference.value, drawn)
        found["bootstrap"] = interval._asdict()
        _tell(f"difference, bootstrap over {count:,} {name}", interval, above)
        if count < FEW:
            rank_zero_info(f"{count} {name} are few: an interval from fewer than {FEW} is too narrow.")
    known = {level: (one if level in one else other)[level] for level in LEVELS if level in one or level in other}
    rows = pd.DataFrame({"label": label, "logit": a, "other": b, **known}, index=one.index).reset_index()
    for level in known:
        if len(set(rows[level])) > 1:
            found["groups"][level] = _tell_groups(rows, level, bootstrap_samples, seed)
    return found


def _bootstrap_differences(
    label: np.ndarray, a: np.ndarray, b: np.ndarray, cluster: np.ndarray, samples: int, seed: int
) -> np.ndarray:
    """Return the difference of both AUROCs in each bootstrap sample that has both classes."""
    first, second = (bootstrap_scores(label, logit, cluster, samples, seed)[0] for logit in (a, b))
    difference: np.ndarray = (first - second)[np.isfinite(first)]
    return difference


def _tell_groups(rows: pd.DataFrame, level: str, samples: int, seed: int) -> list[dict[str, Any]]:
    """Tell the difference in each group of a level, and return all, the lowest first.

    Args:
        rows: with id, label, logit, `other` (the second one's logit), and the columns of the levels.
        level: center, patient or slide. A center's difference has an interval, by a bootstrap over what is below it.
        samples: of the bootstrap.
        seed: of the bootstrap.
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
            drawn = _bootstrap_differences(label, a, b, cluster, samples, seed)
            interval = percentile_interval(interval.value, drawn)
        both = {"first": scores[0], "second": scores[1]}
        found.append({"name": str(name), **both, **interval._asdict(), "clustered_by": clustered_by})
    found.sort(key=lambda group: (group["value"], group["name"]))
    more = f"; the {SHOWN} lowest of {len(found):,}" if len(found) > SHOWN else ""
    rank_zero_info(f"difference by {level}, the lowest first{more}:")
    for one in found[:SHOWN]:
        bounds = ""
        if one["low"] is not None:
            bounds = f" (95 % {one['low']:+.4f} to {one['high']:+.4f}, over {one['clustered_by']})"
        rank_zero_info(f"  {one['name']}: {one['first']:.4f} - {one['second']:.4f} = {one['value']:+.4f}{bounds}")
    return found


def _pair(first: Path, second: Path, one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both predictions, indexed by id, with the second in the order of the first.

    Raises:
        UserError: they are not of the same patches with the same labels, or a class has one patch.
    """
    if set(one.index) != set(other.index):
        both = len(set(one.index) & set(other.index))
        raise UserError(
            f"{first} has {len(one):,} patches and {second} has {len(other):,}, {both:,} of them the same; a paired "
            "comparison needs the same ones: fit the second with `data.split_file` FIRST/split.csv."
        )
    other = other.loc[one.index]
    if one["label"].value_counts().min() < 2:
        raise UserError(f"{first}: one patch of a class tells nothing of the spread; two of each at least are needed.")
    if not one["label"].equals(other["label"]):
        raise UserError(f"{first} and {second}: the same patches have other labels.")
    return one, other


def _check_pixels(first: Path, second: Path, data: list[PCamDataModule | None], ids: "pd.Index[str]") -> None:
    """Check that ids that are file names stand for the same patches in the data of both runs.

    Raises:
        UserError: they do not.
    """
    one, other = data
    if one is None or other is None or (one.resize, one.mpp) != (other.resize, other.mpp):
        return
    named = ids[~looks_like_sha1(ids.to_series())]
    first_sha1, second_sha1 = (each.table.set_index("id")["pixel_sha1"].loc[named] for each in (one, other))
    if differ := int((first_sha1 != second_sha1).sum()):
        raise UserError(
            f"{first} and {second}: {differ:,} of their {len(ids):,} patches have the same id and other pixels: they "
            f"are of {one.root} and {other.root}, and a paired comparison needs the same ones."
        )


def _tell(what: str, value: Interval, more: str) -> None:
    bounds = "no interval" if value.low is None else f"95 % {value.low:+.4f} to {value.high:+.4f}"
    rank_zero_info(f"{what}: {value.value:+.4f} ({bounds}){more}")
