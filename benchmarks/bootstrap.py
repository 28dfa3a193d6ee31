"""Time of an evaluation: bootstrap over slides for 20 % of Kaggle's training patches.

    python benchmarks/bootstrap.py [--patches 44000] [--slides 43] [--bootstrap_samples 1000] [--rounds 3]

Simulates labels and logits with slide effects; no data are needed. Compares `bootstrap_scores`, which sorts once and
uses weights, with a plain bootstrap that resamples whole slides and calls scikit-learn for each sample (20 samples,
scaled up). Both must give equal numbers for equal samples. Then measures the whole command `evaluate` on a CSV file,
including imports, figures and page. Prints medians with minimum and maximum.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import measure
import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from pcam_lightning.metrics.bootstrap import bootstrap_scores

PLAIN = 20  # samples of the plain bootstrap


def draw_rows(patches: int, slides: int) -> pd.DataFrame:
    """Simulate predictions of slides with different shares of tumor and different error rates."""
    rng = np.random.default_rng(0)
    slide = rng.integers(slides, size=patches)
    share, skill = rng.beta(1, 1.5, slides), rng.normal(2.5, 0.8, slides)
    label = (rng.random(patches) < share[slide]).astype(int)
    logit = rng.normal(size=patches) + skill[slide] * (label - 0.5)
    ids = [f"patch-{number:06d}" for number in range(patches)]
    return pd.DataFrame({"id": ids, "label": label, "logit": logit, "slide": [f"slide_{one:03d}" for one in slide]})


def draw_plainly(
    label: np.ndarray, logit: np.ndarray, cluster: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resample whole clusters and score each sample with scikit-learn."""
    rng = np.random.default_rng(seed)
    places = [np.flatnonzero(cluster == one) for one in np.unique(cluster)]
    chosen = rng.integers(len(places), size=(count, len(places)))
    samples = [np.concatenate([places[one] for one in row]) for row in chosen]
    return (
        np.array([roc_auc_score(label[sample], logit[sample]) for sample in samples]),
        np.array([average_precision_score(label[sample], logit[sample]) for sample in samples]),
    )


def main() -> None:
    """Run all rounds, compare results, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=44_000)
    parser.add_argument("--slides", type=int, default=43)
    parser.add_argument("--bootstrap_samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = draw_rows(args.patches, args.slides)
    label, logit, cluster = (rows[name].to_numpy() for name in ("label", "logit", "slide"))
    ours: list[float] = []
    plain: list[float] = []
    whole: list[float] = []
    for _ in range(args.rounds):
        begun = time.perf_counter()
        bootstrap_scores(label, logit, cluster, args.bootstrap_samples, 0)
        ours.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        expected = draw_plainly(label, logit, cluster, PLAIN, 0)
        plain.append((time.perf_counter() - begun) * args.bootstrap_samples / PLAIN)
        if not np.allclose(expected, bootstrap_scores(label, logit, cluster, PLAIN, 0)):
            raise SystemExit("the two bootstraps differ")
        with tempfile.TemporaryDirectory() as folder:
            rows.to_csv(Path(folder) / "rows.csv", index=False)
            command = [
                sys.executable,
                "-m",
                "pcam_lightning",
                "evaluate",
                "rows.csv",
                "--bootstrap_samples",
                str(args.bootstrap_samples),
            ]
            whole.append(measure.watch(command, cwd=Path(folder)).seconds)
    ratio = [one / other for one, other in zip(plain, ours, strict=True)]
    machine = measure.machine()
    sizes = f"{args.bootstrap_samples:,} samples of {args.patches:,} patches"
    print(f"{machine['processor']}, {machine['cores']} cores; {sizes}")
    for name, values in (
        ("bootstrap_scores, s", ours), ("plain bootstrap, s", plain), ("ratio", ratio),
        ("evaluate, whole command, s", whole),
    ):  # fmt: skip
        print(f"{name}: {statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})")


if __name__ == "__main__":
    main()
