"""Training time to AUROC 0.95 on unseen slides, for configs/fast.yaml and the reference recipe.

    python benchmarks/time_to_auc.py race ROOT WORK [--target 0.95] [--baseline_seeds 0]
    python benchmarks/time_to_auc.py parts ROOT WORK

ROOT has Kaggle's layout with an answers.csv, and its test/ contains other slides than train/. WORK is a folder for
links and runs. The reference recipe trains ResNet-18 from random weights, and fast.yaml starts from its own weights.

`race` trains on all of train/. The sorted ids of test/ are split into halves. Training stops when two consecutive
validations on the first half reach the target; the second half is scored once. Both sides are validated eight times per
epoch (the baseline after every four of its 38 steps). Validation and start-up are excluded. The baseline is
`reference.py` with 15 epochs of batch size 512. It can take hours on a slow machine; `--most` limits its training time
in seconds. Writes race.json.

`parts` measures changes to fast.yaml on train/ only. 20 % are held out as whole groups of similar patches (stain and
contrast, k-means), because slides are unknown. Each row removes, adds or replaces one part of fast.yaml, and shows the
seconds until two consecutive validations reach the target, and the AUROC of the last validation. test/ is not read.
Writes parts.json.

Run nothing else on the machine.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pandas as pd
import torch
from appearance import describe
from reference import Baseline, fit, make_loader
from sklearn.cluster import KMeans
from timers import reached, spread

from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_test, read_train
from pcam_lightning.data.splits import write_split

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
EPOCHS, BATCH = 15, 512  # of the reference recipe recipe
CHECKS = 8  # validations per epoch
GROUPS = 60  # groups of similar patches, with about 300 patches each

Run = dict[str, Any]  # results of a run; `seconds` is None if the target was not reached


def link(source: Path, target: Path) -> None:
    """Create a hard link, or a copy if the file system does not support links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def lay_out_race(root: Path, work: Path) -> None:
    """Create a folder with train/ for training, half of test/ for validation, and the other half as test/."""
    train, test = read_train(root), read_test(root, answers=True).sort_values("id", ignore_index=True)
    stop, report = test[::2], test[1::2]
    for folder in ("train", "test"):
        (work / folder).mkdir(parents=True)
    labeled = pd.concat([train, stop], ignore_index=True)
    for folder, table in (("train", labeled), ("test", report)):
        for path in table["path"]:
            link(root / path, work / folder / Path(path).name)
    labeled[["id", "label"]].to_csv(work / "train_labels.csv", index=False)
    report[["id", "label"]].to_csv(work / "answers.csv", index=False)
    write_split(work / "split.csv", labeled, labeled["id"].isin(stop["id"]).to_numpy())


def lay_out_parts(root: Path, work: Path) -> None:
    """Create a folder with only train/, and a split by appearance."""
    (work / "train").mkdir(parents=True)
    table = read_train(root)
    for path in table["path"]:
        link(root / path, work / "train" / Path(path).name)
    shutil.copyfile(root / "train_labels.csv", work / "train_labels.csv")
    store = open_store(table, open_source(root), "train")
    group = KMeans(GROUPS, n_init=3, random_state=0).fit_predict(describe(store.images, store.rows(table["id"])))
    mask = np.zeros(len(table), dtype=bool)
    for chosen in np.random.default_rng(0).permutation(GROUPS):
        if mask.mean() < 0.2:
            mask |= group == chosen
    write_split(work / "split.csv", table, mask)


def run_project(work: Path, seed: int, target: float, *flags: str, stop: bool) -> Run:
    """Train with fast.yaml; return the seconds to the target, the total seconds, and the last AUROC."""
    clock = work / "clock.json"
    command = [sys.executable, "-m", "pcam_lightning", "fit"]
    command += [f"--config={CONFIGS / name}" for name in ("base.yaml", "fast.yaml")]
    command += ["--data.root", str(work), "--data.split_file", str(work / "split.csv")]
    command += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(work)]
    command += ["--trainer.val_check_interval", str(1 / CHECKS), *flags]
    # Shorten the epoch by a few steps, so that it ends with a validation.
    batch = next((int(flag.partition("=")[2]) for flag in flags if flag.startswith("--data.batch_size=")), 64)
    patches = int((pd.read_csv(work / "split.csv")["split"] == "train").sum())
    command += ["--trainer.limit_train_batches", str(patches // batch // CHECKS * CHECKS)]
    command += ["--trainer.callbacks+=timers.Clock", f"--trainer.callbacks.file={clock}"]
    if stop:
        command.append(f"--trainer.callbacks.target={target}")
    measure.watch(command, env={"PYTHONPATH": f"{HERE}:{HERE.parent}"})
    return outcome(seed, json.loads(clock.read_text()), target)


def outcome(seed: int, rows: list[dict[str, float]], target: float) -> Run:
    """Summarize a run from its validations."""
    return {
        "seed": seed,
        "seconds": reached(rows, target),
        "training": rows[-1]["seconds"],
        "auroc": rows[-1]["auroc"],
        "validations": rows,
    }


def run_baseline(work: Path, seed: int, target: float, device: torch.device, most: float) -> Run:
    """Train the reference recipe; return the same values and the AUROC on the second half."""
    torch.manual_seed(seed)
    frame = pd.read_csv(work / "train_labels.csv")
    part = frame["id"].map(pd.read_csv(work / "split.csv").set_index("id")["split"])
    train = make_loader(work / "train", frame[part == "train"], BATCH, device, train=True)
    val = make_loader(work / "train", frame[part == "val"], BATCH, device, train=False)
    baseline, rows = Baseline(device), []
    for row in fit(baseline, train, val, EPOCHS, every=max(len(train) // CHECKS, 1)):
        rows.append(row)
        print(f"baseline, seed {seed}: {row}", flush=True)
        if reached(rows, target) is not None or row["seconds"] > most:
            break
    report = make_loader(work / "test", pd.read_csv(work / "answers.csv"), BATCH, device, train=False)
    return outcome(seed, rows, target) | {"report": baseline.score(report)}


def race(root: Path, work: Path, seeds: int, baseline_seeds: int, target: float, most: float) -> None:
    """Train both sides to the target."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lay_out_race(root, work)
    message: dict[str, list[Run]] = {"project": [], "baseline": []}
    for number in range(seeds):
        message["project"].append(run_project(work, 42 + number, target, stop=True) | {"report": score_report(work)})
        print(f"project: {message['project'][-1]}", flush=True)
    for number in range(baseline_seeds):
        message["baseline"].append(run_baseline(work, 42 + number, target, device, most))
        print(f"baseline: {message['baseline'][-1]}", flush=True)
    measure.save(Path("race.json"), {"machine": measure.machine(), "target": target, **message})
    print(measure.machine())
    rows = [
        [side, *(summary(runs, name) for name in ("seconds", "training", "report"))]
        for side, runs in message.items()
        if runs
    ]
    names = [f"seconds of training to {target}", "total seconds of training", "AUROC on the second half"]
    print(measure.table(["", *names], rows))


def summary(runs: list[Run], name: str) -> str:
    """Return the median over the runs that have a value, and their number, as text."""
    values = [value for run in runs if (value := run[name]) is not None]
    return f"{spread(values) if values else 'never'}, n={len(values)} of {len(runs)}"


def score_report(work: Path) -> float:
    """Score last.ckpt of the newest run on test/."""
    run = max((work / "lightning_logs" / "fast").glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    checkpoint = run / "checkpoints" / "last.ckpt"
    measure.watch([sys.executable, "-m", "pcam_lightning", "test", "--ckpt_path", str(checkpoint)])
    return float(json.loads((run / "test.json").read_text())["test/auroc"])


# Flags that remove, add or replace one part of fast.yaml.
GROWING = ["--trainer.callbacks+=timers.Growth", "--trainer.callbacks.side=48", "--trainer.callbacks.share=0.6"]
CHANGES: dict[str, list[str]] = {
    "fast.yaml": [],
    "weights not averaged": ["--trainer.callbacks=null"],
    "angles for symmetries": ["--model.augment.d4=false", "--model.augment.degrees=90"],
    "batch 128": ["--data.batch_size=128"],
    "rate 0.001": ["--model.lr=1e-3"],
    "rate 0.004": ["--model.lr=4e-3"],
    "patches grow from 48 to 96 pixels": GROWING,
    "center 64 pixels": ["--model.crop=64"],
    "efficientnet_lite0_s16": ["--model.backbone=efficientnet_lite0_s16"],
    "cutmix 0.5": ["--model.augment.cutmix=0.5"],
}


def parts(root: Path, work: Path, seeds: int, target: float) -> None:
    """Run fast.yaml with each change in turn."""
    lay_out_parts(root, work)
    message: dict[str, list[Run]] = {name: [] for name in CHANGES}
    for number in range(seeds):
        for name, flags in CHANGES.items():
            message[name].append(run_project(work, 42 + number, target, *flags, stop=False))
            print(f"{name}: {message[name][-1]}", flush=True)
    measure.save(Path("parts.json"), {"machine": measure.machine(), "target": target, **message})
    print(measure.machine())
    names = ("seconds", "training", "auroc")
    rows = [[change, *(summary(runs, name) for name in names)] for change, runs in message.items()]
    print(measure.table(["", f"seconds of training to {target}", "total seconds of training", "final AUROC"], rows))


def main() -> None:
    """Run the chosen benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("race", "parts"))
    parser.add_argument("root", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--baseline_seeds", type=int, default=0)
    parser.add_argument("--target", type=float, default=0.95, help="AUROC to reach")
    parser.add_argument("--most", type=float, default=float("inf"), help="maximum seconds of training for a baseline")
    args = parser.parse_args()
    work = (args.work / args.what).absolute()
    if work.exists():
        raise SystemExit(f"{work}: already exists; remove it or choose another folder.")
    if args.what == "race":
        race(args.root.absolute(), work, args.seeds, args.baseline_seeds, args.target, args.most)
    else:
        parts(args.root.absolute(), work, args.seeds, args.target)


if __name__ == "__main__":
    main()
