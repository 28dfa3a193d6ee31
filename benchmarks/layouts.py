"""How long does it take to read the table of each layout, and in what memory?

    python benchmarks/layouts.py WORK [--patches 455954] [--rounds 3]

Writes into WORK a folder of each layout with as many patches as Camelyon17-WILDS has, and Kaggle's with its 220,025.
The images are empty files: a table needs their names alone. Reads each in a process of its own: seconds from the data
folder to the tables of training and test part, and peak memory of the process beyond that of importing the project.
Prints medians over the rounds with minimum and maximum. With nothing else on the machine.
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


def draw_kaggle(root: Path, count: int) -> Path:
    """Write Kaggle's layout."""
    ids = [hashlib.sha1(str(number).encode()).hexdigest() for number in range(count)]
    touch(root, [f"train/{one}.tif" for one in ids])
    pd.DataFrame({"id": ids, "label": np.arange(count) % 2}).to_csv(root / "train_labels.csv", index=False)
    return root


def draw_classes(root: Path, count: int) -> Path:
    """Write class folders."""
    touch(root, [f"train/{('normal', 'tumor')[number % 2]}/{number:06d}.png" for number in range(count)])
    return root


def draw_wilds(root: Path, count: int) -> Path:
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
    """Return patches, seconds and peak MB of reading a folder's tables in a process of its own."""
    watched = measure.watch([sys.executable, "-c", _READ, str(root)])
    numbers = [line for line in watched.output.splitlines() if line.replace(".", "").replace("e-", "").isdigit()]
    return int(numbers[0]) if len(numbers) > 1 else 0, float(numbers[-1]), watched.peak_anonymous / 1e6


def main() -> None:
    """Write what is not there, read and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--patches", type=int, default=WILDS)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    draw = {"kaggle": draw_kaggle, "classes": draw_classes, "wilds": draw_wilds}
    for name, function in draw.items():
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
