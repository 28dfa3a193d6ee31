"""Ten seeds on Camelyon17-WILDS: leaderboard accuracies and CSV files for submission.

    python benchmarks/wilds.py DIR WORK [--seeds 10] [--configs configs/base.yaml configs/wilds.yaml] [--set JSON]

DIR contains metadata.csv and patches/. In WORK, `ablate` trains or resumes one run per seed, starting at seed 0, and
selects the epoch on hospital 1. best.ckpt then predicts the splits id_val, val and (once) test. WORK/predictions
contains camelyon17_split:SPLIT_seed:S_epoch:best_pred.csv with one label (0 or 1) per line in the order of
metadata.csv, for examples/evaluate.py of the WILDS package. Prints accuracies as mean (sd). --set takes options as
JSON, such as '{"trainer": {"max_epochs": 1}}'.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from pcam_lightning.data.batches import BatchSampler, Patches
from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.wilds import Wilds
from pcam_lightning.evaluation.ablate import ablate
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.training.options import Config
from pcam_lightning.training.trainer import build_trainer
from pcam_lightning.utils.atomic_io import atomic_write

PARTS = ("id_val", "val", "test")
BATCH = 256


def predict(checkpoint: Path, patches: Patches) -> np.ndarray:
    """Predict the logits of patches with a checkpoint, float32 (N,), in order."""
    config = Config.of_run(LoadedRun.open(checkpoint))
    _, model, options = config.build()
    sampler = BatchSampler(len(patches), BATCH, None)
    loader = DataLoader(patches, sampler=sampler, batch_size=None)
    trainer = build_trainer(options, [], fits=False, devices=1)
    found: Any = trainer.predict(model, loader, ckpt_path=checkpoint, weights_only=True)
    logit: np.ndarray = torch.cat([batch["logit"] for batch in found]).numpy()
    return logit


def main() -> None:
    """Train, predict, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    configs = Path(__file__).parents[1] / "configs"
    parser.add_argument("--configs", type=Path, nargs="+", default=[configs / "base.yaml", configs / "wilds.yaml"])
    parser.add_argument("--set", type=json.loads, default={})
    args = parser.parse_args()
    root, paths = args.root.resolve(), [path.resolve() for path in args.configs]
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)
    config = Config.load(*paths, data={"root": str(root)}, seed_everything=0).replace(**args.set)
    Path("rows.yaml").write_text("{}\n")
    folder = ablate(config, Path("rows.yaml"), args.seeds)
    source = Wilds(root)
    table = source.read_all()
    Path("predictions").mkdir(exist_ok=True)
    rows = []
    for part in PARTS:
        own = table[table["part"] == part].reset_index(drop=True)
        store = open_store(own, source, part)
        patches = Patches(store, store.rows(own["id"]), None, 0)
        for seed in range(args.seeds):
            logit = predict(folder / "rows" / "base" / f"seed_{seed}" / "checkpoints" / "best.ckpt", patches)
            called = (logit > 0).astype(int)
            text = "".join(f"{label}\n" for label in called)
            atomic_write(Path("predictions") / f"camelyon17_split:{part}_seed:{seed}_epoch:best_pred.csv", text)
            rows.append({"part": part, "seed": seed, "accuracy": float((called == own["label"]).mean()), "n": len(own)})
    found = pd.DataFrame(rows)
    found.to_csv("accuracies.csv", index=False)
    print(
        f"\n{len(paths)} configs, {args.seeds} seeds, {measure.machine()}\n\n| split | n | accuracy |\n|---|---:|---:|"
    )
    for name, each in found.groupby("part", sort=False):
        spread = f" ({each['accuracy'].std():.4f})" if args.seeds > 1 else ""
        print(f"| {name} | {each['n'].iloc[0]:,} | {each['accuracy'].mean():.4f}{spread} |")


if __name__ == "__main__":
    main()
