"""Matplotlib figures of scores, curves and data sets, with n in every title."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import expit
from sklearn.metrics import precision_recall_curve, roc_curve

from pcam_lightning.metrics import abstention as curves
from pcam_lightning.metrics.calibration import reliability_curve
from pcam_lightning.metrics.classification import ConfusionCounts, confusion_counts
from pcam_lightning.plotting.style import (
    CLASSES,
    COLORS,
    GRAY,
    MARKERS,
    NORMAL,
    TUMOR,
    new_axes,
    new_panels,
    square_axes,
    styled,
)

Array = np.ndarray
_MOST = 1000  # points per curve, more than a screen resolves


def _thin(*curves: Array) -> list[Array]:
    rows = np.unique(np.linspace(0, len(curves[0]) - 1, _MOST).round().astype(int))
    return [curve[rows] for curve in curves]


@styled
def roc(label: Array, logit: Array, point: ConfusionCounts | None = None, axes: Axes | None = None) -> Figure:
    """Plot the ROC curve and the chosen operating point."""
    figure, axes = square_axes(f"ROC, n = {len(label):,}", "1 - specificity", "sensitivity", axes)
    false, found, _ = roc_curve(label, logit)
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle=":")
    axes.plot(*_thin(false, found), color=NORMAL)
    if point is not None:
        axes.plot(1 - point.specificity, point.sensitivity, "o", color=TUMOR, label="chosen threshold")
        axes.legend(loc="lower right")
    return figure


@styled
def precision_recall(label: Array, logit: Array) -> Figure:
    """Plot precision against sensitivity; the dotted line is a random classifier."""
    figure, axes = square_axes(f"Precision and sensitivity, n = {len(label):,}", "sensitivity", "precision", None)
    precision, found, _ = precision_recall_curve(label, logit)
    axes.axhline(float(np.mean(label)), color=GRAY, linewidth=0.8, linestyle=":")
    axes.plot(*_thin(found, precision), color=NORMAL)
    return figure


@styled
def reliability_diagram(
    label: Array, logit: Array, calibrated: Array | None = None, axes: Axes | None = None
) -> Figure:
    """Plot the share of tumor against the predicted probability, before and after temperature scaling."""
    figure, axes = square_axes(f"Reliability, n = {len(label):,}", "probability of tumor", "share with tumor", axes)
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle=":")
    for values, color, marker, name in ((logit, NORMAL, "o", "uncalibrated"), (calibrated, TUMOR, "s", "calibrated")):
        if values is not None:
            count, prob, share = reliability_curve(label, values)
            some = count > 0
            axes.plot(prob[some], share[some], color=color, marker=marker, markersize=4, label=name)
    if calibrated is not None:
        axes.legend(loc="upper left")
    return figure


@styled
def score_histogram(label: Array, logit: Array, axes: Axes | None = None) -> Figure:
    """Plot a histogram of predicted probabilities for each class."""
    figure, axes = new_axes(f"Scores by class, n = {len(label):,}", "probability of tumor", "patches", axes)
    prob, bins = expit(logit), np.linspace(0, 1, 41)
    for value, (name, color) in enumerate(CLASSES.items()):
        chosen = prob[label == value]
        axes.hist(chosen, list(bins), histtype="step", color=color, linewidth=1.4, label=f"{name}, {len(chosen):,}")
    if axes.get_ylim()[1] > 100:
        axes.set_yscale("symlog", linthresh=10)
    axes.legend(loc="upper center")
    return figure


@styled
def confusion(point: ConfusionCounts, title: str, axes: Axes | None = None) -> Figure:
    """Plot the confusion matrix as counts and shares of each true class."""
    figure, axes = new_axes(f"{title}, n = {sum(point):,}", "called", "label", axes)
    counts = np.array(
        [[point.true_negative, point.false_positive], [point.false_negative, point.true_positive]], dtype=float
    )
    share = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set_xticks([0, 1], list(CLASSES))
    axes.set_yticks([0, 1], list(CLASSES))
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 0.5 else "black"
        text = f"{count:,.0f}\n{share[row, column]:.1%}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=11)
    return figure


@styled
def risk_coverage(label: Array, logit: Array, confidences: Mapping[str, Array]) -> Figure:
    """Plot the error rate at 0.5 against the share of patches kept, most confident patches first."""
    figure, axes = new_axes(f"Risk and coverage, n = {len(label):,}", "share of patches kept", "error rate")
    for (name, confidence), color in zip(confidences.items(), COLORS, strict=False):
        axes.plot(*_thin(*curves.risk_coverage(label, logit, confidence)), color=color, label=name)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
    return figure


@styled
def evaluation_panel(label: Array, logit: Array) -> Figure:
    """Plot ROC, reliability, scores by class and the confusion matrix at 0.5 side by side."""
    figure, panels = new_panels(2, 2, fit=False)  # fitting the layout would double the time
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.08, top=0.96, wspace=0.25, hspace=0.32)
    roc(label, logit, axes=panels[0])
    reliability_diagram(label, logit, axes=panels[1])
    score_histogram(label, logit, axes=panels[2])
    confusion(confusion_counts(label, logit >= 0), "Called at 0.5", axes=panels[3])
    return figure


def best_epoch(rows: pd.DataFrame) -> "pd.Series[float]":
    """Return the first row of `metrics.csv` with the highest val/auroc."""
    return rows.iloc[int(np.nanargmax(rows["val/auroc"].to_numpy(dtype=float)))]


@styled
def learning_curves(runs: Mapping[str, pd.DataFrame]) -> Figure:
    """Plot loss and AUROC by epoch for each run, given the rows of its `metrics.csv`; rings mark the best epoch."""
    figure, panels = new_panels(1, 2)
    for name, axes in zip(("loss", "auroc"), panels, strict=True):
        title = f"{'Loss' if name == 'loss' else 'AUROC'}, n = {len(runs)} {'run' if len(runs) == 1 else 'runs'}"
        new_axes(title, "epoch", "binary cross-entropy" if name == "loss" else "AUROC", axes)
        for number, (run, rows) in enumerate(runs.items()):
            color, marker = COLORS[number % len(COLORS)], MARKERS[number // len(COLORS) % len(MARKERS)]
            for stage, line in (("train", "--"), ("val", "-")):
                if f"{stage}/{name}" in rows:
                    known = rows[rows[f"{stage}/{name}"].notna()]
                    axes.plot(
                        known["epoch"],
                        known[f"{stage}/{name}"],
                        line,
                        color=color,
                        marker=marker,
                        markersize=2.5,
                        label=f"{run}, {stage}" if len(runs) == 1 else run if stage == "val" else None,
                    )
            if "val/auroc" in rows and rows["val/auroc"].notna().any():
                best = best_epoch(rows)
                axes.plot(best["epoch"], best[f"val/{name}"], "o", color=color, fillstyle="none", markersize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(runs) > 1:
        panels[0].plot([], [], "--", color=GRAY, label="train")
        panels[0].plot([], [], "-", color=GRAY, label="val")
    panels[1].plot([], [], "o", color=GRAY, fillstyle="none", markersize=9, label="best epoch by val/auroc")
    for axes in panels:
        axes.legend(fontsize=7)
    return figure


@styled
def class_balance(counts: Mapping[str, int]) -> Figure:
    """Plot the number of patches per group, such as normal, tumor and unlabeled."""
    total, labeled = sum(counts.values()), sum(counts.get(name, 0) for name in CLASSES)
    note = "" if labeled in (0, total) else "\npercentages of labeled patches"
    figure, axes = new_axes(f"Patches by class, n = {total:,}{note}", "", "patches")
    bars = axes.bar(list(counts), list(counts.values()), width=0.6, color=[CLASSES.get(name, GRAY) for name in counts])
    shares = [f"{count / labeled:.1%}" if name in CLASSES else "" for name, count in counts.items()]
    labels = [f"{count:,}\n{share}".strip() for count, share in zip(counts.values(), shares, strict=True)]
    axes.bar_label(bars, labels, padding=2)
    axes.margins(y=0.18)
    axes.grid(visible=False, axis="x")
    return figure


@styled
def pixel_histograms(images: Array, group: Array) -> Figure:
    """Plot histograms of the red, green and blue pixel values.

    Args:
        images: patches, uint8 (N, 96, 96, 3).
        group: group of each patch, such as normal and tumor, str (N,).
    """
    figure, panels = new_panels(1, 3)
    for channel, (name, axes) in enumerate(zip(("Red", "Green", "Blue"), panels, strict=True)):
        new_axes(f"{name}, n = {len(images):,} patches", "", "share of pixels, %", axes)
        highest, ends = 0.0, {}
        for one in np.unique(group):
            pixels = images[group == one][..., channel]
            share = 100 * np.bincount(pixels.ravel(), minlength=256) / pixels.size
            axes.step(np.arange(256), share, color=CLASSES.get(one, GRAY), linewidth=1, label=one)
            highest = max(highest, share[1:255].max())
            ends[one] = share[[0, 255]]
        axes.set_ylim(0, 1.15 * highest or 1)  # saturated pixels would flatten the rest
        above = [
            f"at {value} {', '.join(f'{one} {share[end]:.0f} %' for one, share in ends.items())}"
            for end, value in enumerate((0, 255))
            if max(share[end] for share in ends.values()) > axes.get_ylim()[1]
        ]
        axes.set_xlabel("; ".join(["pixel value, 0 to 255", *above]))
        axes.legend()
    return figure


@styled
def brightness(values: Array, group: Array) -> Figure:
    """Plot histograms of the mean pixel value, float (N,) from 0 to 255, for each group, str (N,)."""
    figure, axes = new_axes(f"Brightness, n = {len(values):,} patches", "mean pixel value", "share of patches, %")
    for one in np.unique(group):
        chosen, color = values[group == one], CLASSES.get(one, GRAY)
        share = np.full(len(chosen), 100 / len(chosen))
        axes.hist(
            chosen, bins=64, range=(0, 255), weights=share, histtype="step", color=color, linewidth=1.4, label=one
        )
    axes.legend(loc="upper left")
    return figure


@styled
def slide_sizes(slide: Array, label: Array) -> Figure:
    """Plot the number of patches per slide and class, largest slides first: slide str (N,), label (N,)."""
    counts = pd.crosstab(slide, label).reindex(columns=[0, 1], fill_value=0)
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    title = f"Patches by slide, n = {len(slide):,} of {len(counts):,} slides"
    figure, axes = new_axes(title, "slides, largest first", "patches")
    below = np.zeros(len(counts))
    for value, (name, color) in enumerate(CLASSES.items()):
        axes.bar(
            np.arange(1, len(counts) + 1),
            counts[value],
            bottom=below,
            width=1,
            color=color,
            edgecolor="white",
            linewidth=min(1, 20 / len(counts)),
            label=name,
        )
        below += counts[value].to_numpy()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


@styled
def embedding(points: Array, group: Array, title: str) -> Figure:
    """Plot points (N, 2) colored by group, str (N,); if there are many groups, small ones are gray."""
    names, counts = np.unique(group, return_counts=True)
    largest = [str(name) for name in names[np.argsort(-counts, kind="stable")][: len(COLORS)]]
    figure, axes = new_axes(f"{title}, n = {len(points):,}", "", "")
    colors = CLASSES if set(names) <= set(CLASSES) else dict(zip(largest, COLORS, strict=False))
    rest = ~np.isin(group, list(colors))
    if rest.any():
        label = f"{len(names) - len(colors):,} others"
        axes.scatter(points[rest, 0], points[rest, 1], s=4, color=GRAY, linewidths=0, alpha=0.5, label=label)
    for (name, color), marker in zip(colors.items(), MARKERS, strict=False):
        x, y = points[group == name].T
        axes.scatter(x, y, s=7, marker=marker, color=color, linewidths=0, alpha=0.7, label=name)
    axes.set(xticks=[], yticks=[])
    axes.legend(fontsize=6, markerscale=2, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
