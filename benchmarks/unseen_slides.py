"""How far is a validation score from the score on slides that no training patch comes from, by kind of split?

    python benchmarks/unseen_slides.py DIR --splits random appearance -- -c configs/base.yaml -c configs/cpu.yaml \
        --model.weights none

DIR is in Kaggle's layout, with an answers.csv (id,label) for its test/ part from other slides. For each seed and kind
of split: fit with the arguments after `--`, the seed being that of the split too, then test with best.ckpt, through the
project's own command line. Nothing is chosen by the test scores. A kind is `random`, `appearance` (groups of patches
that look alike, by `appearance.py` and the seed) or a CSV of slides (id,wsi). Writes unseen_slides.json into the
current folder and prints a table with mean and standard deviation.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import measure
import pandas as pd
from appearance import write_groups

Run = dict[str, float]


def run_seed(root: Path, seed: int, split: str, recipe: list[str]) -> Run:
    """Fit and test once; return AUROC on both, their distance, its size, and seconds of fit."""
    command = [sys.executable, "-m", "pcam_lightning"]
    begun = time.perf_counter()
    fit = [*command, "fit", *recipe, "--data.root", str(root), "--seed_everything", str(seed)]
    fit += ["--data.split_seed", str(seed)]
    if split == "appearance":
        split = f"groups_{seed}.csv"
        write_groups(root, Path(split), seed)
    if split != "random":
        fit += ["--data.slides", split]
    with subprocess.Popen(fit, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = [line for line in process.stderr if line.startswith(("run: ", "error: "))]
    if process.returncode:
        raise SystemExit(told[-1] if told else f"fit ended with {process.returncode}")
    seconds = time.perf_counter() - begun
    run = Path(told[0].removeprefix("run: ").strip())
    subprocess.run([*command, "test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")], check=True)
    val = float(pd.read_csv(run / "metrics.csv")["val/auroc"].max())
    unseen = json.loads((run / "test.json").read_text())["test/auroc"]
    distance = val - unseen
    return {
        "seed": seed, "val": val, "unseen": unseen, "distance": distance, "error": abs(distance), "seconds": seconds
    }  # fmt: skip


def main() -> None:
    """Run all seeds and tell what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", nargs="+", default=["random"])
    parser.add_argument("recipe", nargs="+", help="arguments of fit, after --")
    args = parser.parse_args()
    told: dict[str, list[Run]] = {split: [] for split in args.splits}
    for number in range(args.seeds):
        for split, runs in told.items():
            runs.append(run_seed(args.root, 42 + number, split, args.recipe))
            print(f"{split}: {runs[-1]}", flush=True)
    machine = measure.machine()
    measure.save(Path("unseen_slides.json"), {"machine": machine, "recipe": args.recipe, "splits": told})
    print(f"{machine}, n={args.seeds}")
    names = ("val", "unseen", "distance", "error", "seconds")
    print(
        measure.table(
            ["split", *names], [[split, *(tell(runs, name) for name in names)] for split, runs in told.items()]
        )
    )


def tell(runs: list[Run], name: str) -> str:
    """Tell a value's mean and standard deviation."""
    values = [run[name] for run in runs]
    digits = 0 if name == "seconds" else 4
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.{digits}f} (sd {spread:.{digits}f})"


if __name__ == "__main__":
    main()
