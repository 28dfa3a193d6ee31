"""Time and memory to read the table of each layout.

    python benchmarks/layouts.py WORK [--patches 455954] [--rounds 3]

Writes one folder per layout to WORK, with the number of patches of Camelyon17-WILDS, and Kaggle's layout with 220,025.
The images are empty files, because a table needs only their names. Reads each in its own process, and measures the
seconds to the training and test tables, and the peak memory beyond that of importing the project. Prints medians over
the rounds with minimum and maximum. Run nothing else on the machine.
"""

import argparse
import hashlib
import statistics
import sys
from pathlib import Path

import measure
import numpy as np
import pandas as pd
from timers import spread
from tqdm import tqdm

KAGGLE = 220_025  # training patches
WILDS = 455_954
SLIDES = 50
_READ = """
import sys, time
from pathlib import Path
from pcam_lightning.data.sources import open_source, parts
root = Path(sys.argv[1])
begun = time.perf_counter()
if root.name != "nothing":
    count = len(open_source(root, "train").read_train())
    if "test" in parts(root):
        count += len(open_source(root, "test").read_test())
    print(count)
print(time.perf_counter() - begun)
"""


def touch(root: Path, paths: list[str]) -> None:
    """Write empty files."""
    for folder in {path.rpartition("/")[0] for path in paths}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for path in tqdm(paths, desc=f"writing {root.name}", unit="file"):
        (root / path).touch()


def write_kaggle(root: Path, count: int) -> Path:
    """Write Kaggle's layout."""
    ids = [hashlib.sha1(str(number).encode()).hexdigest() for number in range(count)]
    touch(root, [f"train/{one}.tif" for one in ids])
    pd.DataFrame({"id": ids, "label": np.arange(count) % 2}).to_csv(root / "train_labels.csv", index=False)
    return root


def write_classes(root: Path, count: int) -> Path:
    """Write class folders."""
    touch(root, [f"train/{('normal', 'tumor')[number % 2]}/{number:06d}.png" for number in range(count)])
    return root


def write_wilds(root: Path, count: int) -> Path:
    """Write metadata.csv and patches/."""
    number = np.arange(count)
    slide = number % SLIDES
    table = pd.DataFrame(
        {
            "patient": [f"{one:03d}" for one in 2 * slide],
            "node": slide % 5,
            "x_coord": 32 * (number // SLIDES % 1000),
            "y_coord": 32 * (number // SLIDES // 1000),
            "tumor": number // SLIDES % 2,
            "slide": slide,
            "center": slide // 10,
            "split": (number % 11 == 0).astype(int),
        }
    )
    folder = "patient_" + table["patient"] + "_node_" + table["node"].astype(str)
    place = "_x_" + table["x_coord"].astype(str) + "_y_" + table["y_coord"].astype(str)
    paths = "patches/" + folder + "/patch_" + folder + place + ".png"
    touch(root, paths.tolist())
    table.to_csv(root / "metadata.csv")
    split = np.select([table["center"] == 1, table["center"] == 2], ["val", "test"], "train")
    patches = pd.DataFrame({"path": paths, "label": table["tumor"], "slide": slide, "center": table["center"]})
    patches.assign(split=split).to_csv(root / "patches.csv", index=False)
    return root


def read(root: Path) -> tuple[int, float, float]:
    """Read the tables of a folder in a new process; return patches, seconds and peak MB."""
    watched = measure.watch([sys.executable, "-c", _READ, str(root)])
    numbers = [line for line in watched.output.splitlines() if line.replace(".", "").replace("e-", "").isdigit()]
    return int(numbers[0]) if len(numbers) > 1 else 0, float(numbers[-1]), watched.peak_anonymous / 1e6


def main() -> None:
    """Write missing folders, read all and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--patches", type=int, default=WILDS)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    writers = {"kaggle": write_kaggle, "classes": write_classes, "wilds": write_wilds}
    for name, function in writers.items():
        if not (args.work / name).is_dir():
            function(args.work / name, min(args.patches, KAGGLE) if name == "kaggle" else args.patches)
    nothing = statistics.median(read(args.work / "nothing")[2] for _ in range(args.rounds))
    lines = []
    for name in ("kaggle", "classes", "wilds/patches.csv", "wilds"):
        found = [read(args.work / name) for _ in range(args.rounds)]
        memory = [one[2] - nothing for one in found]
        lines.append([name, f"{found[0][0]:,}", spread([one[1] for one in found]), spread(memory)])
    print(f"{measure.machine()}, n={args.rounds}; importing the project takes {nothing:.0f} MB")
    print(measure.table(["layout", "patches", "seconds", "MB more than importing"], lines))


if __name__ == "__main__":
    main()
