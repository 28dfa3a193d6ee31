"""Arrays -> matplotlib figures: one size, one type, colours that most eyes tell apart, n in every title."""

import base64
import io
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.special import expit
from sklearn.metrics import precision_recall_curve, roc_curve

from pcam_lightning.scores import Operation, reliability

Array = np.ndarray
P = ParamSpec("P")
# Okabe and Ito 2008: told apart by those who confuse red and green too.
NORMAL, TUMOUR, GREY = "#0072B2", "#D55E00", "#777777"
SIZE = (4.4, 3.6)  # inches
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "pcam_lightning",  # the same numbers make the same file
}
_MOST = 1000  # points of a curve: finer than a screen shows


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _square(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Return axes on which one share is drawn against another."""
    figure, axes = _axes(title, x, y)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    return figure, axes


def _thin(*curves: Array) -> list[Array]:
    places = np.unique(np.linspace(0, len(curves[0]) - 1, _MOST).round().astype(int))
    return [curve[places] for curve in curves]


@_styled
def roc(label: Array, logit: Array, point: Operation | None = None) -> Figure:
    """Draw sensitivity against one less specificity, with the chosen operating point."""
    figure, axes = _square(f"ROC, n = {len(label):,}", "1 - specificity", "sensitivity")
    false, found, _ = roc_curve(label, logit)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    axes.plot(*_thin(false, found), color=NORMAL)
    if point is not None:
        axes.plot(1 - point.specificity, point.sensitivity, "o", color=TUMOUR, label="chosen threshold")
        axes.legend(loc="lower right")
    return figure


@_styled
def precision_recall(label: Array, logit: Array) -> Figure:
    """Draw precision against sensitivity; the dotted line is what guessing reaches."""
    figure, axes = _square(f"Precision and sensitivity, n = {len(label):,}", "sensitivity", "precision")
    precision, found, _ = precision_recall_curve(label, logit)
    axes.axhline(float(np.mean(label)), color=GREY, linewidth=0.8, linestyle=":")
    axes.plot(*_thin(found, precision), color=NORMAL)
    return figure


@_styled
def reliability_diagram(label: Array, logit: Array, calibrated: Array) -> Figure:
    """Draw the share of tumour against the probability that was given, before and after temperature scaling."""
    figure, axes = _square(f"Reliability, n = {len(label):,}", "probability of tumour", "share with tumour")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for values, colour, marker, name in ((logit, NORMAL, "o", "as it is"), (calibrated, TUMOUR, "s", "calibrated")):
        count, prob, share = reliability(label, values)
        some = count > 0
        axes.plot(prob[some], share[some], color=colour, marker=marker, markersize=4, label=name)
    axes.legend(loc="upper left")
    return figure


@_styled
def score_histogram(label: Array, logit: Array) -> Figure:
    """Draw how often each probability is given, by class."""
    figure, axes = _axes(f"Scores by class, n = {len(label):,}", "probability of tumour", "patches")
    prob, bins = expit(logit), np.linspace(0, 1, 41)
    for value, name, colour in ((0, "normal", NORMAL), (1, "tumour", TUMOUR)):
        chosen = prob[label == value]
        axes.hist(chosen, list(bins), histtype="step", color=colour, linewidth=1.4, label=f"{name}, {len(chosen):,}")
    axes.set_yscale("symlog", linthresh=10)
    axes.legend(loc="upper center")
    return figure


@_styled
def confusion(point: Operation, title: str) -> Figure:
    """Draw the four counts of a decision, and their share of the true class."""
    figure, axes = _axes(f"{title}, n = {sum(point):,}", "called", "is")
    counts = np.array(
        [[point.true_negative, point.false_positive], [point.false_negative, point.true_positive]], dtype=float
    )
    share = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set_xticks([0, 1], ["normal", "tumour"])
    axes.set_yticks([0, 1], ["normal", "tumour"])
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = f"{count:,.0f}\n{share[row, column]:.1%}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=11)
    return figure


@_styled
def patch_grid(images: Array, titles: list[str], columns: int = 8) -> Figure:
    """Draw patches, uint8 (N, 96, 96, 3), with a title each and the centre 32 x 32 that the label is about."""
    rows = -(-len(images) // columns)
    figure = Figure((1.25 * columns, 1.5 * max(rows, 1)), layout="constrained")
    places = figure.subplots(max(rows, 1), columns, squeeze=False).ravel()
    for axes in places:
        axes.axis("off")
    for axes, image, title in zip(places, images, titles, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.add_patch(Rectangle((31.5, 31.5), 32, 32, fill=False, edgecolor="black", linewidth=1.6))
        axes.add_patch(Rectangle((31.5, 31.5), 32, 32, fill=False, edgecolor="#F0E442", linewidth=0.8))
        axes.set_title(title, fontsize=7, loc="center")
    return figure


def as_svg(figure: Figure) -> str:
    """Return a figure as an SVG element, to stand in a page."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def as_png(figure: Figure, dpi: int = 120) -> str:
    """Return a figure as the address of a picture in a page, data:image/png."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
