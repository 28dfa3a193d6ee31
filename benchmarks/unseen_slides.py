"""Generalization gap by recipe and split: validation score minus score on unseen slides.

    python benchmarks/unseen_slides.py DIR --splits random appearance -- -c configs/base.yaml -c configs/cpu.yaml \
        --model.weights none
    python benchmarks/unseen_slides.py DIR --views none d4 \
        -- -c configs/base.yaml -c configs/cpu.yaml --model.weights none \
        -- -c configs/base.yaml -c configs/best.yaml

DIR has Kaggle's layout, with an answers.csv (id,label) for test/, which contains other slides. Each `--` starts the
arguments of fit for one recipe, or those of probe after the word `probe`. For each seed, recipe and kind of split, runs
fit, with the seed also used for the split, then validate and test with best.ckpt for each kind of views, through the
command line. Test scores are not used for any choice. A kind of split is `random`, `appearance` (groups of similar
patches by `appearance.py` and the seed) or a CSV file of slides (id,wsi). Views are `none`, `d4`, or `adapted` (one
view, with BatchNorm adapted to the scored patches).

Prints mean and standard deviation over the seeds; the mean gap with a 95 % interval from a bootstrap over patches (too
narrow, because slides are unknown); and the difference from the first recipe on unseen slides, paired by seed. Results
are saved in unseen_slides.json in the current folder. Existing runs are not repeated, so use another folder for another
DIR or an edited recipe.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
from appearance import write_groups

from pcam_lightning.metrics.bootstrap import bootstrap_scores
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.training.predictions import read_predictions_csv

SAMPLES = 1000
FILE = Path("unseen_slides.json")
VIEWS = {
    "none": ["--model.tta", "none"],
    "d4": ["--model.tta", "d4"],
    "adapted": ["--model.tta", "none", "--trainer.callbacks+=pcam_lightning.training.adapt_batchnorm.AdaptBatchNorm"],
}
COMMAND = [sys.executable, "-m", "pcam_lightning"]
Result = dict[str, Any]


def fit(root: Path, seed: int, split: str, recipe: list[str]) -> Result:
    """Run fit once; return its folder and seconds."""
    command = recipe if recipe[0] == "probe" else ["fit", *recipe]
    command = [*COMMAND, *command, "--data.root", str(root), "--seed_everything", str(seed)]
    command += ["--data.split_seed", str(seed)]
    if split == "appearance":
        split = f"groups_{seed}.csv"
        write_groups(root, Path(split), seed)
    if split != "random":
        command += ["--data.slides", split]
    begun = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [line for line in process.stderr if line.startswith(("run: ", "error: "))]
    if process.returncode:
        raise SystemExit(lines[-1] if lines else f"fit ended with {process.returncode}")
    return {"run": lines[0].removeprefix("run: ").strip(), "seconds": time.perf_counter() - begun}


def evaluate_run(run: Path, views: str, seed: int) -> Result:
    """Validate and test; return both AUROCs and bootstrap samples of their gap."""
    scores: Result = {}
    sampled = {}
    for part, stage, bootstrap_seed in (("val", "validate", seed), ("unseen", "test", 0)):
        flags = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt"), *VIEWS[views]]
        subprocess.run([*COMMAND, stage, *flags], check=True, stdout=subprocess.DEVNULL)
        rows = read_predictions_csv(run / f"{'val' if part == 'val' else 'test'}_predictions.csv")
        label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
        scores[part] = auroc(label, logit)
        # The unseen patches are the same for all seeds, and so are their bootstrap samples.
        sampled[part] = bootstrap_scores(label, logit, rows["id"].to_numpy(), SAMPLES, bootstrap_seed)[0]
    return scores | {"gaps": [round(float(one), 5) for one in sampled["val"] - sampled["unseen"]]}


def main() -> None:
    """Run missing experiments and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=42)
    parser.add_argument("--splits", nargs="+", default=["random"])
    parser.add_argument("--views", nargs="+", default=["none"], choices=VIEWS)
    own, *recipes = split_at_dashes(sys.argv[1:])
    args = parser.parse_args(own)
    if not recipes:
        parser.error("no recipe: add the arguments of fit after --")
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    found: dict[str, Result] = json.loads(FILE.read_text())["results"] if FILE.is_file() else {}
    for seed in seeds:
        for split in args.splits:
            for recipe in recipes:
                name = key(recipe, split, seed)
                if name not in found:
                    found[name] = fit(args.root, seed, split, recipe) | {"views": {}}
                    measure.save(FILE, {"machine": measure.machine(), "results": found})
                for views in args.views:
                    if views not in found[name]["views"]:
                        found[name]["views"][views] = evaluate_run(Path(found[name]["run"]), views, seed)
                measure.save(FILE, {"machine": measure.machine(), "results": found})
                print(f"{name}: {summary(found[name])}", flush=True)
    print(f"{measure.machine()}, n={args.seeds}")
    rows = []
    for split in args.splits:
        for views in args.views:
            first = None
            for recipe in recipes:
                runs = [found[key(recipe, split, seed)] for seed in seeds]
                row, first = sum_up(runs, views, first)
                rows.append([" ".join(recipe), split, views, *row])
    names = ["recipe", "split", "views", "val/auroc", "unseen slides", "gap", "95 %", "above the first", "minutes"]
    print(measure.table(names, rows))


def split_at_dashes(args: list[str]) -> list[list[str]]:
    """Split arguments at each --."""
    parts: list[list[str]] = [[]]
    for arg in args:
        if arg == "--":
            parts.append([])
        else:
            parts[-1].append(arg)
    return parts


def key(recipe: list[str], split: str, seed: int) -> str:
    """Return the name of a run."""
    return f"{' '.join(recipe)}, {split}, seed {seed}"


def summary(result: Result) -> str:
    """Return the scores of a run as text."""
    each = [f"{name}: val {one['val']:.4f}, unseen {one['unseen']:.4f}" for name, one in result["views"].items()]
    return f"{'; '.join(each)}; {result['seconds'] / 60:.1f} minutes"


def sum_up(runs: list[Result], views: str, first: np.ndarray | None) -> tuple[list[str], np.ndarray]:
    """Return a table row, and the scores on unseen slides for comparison with other recipes."""
    val, unseen = (np.array([run["views"][views][name] for run in runs]) for name in ("val", "unseen"))
    sampled = np.mean([run["views"][views]["gaps"] for run in runs], axis=0)
    low, high = np.quantile(sampled, [0.025, 0.975])
    above = "" if first is None else spread(list(unseen - first), "+")
    minutes = statistics.mean(run["seconds"] for run in runs) / 60
    cells = [spread(list(val)), spread(list(unseen)), spread(list(val - unseen), "+"), f"{low:+.3f} to {high:+.3f}"]
    return [*cells, above, f"{minutes:.1f}"], unseen if first is None else first


def spread(values: list[float], sign: str = "") -> str:
    """Return mean and standard deviation as text."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):{sign}.4f} ({deviation:.4f})"


if __name__ == "__main__":
    main()
