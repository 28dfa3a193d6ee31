"""How far is the score on a random split from the score on slides that no training patch comes from?

    python benchmarks/unseen_slides.py DIR --seeds 3 -- -c configs/base.yaml -c configs/cpu.yaml --model.weights none

DIR is in Kaggle's layout, with an answers.csv (id,label) for its test/ part from other slides. For each seed: fit
with the arguments after `--`, then test with best.ckpt, through the project's own command line. Nothing is chosen by
the test scores. Writes unseen_slides.json into the current folder and prints a table with mean and spread.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from pcam_lightning.files import write_whole


def run_seed(root: Path, seed: int, recipe: list[str]) -> dict[str, float]:
    """Fit and test once; return validation AUROC, unseen slides' AUROC, and seconds of fit."""
    command = [sys.executable, "-m", "pcam_lightning"]
    begun = time.perf_counter()
    fit = [*command, "fit", *recipe, "--data.root", str(root), "--seed_everything", str(seed)]
    with subprocess.Popen(fit, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = [line for line in process.stderr if line.startswith(("run: ", "error: "))]
    if process.returncode:
        raise SystemExit(told[-1] if told else f"fit ended with {process.returncode}")
    seconds = time.perf_counter() - begun
    run = Path(told[0].removeprefix("run: ").strip())
    subprocess.run([*command, "test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")], check=True)
    val = pd.read_csv(run / "metrics.csv")["val/auroc"].max()
    unseen = json.loads((run / "test.json").read_text())["test/auroc"]
    return {"seed": seed, "val": val, "unseen": unseen, "distance": val - unseen, "seconds": seconds}


def main() -> None:
    """Run all seeds and tell what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("recipe", nargs="+", help="arguments of fit, after --")
    args = parser.parse_args()
    rows = [run_seed(args.root, 42 + number, args.recipe) for number in range(args.seeds)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    told = {"recipe": args.recipe, "device": device, "machine": platform.machine(), "torch": torch.__version__}
    write_whole(Path("unseen_slides.json"), json.dumps({**told, "runs": rows}, indent=2) + "\n")
    print(f"{device}, torch {torch.__version__}, n={len(rows)}")
    for name in ("val", "unseen", "distance", "seconds"):
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{name:>9} {statistics.mean(values):9.4f}  sd {spread:.4f}  ({', '.join(f'{v:.4f}' for v in values)})")


if __name__ == "__main__":
    main()
