"""heatmap.html, the page of a slide, and index.html, the list of slides; both work offline."""

import base64
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from bokeh.embed import file_html
from bokeh.layouts import column, row
from bokeh.models import (
    BoxZoomTool,
    ColorBar,
    ColumnDataSource,
    CustomJS,
    HoverTool,
    ImageURL,
    LinearColorMapper,
    MetricLength,
    Range1d,
    ScaleBar,
    Slider,
    Toggle,
)
from bokeh.palettes import Turbo256, linear_palette
from bokeh.plotting import figure
from bokeh.resources import INLINE
from jinja2 import Environment, PackageLoader, Template
from PIL import Image

from pcam_lightning.slides.heat_map import HeatMap, ood_warning
from pcam_lightning.slides.slide_images import encode, overlay, thumbnail
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.utils.atomic_io import atomic_folder, atomic_write

TILE = 512  # side of a tile, in pixels
FINEST = 0.48  # um per pixel of the finest tiles: nuclei are 10 to 20 pixels wide
OVERVIEW = 1500  # longer side of the image of the whole slide, in pixels
INLINE_TILES = 150  # more tiles are written to a folder beside the page
LINKS = 20  # number of lesions with a link
COLORS = 200  # number of colors: two per step of the threshold slider
THUMBNAIL = 320  # longer side of thumbnail.jpg, in pixels
_CLEAR = "rgba(0, 0, 0, 0)"


def write_page(
    folder: Path, slide: SlideReader, heat_map: HeatMap, lesions: pd.DataFrame, summary: dict[str, Any]
) -> None:
    """Write heatmap.html and thumbnail.jpg; for a large slide, also write the page's tiles into `heatmap_tiles`.

    Args:
        folder: folder of the slide's results.
        slide: slide shown below the map.
        heat_map: heat map; tiles are written where it has squares.
        lesions: table of `HeatMap.lesions`.
        summary: content of slide.json.
    """
    levels = _levels(slide)
    names = {(z, x, y) for z, size in enumerate(levels) for x, y in _shown(heat_map, size)}
    tiles = folder / "heatmap_tiles"
    shutil.rmtree(tiles, ignore_errors=True)
    inline = {}
    if len(names) <= INLINE_TILES:
        inline = {f"{z}/{x}/{y}": _tile(slide, levels[z], x, y) for z, x, y in sorted(names)}
    else:
        with atomic_folder(tiles) as temporary:
            for z, x, y in sorted(names):
                # A page opened from disk can load scripts, but cannot read the pixels of images.
                text = f"pcamTile({json.dumps(f'{z}/{x}/{y}')}, {json.dumps(_tile(slide, levels[z], x, y))});\n"
                (temporary / f"{z}_{x}_{y}.js").write_text(text)
    layout, plot = _layout(slide, heat_map, summary["options"]["threshold"])
    page = {
        "tiles": inline,
        "names": [] if inline else sorted(f"{z}/{x}/{y}" for z, x, y in names),
        "sizes": [size * slide.mpp for size in levels],  # um
        "plot": plot,
        "width": slide.width * slide.mpp,
        "height": slide.height * slide.mpp,
        "mpp": slide.mpp,
    }
    html = file_html(
        layout,
        INLINE,
        title=slide.path.name,
        template=_template("heatmap.html"),
        template_variables={
            "page": page,
            "summary": summary,
            "ood_fraction": heat_map.ood_fraction,
            "warning": ood_warning(heat_map.ood_fraction),
            "lesions": _links(lesions, slide.mpp),
            "count": len(lesions),
            "tile_side": TILE,
        },
    )
    atomic_write(folder / "heatmap.html", html)
    atomic_write(folder / "thumbnail.jpg", encode(overlay(slide, heat_map, THUMBNAIL), "jpeg"))


def _levels(slide: SlideReader) -> list[int]:
    """Return the side of a tile at each level in level-0 pixels, from the coarsest level to the finest."""
    finest = TILE * max(1, round(FINEST / slide.mpp))
    count = max(1, math.ceil(math.log2(max(slide.width, slide.height) / OVERVIEW * TILE / finest)))
    return [finest << number for number in reversed(range(count))]


def _shown(heat_map: HeatMap, size: int) -> Iterator[tuple[int, int]]:
    """Yield the column and row of each tile of a level that contains squares of the map."""
    grid = heat_map.grid
    square_row, square_column = np.nonzero(~np.isnan(heat_map.logit))
    shown = np.zeros((math.ceil(grid.height / size), math.ceil(grid.width / size)), dtype=bool)
    for top, left in zip(square_row * grid.square, square_column * grid.square, strict=True):
        bottom, right = top + grid.square - 1, left + grid.square - 1
        shown[top // size : bottom // size + 1, left // size : right // size + 1] = True
    y, x = np.nonzero(shown)
    return zip(x.tolist(), y.tolist(), strict=True)


def _tile(slide: SlideReader, size: int, x: int, y: int) -> str:
    """Return a tile as a data URI."""
    return _data_uri(slide.read_scaled((x * size, y * size, size, size), (TILE, TILE)))


def _data_uri(image: Image.Image) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(encode(image, 'jpeg')).decode()}"


def _links(lesions: pd.DataFrame, mpp: float) -> list[dict[str, Any]]:
    """Return the positions of the most confident lesions, in um, y upward."""
    top = lesions.head(LINKS)
    return [
        {"x": one["x"] * mpp, "y": -one["y"] * mpp, "confidence": one["confidence"], "area": one["area_mm2"]}
        for one in top.to_dict("records")
    ]


def scale_colors() -> list[str]:
    """Return the colors for probabilities from 0 to 1."""
    return list(linear_palette(Turbo256, COLORS))


def _layout(slide: SlideReader, heat_map: HeatMap, threshold: float) -> tuple[Any, str]:
    """Build the plot, in um with y upward, and its controls; return the layout and the id of the plot."""
    width, height = slide.width * slide.mpp, slide.height * slide.mpp
    plot: Any = figure(
        x_range=Range1d(0, width),  # the script of the page gives both axes the same scale
        y_range=Range1d(-height, 0),
        sizing_mode="stretch_both",
        min_height=300,
        tools=["pan", "wheel_zoom", BoxZoomTool(match_aspect=True), "reset"],
        active_scroll="wheel_zoom",
        toolbar_location="above",
        background_fill_color="white",
    )
    plot.axis.visible = False
    plot.grid.visible = False
    place: dict[str, Any] = {"x": "x", "y": "y", "w": "w", "h": "h", "anchor": "top_left"}
    overview = _data_uri(thumbnail(slide, OVERVIEW))
    below = ColumnDataSource({"url": [overview], "x": [0], "y": [0], "w": [width], "h": [height]})
    plot.add_glyph(below, ImageURL(url="url", **place))
    tiles = ColumnDataSource({"url": [], "x": [], "y": [], "w": [], "h": []}, name="tiles")
    plot.add_glyph(tiles, ImageURL(url="url", **place))
    controls = _add_map(plot, heat_map, threshold)
    plot.add_layout(ScaleBar(range=plot.x_range, unit="µm", dimensional=MetricLength(), location="bottom_right"))
    top = row(*controls, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"})
    return column(top, plot, sizing_mode="stretch_both"), plot.id


def _add_map(plot: Any, heat_map: HeatMap, threshold: float) -> list[Any]:
    """Add the probabilities and their color bar to a plot; return the controls."""
    mapper = LinearColorMapper(palette=scale_colors(), low=0, high=1, nan_color=_CLEAR, name="scale")
    image = _add_image(plot, heat_map, heat_map.prob, color_mapper=mapper, global_alpha=0.4)
    plot.add_tools(HoverTool(renderers=[image], tooltips=[("probability of tumor", "@image{0.000}")]))
    plot.add_layout(ColorBar(color_mapper=mapper, title="probability of tumor", height=10, padding=5), "below")
    opacity = Slider(title="map opacity", start=0, end=1, step=0.05, value=0.4, name="opacity", width=200)
    opacity.js_link("value", image.glyph, "global_alpha")
    # Each probability keeps its color; colors below the slider's value become transparent.
    hide = "mapper.palette = colors.map((color, n) => (n < Math.round(this.value * colors.length) ? clear : color));"
    least = Slider(
        title=f"hide below (threshold: {threshold:g})",
        start=0,
        end=0.99,
        step=0.01,
        value=0,
        name="threshold",
        width=220,
    )
    arguments = {"mapper": mapper, "colors": scale_colors(), "clear": _CLEAR}
    least.js_on_change("value", CustomJS(args=arguments, code=hide))
    if heat_map.ood is None:
        return [opacity, least]
    gray = LinearColorMapper(palette=["#808080"], nan_color=_CLEAR)
    marked = np.where(heat_map.ood, 1.0, np.nan)
    marks = _add_image(plot, heat_map, marked, color_mapper=gray, global_alpha=0.7, visible=False)
    toggle = Toggle(label="mark out-of-distribution squares", active=False)
    toggle.js_link("active", marks, "visible")
    return [opacity, least, toggle]


def _add_image(plot: Any, heat_map: HeatMap, values: np.ndarray, **how: Any) -> Any:
    """Add an image with one value per square, (rows, columns), to a plot."""
    grid = heat_map.grid
    side = grid.square * grid.slide_mpp
    turned = values[::-1].astype(np.float32)  # Bokeh expects the lowest row first
    return plot.image(image=[turned], x=0, y=0, dw=grid.columns * side, dh=grid.rows * side, anchor="top_left", **how)


def write_index(folder: Path, slides: pd.DataFrame) -> None:
    """Write index.html: the slides of a folder, sorted by score, with links to their pages.

    Args:
        folder: folder that contains the slides' folders.
        slides: table of `many_slides.slide_table`.
    """
    ordered = slides.sort_values("score", ascending=False, kind="stable")
    rows = [
        {
            **{name: None if pd.isna(value) else value for name, value in one.items()},
            "ood_percent": None if pd.isna(one["ood_fraction"]) else 100 * one["ood_fraction"],
            "name": Path(one["slide"]).name,
            "link": quote(Path(one["folder"]).name),
            "warning": ood_warning(one["ood_fraction"]),
        }
        for one in ordered.to_dict("records")
    ]
    atomic_write(folder / "index.html", _template("index.html").render(slides=rows, folder=folder.resolve().name))


def _template(name: str) -> Template:
    return Environment(loader=PackageLoader("pcam_lightning.slides"), autoescape=True).get_template(name)
