"""compare: the difference of two AUROCs on the same patches, with its interval."""

from pathlib import Path

import numpy as np

from pcam_lightning.judged import FEW, check_draws, clusters, read_judged
from pcam_lightning.messages import UserError, say
from pcam_lightning.scores import Interval, auroc, delong, draw_scores, interval


def compare(first: Path, second: Path, slides: Path | None = None, draws: int = 1000, seed: int = 0) -> None:
    """Tell by how much one run's AUROC is above another's on the same patches, with intervals.

    Args:
        first: a run's folder, a cross-validation's, or a CSV with id,label,logit.
        second: another one, of the same patches.
        slides: CSV with id,wsi, where the slides are not known already.
        draws: bootstrap samples.
        seed: of the bootstrap.
    """
    check_draws(draws, seed)
    for target in (first, second):  # before the first one is validated for nothing
        if not target.exists():
            raise UserError(f"{target}: no such run, cross-validation or CSV of predictions.")
    read = [read_judged(target, None, slides, pictures=False) for target in (first, second)]
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
        if judged.overlap:
            say(f"{target}: {judged.overlap:,} of these patches trained its network, so that its AUROC is optimistic.")
    say(f"n = {len(label):,} patches")
    difference, p = delong(label, a, b)
    _tell("difference, patches taken for independent (DeLong)", difference, f", p = {p:.2g}")
    cluster, name = clusters((one if "slide" in one else other).reset_index())
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


def _tell(what: str, value: Interval, more: str) -> None:
    bounds = "no interval" if value.low is None else f"95 % {value.low:+.4f} to {value.high:+.4f}"
    say(f"{what}: {value.value:+.4f} ({bounds}){more}")
