"""The page of a slide in a browser: tiles, sliders, links and the probability under the pointer."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pcam_lightning.slides import page
from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.slides.patch_grid import PatchGrid
from pcam_lightning.slides.reader import SlideReader

PROGRAMS = shutil.which("chromium"), shutil.which("chromedriver")
SUMMARY = {
    "score": 0.5, "tissue_mm2": 0.1, "tumor_mm2": 0.05, "mpp": 0.243, "caution": "Be careful <b>.",
    "options": {"threshold": 0.5, "prior": None}, "network": {"ckpt_path": "pcam", "backbone": "resnet18"},
}  # fmt: skip
SLIDERS = ("opacity", "threshold")
MODEL = "Bokeh.documents[0].get_model_by_name"
PLOT = "Bokeh.documents[0].get_model_by_id(page.plot)"


def write(folder: Path, slide: Path) -> tuple[HeatMap, pd.DataFrame]:
    """Write the page of a map in which one group of squares is probable."""
    reader = SlideReader(slide)
    logit = np.full((10, 10), np.nan, dtype=np.float32)
    logit[2:7, 3:8] = -3.0
    logit[3:5, 5:7] = 2.0  # not its own mirror image
    logit[6, 3] = 0.3
    heat_map = HeatMap(PatchGrid(reader.width, reader.height, reader.mpp), logit)
    lesions = heat_map.lesions(0.5)
    page.write_page(folder, reader, heat_map, lesions, SUMMARY)
    return heat_map, lesions


def test_tiles_are_inline_or_beside_the_page(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, slide)
    text = (tmp_path / "heatmap.html").read_text()
    assert not (tmp_path / "heatmap_tiles").exists()
    assert not re.findall(r"""(?:src|href)=["']?https?:""", text.split("</style>")[-1].split("<aside>")[0])
    assert "Be careful &lt;b&gt;." in text
    monkeypatch.setattr(page, "INLINE_TILES", 0)
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

    monkeypatch.setattr(page, "INLINE_TILES", 1000 if inline else 0)
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
    low = "[...Bokeh.documents[0]._all_models.values()].find((one) => one.type === 'LinearColorMapper').low"
    assert run(low) == pytest.approx(run(f"{MODEL}('threshold').value"))
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


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
