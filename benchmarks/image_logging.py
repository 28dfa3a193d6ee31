"""Time of TensorBoard images: seconds after a validation, and share of an epoch.

    python benchmarks/image_logging.py ROOT [--rounds 5]

ROOT has Kaggle's layout. Scores are simulated with an AUROC of about 0.94; patches are from ROOT. Each round measures
the images for its validation split, those for 44,005 scores (the size of Kaggle's), and training steps of base.yaml
with batch size 128. The time of an epoch is computed from the training rate. Prints medians over the rounds with
minimum and maximum. Run nothing else on the machine.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import measure
import numpy as np
import pandas as pd
import torch
from device import wait_for_device
from timers import spread

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.image_logger import ImageLogger
from pcam_lightning.training.metrics_csv import RunTensorBoardLogger
from pcam_lightning.utils.run_dir import Run
from pcam_lightning.utils.system import cpu_is_faster_in_bf16, keep_freed_memory

KAGGLE, BATCH, STEPS = 44_005, 128, 4


def draw_logits(data: PCamDataModule, count: int, seed: int) -> "pd.Series[float]":
    """Simulate scores of validation patches, which are repeated if there are too few."""
    assert data.table is not None
    assert data.val_mask is not None
    rows = data.table[data.val_mask]
    rows = rows.iloc[np.resize(np.arange(len(rows)), count)]
    logit = np.random.default_rng(seed).normal(4.4 * rows["label"] - 2.2, 2.0)
    return pd.Series(logit.astype(np.float32), index=rows["id"].to_numpy())


def main() -> None:
    """Run all rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    data = PCamDataModule(args.root, batch_size=BATCH)
    data.setup("fit")
    assert data.val_mask is not None
    own, train = int(data.val_mask.sum()), int((~data.val_mask).sum())
    model = PCamClassifier(weights="none").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    half = device.type == "cuda" or cpu_is_faster_in_bf16()
    image = model.preprocess(data.sample(BATCH).to(device))
    found: dict[str, list[float]] = defaultdict(list)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logit = model(image)
        torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.ones_like(logit)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    with TemporaryDirectory() as folder:
        page = ImageLogger(RunTensorBoardLogger(Run(Path(folder))), data)
        step()
        page._log_validation(draw_logits(data, own, 0).to_frame("logit"))  # the first calls warm up
        for number in range(args.rounds):
            for name, count in (("own", own), ("Kaggle's", KAGGLE)):
                logit = draw_logits(data, count, number)
                begun = time.perf_counter()
                page._log_validation(logit.to_frame("logit"))
                found[name].append(time.perf_counter() - begun)
            wait_for_device()
            begun = time.perf_counter()
            for _ in range(STEPS):
                step()
            wait_for_device()
            epoch = (time.perf_counter() - begun) / STEPS * train / BATCH
            found["epoch"].append(epoch)
            found["share, %"].append(100 * found["own"][-1] / epoch)
    print("\n".join(f"{name}: {value}" for name, value in measure.machine().items()), end="\n\n")
    for name, message in (
        ("own", f"images of {own:,} scores, s"),
        ("Kaggle's", f"images of {KAGGLE:,} scores, s"),
        ("epoch", f"an epoch of {train:,} patches, s"),
        ("share, %", "images of the epoch, %"),
    ):
        print(f"{message}: {spread(found[name])}, n = {args.rounds}")


if __name__ == "__main__":
    main()
