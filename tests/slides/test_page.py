"""The page of a slide in a browser: tiles, sliders, links and the probability under the pointer."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pcam_lightning.slides import slide_page
from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.slide_reader import SlideReader

PROGRAMS = shutil.which("chromium"), shutil.which("chromedriver")
SUMMARY = {
    "score": 0.5, "tissue_mm2": 0.1, "tumor_mm2": 0.05, "mpp": 0.243, "caution": "Be careful <b>.",
    "options": {"threshold": 0.5, "prior": None}, "network": {"ckpt_path": "pcam", "backbone": "resnet18"},
}  # fmt: skip
SLIDERS = ("opacity", "threshold")
MODEL = "Bokeh.documents[0].get_model_by_name"
PLOT = "Bokeh.documents[0].get_model_by_id(page.plot)"


def write(folder: Path, slide: Path, most: float | None = None) -> tuple[HeatMap, pd.DataFrame]:
    """Write the page of a map in which one group of squares is probable; square n has the distance n + 0.5."""
    reader = SlideReader(slide)
    logit = np.full((10, 10), np.nan, dtype=np.float32)
    logit[2:7, 3:8] = -3.0
    logit[3:5, 5:7] = 2.0  # not its own mirror image
    logit[6, 3] = 0.3
    heat_map = HeatMap(PatchGrid(reader.width, reader.height, reader.mpp), logit)
    if most is not None:
        distance = logit.copy()
        distance[~np.isnan(logit)] = np.arange(25) + 0.5
        heat_map = replace(heat_map, ood_distance=distance, ood_threshold=most)
    lesions = heat_map.lesions(0.5)
    slide_page.write_page(folder, reader, heat_map, lesions, SUMMARY)
    return heat_map, lesions


def test_tiles_are_inline_or_beside_the_page(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, slide)
    text = (tmp_path / "heatmap.html").read_text()
    assert not (tmp_path / "heatmap_tiles").exists()
    assert not re.findall(r"""(?:src|href)=["']?https?:""", text.split("</style>")[-1].split("<aside>")[0])
    assert "Be careful &lt;b&gt;." in text
    monkeypatch.setattr(slide_page, "INLINE_TILES", 0)
    write(tmp_path, slide)
    tiles = sorted(path.name for path in (tmp_path / "heatmap_tiles").iterdir())
    assert tiles[0] == "0_0_0.js"
    assert (tmp_path / "heatmap_tiles" / tiles[0]).read_text().startswith('pcamTile("0/0/0", "data:image/jpeg;base64,')
    assert (tmp_path / "heatmap.html").stat().st_size < len(text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    if None in PROGRAMS:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    options.binary_location = str(PROGRAMS[0])
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(PROGRAMS[1]))
    yield driver
    driver.quit()


def wait_for(condition: Callable[[], Any]) -> Any:
    """Return the first true value of a condition."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if value := condition():
            return value
    raise AssertionError("nothing happened for a minute")


@pytest.mark.parametrize("inline", [True, False])
def test_a_person_uses_the_page(
    slide: Path, tmp_path: Path, browser: Any, inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    monkeypatch.setattr(slide_page, "INLINE_TILES", 1000 if inline else 0)
    heat_map, lesions = write(tmp_path, slide)
    browser.get((tmp_path / "heatmap.html").as_uri())

    def run(script: str) -> Any:
        return browser.execute_script(f"return {script}")

    tiles = f"{MODEL}('tiles').data.url"
    wait_for(lambda: run(f"window.Bokeh && Bokeh.documents.length && {tiles}.length"))
    assert run(f"{tiles}.every((url) => url.startsWith('data:image/jpeg'))")
    across, down = run(f"{PLOT}.x_range.end - {PLOT}.x_range.start"), run(f"{PLOT}.y_range.end - {PLOT}.y_range.start")
    assert across / run(f"{PLOT}.inner_width") == pytest.approx(down / run(f"{PLOT}.inner_height"), rel=0.01)

    link = browser.find_element(By.CSS_SELECTOR, "a.lesion")
    assert link.text == f"{lesions['confidence'][0]:.3f}"
    link.click()
    x, y = lesions["x"][0] * 0.243, -lesions["y"][0] * 0.243
    assert run(f"({PLOT}.x_range.start + {PLOT}.x_range.end) / 2") == pytest.approx(x, abs=0.1)
    assert run(f"({PLOT}.y_range.start + {PLOT}.y_range.end) / 2") == pytest.approx(y, abs=0.1)
    assert run(f"{PLOT}.x_range.end - {PLOT}.x_range.start") < across

    box = run(
        "(document.querySelector('main .bk-Figure') || document.querySelector('main > div')).getBoundingClientRect()"
    )
    chain = ActionChains(browser)
    chain.move_by_offset(int(box["x"] + box["width"] / 2), int(box["y"] + box["height"] / 2 + 30)).perform()
    expected = f"{heat_map.prob[3, 5]:.3f}"
    script = """
        const texts = [];
        const walk = (node) => {
          if (node.shadowRoot) walk(node.shadowRoot);
          if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent);
          node.childNodes.forEach(walk);
        };
        walk(document.body);
        return texts.join(" ");
    """
    wait_for(lambda: expected in browser.execute_script(script).split("probability of tumor")[-1])

    handles = [run(_handle(name)) for name in SLIDERS]
    for handle in handles:
        handle.click()
        handle.send_keys(Keys.ARROW_RIGHT * 5)
    wait_for(lambda: run(f"{MODEL}('opacity').value") > 0.4 and run(f"{MODEL}('threshold').value") > 0)
    threshold = run(f"{MODEL}('threshold').value")
    assert (run(f"{MODEL}('scale').low"), run(f"{MODEL}('scale').high")) == (0, 1)
    shown = run(f"{MODEL}('scale').palette")
    assert len(shown) == slide_page.COLORS
    hidden = round(threshold * slide_page.COLORS)
    assert shown == ["rgba(0, 0, 0, 0)"] * hidden + slide_page.scale_colors()[hidden:]
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def test_zoom_ends_at_the_pixels_of_the_slide_and_at_the_whole_of_it(slide: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    write(tmp_path, slide)
    browser.set_window_size(600, 800)
    browser.get((tmp_path / "heatmap.html").as_uri())

    def run(script: str) -> Any:
        return browser.execute_script(f"return {script}")

    wait_for(lambda: run(f"window.Bokeh && Bokeh.documents.length && {MODEL}('tiles').data.url.length"))
    assert run("document.documentElement.scrollWidth") <= run("window.innerWidth")  # a narrow window has all of it
    whole = run(f"{PLOT}.x_range.end - {PLOT}.x_range.start")
    wide = run(f"{PLOT}.inner_width")
    for steps, expected in ((-200, 0.243), (200, whole / wide)):
        for _ in range(9):
            ActionChains(browser).scroll_from_origin(ScrollOrigin.from_viewport(250, 400), 0, steps).perform()
        across = run(f"{PLOT}.x_range.end - {PLOT}.x_range.start")
        down = run(f"{PLOT}.y_range.end - {PLOT}.y_range.start")
        assert across / wide == pytest.approx(expected, rel=0.15)
        assert across / wide >= 0.243 * 0.999
        assert across <= whole * 1.001
        assert across / down == pytest.approx(wide / run(f"{PLOT}.inner_height"), rel=0.02)


def test_a_map_of_unfamiliar_tissue_says_so(slide: Path, tmp_path: Path) -> None:
    message = "92 % of the tissue is out of distribution: do not use this score."
    for most, found in ((2.0, True), (13.0, False)):
        write(tmp_path, slide, most)
        text = (tmp_path / "heatmap.html").read_text().split("</style>")[-1]
        assert (message in text) == found
        assert "mark out-of-distribution squares" in text
    write(tmp_path, slide)
    assert "out of distribution</th><td>not measured" in (tmp_path / "heatmap.html").read_text()


def test_the_index_lists_slides_by_score_and_leads_to_their_pages(tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By

    names = ("a <b>&'#1", "plain", "ö 100%")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "heatmap.html").write_text("<title>the page</title>")
        Image.new("RGB", (20, 10)).save(tmp_path / name / "thumbnail.jpg")
    slide_page.write_index(
        tmp_path,
        pd.DataFrame(
            {
                "slide": [f"slides/{name}.svs" for name in names],
                "score": [0.25, 0.9936, np.nan],
                "tissue_mm2": [1.0, 0.727, 2.0],
                "tumor_mm2": [0.5, 0.1, 0.0],
                "lesions": [1, 8, 0],
                "ood_fraction": [0.1, 0.974, np.nan],
                "damaged_squares": [0, 2, 1],
                "folder": [str(tmp_path / name) for name in names],
            }
        ),
    )
    browser.get((tmp_path / "index.html").as_uri())
    rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert [row.split()[0] for row in rows] == ["plain.svs", "a", "ö"]
    assert "0.9936" in rows[0]
    assert "97 % of the tissue is out of distribution: do not use this score." in rows[0]
    assert rows[1].startswith("a <b>&'#1.svs")
    assert "do not use" not in rows[1]
    assert ["cannot be read" in row for row in rows] == [True, False, True]
    assert browser.execute_script("return [...document.images].every((one) => one.naturalWidth === 20)")
    for number in range(3):
        browser.find_elements(By.CSS_SELECTOR, "tbody a")[2 * number].click()
        assert browser.title == "the page"
        browser.back()
    assert not list(tmp_path.glob(".*"))  # no temporary file


def _handle(name: str) -> str:
    """Return a script that finds a slider's handle, which is in a shadow tree."""
    index = SLIDERS.index(name)
    return f"""(() => {{
        const found = [];
        const walk = (node) => {{
          if (node.shadowRoot) walk(node.shadowRoot);
          if (node.classList && node.classList.contains("noUi-handle")) found.push(node);
          node.childNodes.forEach(walk);
        }};
        walk(document.body);
        return found[{index}];
    }})()"""
