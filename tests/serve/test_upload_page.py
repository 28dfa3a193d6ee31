"""The page in a browser: files are chosen and dropped, predicted, refused, overlaid, sorted and downloaded."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from local_server import export_once, running
from patch_files import draw, encode
from PIL import Image
from scipy.special import expit

from pcam_lightning.training.loaded_run import load_pretrained

PROGRAMS = shutil.which("chromium"), shutil.which("chromedriver")
PATCHES = draw(4)
STRANGE = "<img src=x onerror=alert(1)>.png"
# Drops a file that the page makes itself: a browser lets no program drop files of the system.
DROP = """
    const data = new DataTransfer();
    const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));
    data.items.add(new File([bytes], arguments[1]));
    for (const type of ["dragover", "drop"]) {
      document.getElementById("drop").dispatchEvent(
        new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: data }));
    }
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A headless Chromium that shows the page, and the folder of its downloads."""
    if None in PROGRAMS:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    options.binary_location = str(PROGRAMS[0])
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    with running(export_once(tmp_path_factory)) as port:
        driver = webdriver.Chrome(options, webdriver.ChromeService(PROGRAMS[1]))
        driver.get(f"http://127.0.0.1:{port}/")
        yield driver, downloads
        driver.quit()


def wait_for(condition: Callable[[], Any]) -> Any:
    """Return the first true value of a condition."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if value := condition():
            return value
    raise AssertionError("nothing happened for a minute")


def find(driver: Any, selector: str) -> list[Any]:
    """Return the elements that a CSS selector finds."""
    found: list[Any] = driver.find_elements("css selector", selector)
    return found


def wait_for_cards(driver: Any, count: int) -> list[Any]:
    """Return the cards as soon as there are so many and all are done."""
    wait_for(lambda: len(find(driver, ".card")) == count and not find(driver, ".card.waiting"))
    return find(driver, ".card")


def errors(driver: Any) -> list[str]:
    """Return the errors of the page since the last call; a response with 415 or 422 is none of the page's."""
    entries = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    return [text for text in entries if not re.search(r"/predict - .* status of (415|422) ", text)]


def test_a_person_uses_the_page(page: tuple[Any, Path], tmp_path: Path) -> None:
    driver, downloads = page
    for number, patch in enumerate(PATCHES):
        Image.fromarray(patch).save(tmp_path / f"patch_{number}.{('tif', 'png')[number % 2]}")
    Image.new("RGB", (64, 64)).save(tmp_path / STRANGE)
    Image.fromarray(np.full((96, 96, 3), 240, dtype=np.uint8)).save(tmp_path / "glass.bmp")
    paths = sorted(path for path in tmp_path.iterdir() if path.is_file())
    find(driver, "#files")[0].send_keys("\n".join(map(str, paths)))
    wait_for_cards(driver, 6)

    prob = expit(load_pretrained("pcam-small").predict_logits(torch.from_numpy(PATCHES)).detach().numpy())
    cards = {card.find_element("css selector", "h3").text: card for card in find(driver, ".card")}
    for number in range(4):
        value = cards[f"patch_{number}.{('tif', 'png')[number % 2]}"].find_element("css selector", ".value").text
        assert float(value.strip("<> ")) == pytest.approx(prob[number], abs=2e-3)
    assert "64 x 64 pixels; a patch has 96 x 96" in cards[STRANGE].text
    assert "blank: glass without tissue" in cards["glass.bmp"].text
    assert find(driver, "#status")[0].text == "6 patches, 2 refused, 4 with warnings"

    card = cards["patch_1.png"]
    toggle, heat = card.find_element("css selector", ".toggle"), card.find_element("css selector", ".heat")
    assert not heat.is_displayed()
    toggle.send_keys(" ")  # by the keyboard
    wait_for(heat.is_displayed)
    assert toggle.get_attribute("aria-pressed") == "true"
    assert re.search(r"Grad-CAM: \d+ % of the heat", card.text)
    assert driver.execute_script("return arguments[0].naturalWidth", heat) == 96
    toggle.click()
    assert not heat.is_displayed()
    find(driver, "#show-heat")[0].click()
    wait_for(lambda: sum(one.is_displayed() for one in find(driver, ".heat")) == 4)

    find(driver, "#order option[value=prob]")[0].click()
    shown = [float(one.text.strip("<> ")) for one in find(driver, ".card:not(.refused) .value")]
    assert shown == sorted(shown, reverse=True)
    find(driver, "#download")[0].click()
    wait_for((downloads / "predictions.csv").exists)
    table = pd.read_csv(downloads / "predictions.csv").set_index("file")
    assert table.loc[[f"patch_{number}.{('tif', 'png')[number % 2]}" for number in range(4)], "probability"].to_numpy(
        dtype=float
    ) == pytest.approx(prob, abs=1e-3)
    assert table.loc[STRANGE, "note"] == "Refused: The image has 64 x 64 pixels; a patch has 96 x 96."
    assert errors(driver) == []


def test_files_are_dropped_folders_chosen_and_all_of_it_cleared(page: tuple[Any, Path], tmp_path: Path) -> None:
    import base64

    driver, _ = page
    find(driver, "#clear")[0].click()
    wait_for(lambda: not find(driver, ".card"))
    driver.execute_script(DROP, base64.b64encode(encode(PATCHES[0])).decode(), "=cmd()<b>.png")
    (card,) = wait_for_cards(driver, 1)
    assert "=cmd()<b>.png" in card.text
    assert not find(driver, ".card b")

    folder = tmp_path / "case" / "inner"
    folder.mkdir(parents=True)
    for number, patch in enumerate(PATCHES):
        Image.fromarray(patch).save(folder / f"{number}.png")
    (folder / "labels.csv").write_text("id,label\n")
    find(driver, "#folder")[0].send_keys(str(tmp_path / "case"))
    wait_for_cards(driver, 5)
    assert find(driver, "#status")[0].text == "5 patches, 5 with warnings, 1 other file skipped"
    assert "case/inner/0.png" in find(driver, "#cards")[0].text
    find(driver, "#rows a")[-1].click()
    assert driver.execute_script("return document.querySelector('.card:target') !== null")

    find(driver, "#clear")[0].click()
    find(driver, "#examples")[0].click()
    wait_for_cards(driver, 10)
    assert find(driver, "#status")[0].text == "10 patches, 10 with warnings"
    assert errors(driver) == []
