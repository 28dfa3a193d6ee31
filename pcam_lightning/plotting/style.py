"""The style of all figures (size, font, color-blind safe colors) and their conversion to files."""

import base64
import io
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

P = ParamSpec("P")
# Okabe and Ito 2008: safe for red-green color blindness.
NORMAL, TUMOR, GRAY = "#0072B2", "#D55E00", "#777777"
_MORE = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLORS = (NORMAL, TUMOR, *_MORE)
CLASSES = {"normal": NORMAL, "tumor": TUMOR}  # other groups of patches are gray
MARKERS = "osD^vPX"  # so that figures do not depend on color alone
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
    "svg.hashsalt": "pcam_lightning",  # makes files reproducible
}


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Apply the common style to a plotting function."""

    @wraps(plot)
    def with_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return plot(*args, **kwargs)

    return with_style


def new_panels(rows: int, columns: int, *, fit: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row; `fit` adapts the layout to the content."""
    figure = Figure((SIZE[0] * columns, SIZE[1] * rows), layout="constrained" if fit else None)
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def new_axes(title: str, x: str, y: str, axes: Axes | None = None) -> tuple[Figure, Axes]:
    """Return a figure and its axes with a title and axis labels; existing axes are reused."""
    axes = axes or new_panels(1, 1)[1][0]
    axes.set(title=title, xlabel=x, ylabel=y)
    assert isinstance(axes.figure, Figure)
    return axes.figure, axes


def square_axes(title: str, x: str, y: str, axes: Axes | None) -> tuple[Figure, Axes]:
    """Return square axes from 0 to 1."""
    figure, axes = new_axes(title, x, y, axes)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    return figure, axes


def as_svg(figure: Figure) -> str:
    """Return a figure as an SVG element to embed in a page."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def as_png(figure: Figure, dpi: int = 160) -> bytes:
    """Return a figure as a PNG file; at 160 dpi, a patch pixel covers 2 x 2 pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """Return an image as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def as_array(figure: Figure, dpi: int = 100) -> np.ndarray:
    """Return a figure as an image, uint8 (H, W, 3)."""
    figure.set_dpi(dpi)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
