"""Draw the images of README and docs from synthetic tissue: teaser.png, and report.png and heatmap.jpg by a browser.

    python docs/draw_images.py WORK [--browser chromium]

Draws tissue below WORK, a new folder, trains a ResNet-18 on it for eight epochs, evaluates it, trains fast.yaml for six
epochs and predicts a drawn slide, and writes the images into docs/images/. Two CPU cores: some five minutes.
"""

import os
import shutil
import subprocess
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.special import expit

from pcam_lightning import Config, evaluate, fit, predict_slide
from pcam_lightning.evaluation.interpret import cam_layer, grad_cam
from pcam_lightning.evaluation.labeled_predictions import read_labeled_predictions
from pcam_lightning.plotting.patch_grids import heatmap_grid
from pcam_lightning.plotting.style import as_png
from pcam_lightning.synthetic.kaggle_folder import synthesize
from pcam_lightning.training.checkpoint import load_classifier, read_checkpoint
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.run_dir import Run

IMAGES = Path(__file__).absolute().parent / "images"
SHOWN = 8  # patches of the teaser, half of them with tumor


def train() -> Run:
    """Train on synthetic tissue, slides held out whole; return the run."""
    data = Path("data")
    synthesize(data, train=2000, test=0, slides=40, seed=3)
    config = Config.load(
        data={"root": str(data), "batch_size": 64, "slides": str(data / "patch_id_wsi_full.csv")},
        model={"weights": "none", "augment": {"degrees": 0, "d4": True, "stain": 0.1}},
        trainer={"max_epochs": 8, "precision": "16-mixed"},
    )
    run = fit(config).run
    assert run is not None
    return run


def draw_teaser(run: Run) -> None:
    """Draw patches, the network's probability of tumor, and Grad-CAM over them."""
    predictions = read_labeled_predictions(run.folder)
    rows, data = predictions.rows, predictions.data
    assert data is not None
    rng = np.random.default_rng(0)
    right = rows[(rows["logit"] > 0) == (rows["label"] == 1)]
    chosen = [right[right["label"] == label].sample(SHOWN // 2, random_state=rng) for label in (1, 0)]
    model = load_classifier(run.best, read_checkpoint(run.best), None)
    images, titles = [], []
    for part in chosen:
        images.append(data.train_store.images[data.train_store.rows(part["id"])])
        name = "tumor" if part["label"].iloc[0] else "normal"
        titles += [f"{name}, p = {prob:.2f}" for prob in expit(part["logit"])]
    shown = np.concatenate(images)
    layer = cam_layer(model, torch.zeros(1, 96, 96, 3, dtype=torch.uint8))
    heat = grad_cam(model, torch.from_numpy(shown), layer)
    atomic_write(IMAGES / "teaser.png", as_png(heatmap_grid(shown, heat, titles), dpi=130))


def shoot_report(run: Run, browser: str) -> None:
    """Take a screenshot of the first screen of the report."""
    shutil.copyfile(take_screenshot(evaluate(run.folder).page, browser), IMAGES / "report.png")


def shoot_heatmap(browser: str) -> None:
    """Take a screenshot of the page of a drawn slide."""
    config = Config.load(
        *(IMAGES.parents[1] / "configs" / name for name in ("base.yaml", "fast.yaml")),
        data={"root": "data"},
        trainer={"max_epochs": 6},
    )
    checkpoint = fit(config).checkpoint
    assert checkpoint is not None
    synthesize(Path("slides"), slides=3, whole=True)
    result = predict_slide("slides/tumor_001.tif", checkpoint, "heatmap")
    picture = Image.open(take_screenshot(result.folder / "heatmap.html", browser))
    picture.convert("RGB").save(IMAGES / "heatmap.jpg", quality=80)  # a quarter of what a PNG takes


def take_screenshot(page: Path, browser: str) -> Path:
    """Take a screenshot of a page; return the PNG, beside it."""
    picture = page.absolute().with_suffix(".png")
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,900", f"--screenshot={picture}"]
    flags += ["--virtual-time-budget=20000"]  # of a page that draws itself
    subprocess.run([browser, *flags, page.absolute().as_uri()], check=True, capture_output=True)
    return picture


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--browser", default="chromium")
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    os.chdir(args.work)  # pages then show relative paths
    IMAGES.mkdir(exist_ok=True)
    finished = train()
    draw_teaser(finished)
    shoot_report(finished, args.browser)
    shoot_heatmap(args.browser)
