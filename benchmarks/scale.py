"""Time and memory for growing data sets, up to 220,025 training patches.

    python benchmarks/scale.py SOURCE WORK [--sizes 10000 50000 220025] [--test 57458] [--rounds 3] [--keep]

SOURCE has Kaggle's layout. Its training patches are perturbed (symmetries of the square, an offset per channel) to
create the requested number of distinct patches, written below WORK like Kaggle's: uncompressed TIFF files named by the
SHA-1 of their pixels. Smaller folders are hard links to the largest one; only the largest has a test/. At full size,
files and packed images take 29 GB of disk, and 16 GB of memory to stay in the page cache, which is warm in all
measurements. Each number is measured in a separate process. Run nothing else on the machine.

- table: seconds of `read_train`.
- packing: patches/s of `open_store` without a store, from the first stat to the checked index on disk (fsync). It takes
  turns with a bare loop: a pool on all cores that decodes with PIL and writes to one file, without hash, check or
  index, with and without a final fsync. Imports and table are excluded.
- pack command: seconds and peak memory of `pack` including imports; in the largest folder, it packs test/ too.
- first step: seconds from the start of `fit` to the end of its first step, with packed images, minus the imports
  measured just before. Setup is the time for table, store and split.
- train memory: peak of `fit` over 20 steps and 10 validation batches.
- loader: patches/s of shuffled passes over up to 50,000 patches.
- predict: seconds of the whole command on --test patches, with and without packed images (one run each).
- explore: seconds and peak memory of the whole command on the largest folder with packed images (one run).
- PCam's own files: the same training patches as camelyonpatch_level_2_split_*.h5 with meta CSV files: seconds and peak
  memory of `pack`, and of `fit` over 20 steps and 10 validation batches (one run each).

Memory is the total of all processes without the page cache. Prints medians with minimum and maximum in brackets. Writes
scale.json with all values and scale.png to the current folder. Removes its files below WORK unless --keep is given.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from pcam_lightning.data.h5_files import PREFIX
from pcam_lightning.data.image_io import BYTES, SHAPE, read_patch
from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_train
from pcam_lightning.utils.parallel import process_map

HERE = Path(__file__).parent
PROJECT = [sys.executable, "-m", "pcam_lightning"]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
IMPORTS = "import time, pcam_lightning.cli.main; print(time.time())"
ON_DISK = 28_672  # bytes of a patch file, in whole blocks
CHUNK = 128  # patches per task of the bare loop, as in the store
Row = dict[str, list[float]]  # values of all repetitions by measurement, for one size


def write_patch(folder: Path, part: int, number: int, path: Path, attempt: int = 0) -> str:
    """Write a perturbed patch to `folder` and return its id."""
    rng = np.random.default_rng([part, number, attempt])
    pixels = np.frombuffer(read_patch(path), dtype=np.uint8).reshape(SHAPE)
    pixels = np.rot90(pixels, int(rng.integers(4)))[:, :: int(rng.choice([-1, 1]))]
    pixels = (pixels.astype(np.int16) + rng.integers(-12, 13, 3)).clip(0, 255).astype(np.uint8)
    patch_id = hashlib.sha1(pixels.tobytes()).hexdigest()
    Image.fromarray(pixels).save(folder / f"{patch_id}.tif")
    return patch_id


def draw_folder(source: Path, folder: Path, counts: dict[str, int]) -> None:
    """Create `train` and `test` patches in a folder with Kaggle's layout; a complete folder is reused."""
    marker, wanted = folder / "whole.json", {"source": str(source.resolve()), **counts}
    if marker.is_file() and json.loads(marker.read_text()) == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    table = read_train(source)
    ids: dict[str, None] = {}  # of train and test, in order of creation
    for part, (name, csv) in enumerate((("train", "train_labels.csv"), ("test", "sample_submission.csv"))):
        (folder / name).mkdir(parents=True)
        write, before = partial(write_patch, folder / name, part), len(ids)
        rows = table.iloc[np.resize(np.arange(len(table)), counts[name])]
        paths = [source / path for path in rows["path"]]
        with process_map(len(paths) // CHUNK, chunksize=CHUNK) as map_on_cores:
            ids_written = map_on_cores(write, itertools.count(), paths)
            for number, patch_id in enumerate(
                tqdm(ids_written, desc=f"writing {name}", total=len(paths), unit=" patches")
            ):
                attempt = 0
                while patch_id in ids:
                    attempt += 1
                    patch_id = write(number, paths[number], attempt)
                ids[patch_id] = None
        label = rows["label"].to_numpy() if name == "train" else 0
        pd.DataFrame({"id": list(ids)[before:], "label": label}).to_csv(folder / csv, index=False)
    measure.save(marker, wanted)


def link_folder(largest: Path, folder: Path, count: int) -> None:
    """Create a folder with the first training patches of the largest one."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "train").mkdir(parents=True)
    labels = pd.read_csv(largest / "train_labels.csv").head(count)
    labels.to_csv(folder / "train_labels.csv", index=False)
    for patch_id in labels["id"]:
        file = Path("train", f"{patch_id}.tif")
        try:
            os.link(largest / file, folder / file)
        except OSError:
            shutil.copy2(largest / file, folder / file)


def read_through(paths: list[Path]) -> None:
    """Load files into the page cache."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def alone(function: Callable[..., Any], *paths: Path) -> Any:
    """Call a function of this module in a new process, after syncing the disk."""
    call = f"scale.{function.__name__}(*map(pathlib.Path, {[os.fspath(path) for path in paths]}))"
    os.sync()
    command = [sys.executable, "-c", f"import json, pathlib, scale; print(json.dumps({call}))"]
    return json.loads(measure.watch(command, env=ENVIRONMENT).output.splitlines()[-1])


def time_table(root: Path) -> float:
    """Return the seconds of reading the table."""
    begun = time.perf_counter()
    read_train(root)
    return time.perf_counter() - begun


def time_packing(root: Path) -> float:
    """Return the seconds to pack the training patches."""
    table = read_train(root)
    begun = time.perf_counter()
    open_store(table, open_source(root), "train")
    return time.perf_counter() - begun


def decode(task: tuple[Path, int, list[Path]]) -> None:
    """Decode files into their positions in the target."""
    target, offset, paths = task
    pixels = bytearray()
    for path in paths:
        with Image.open(path) as image:
            pixels += image.convert("RGB").tobytes()
    with target.open("rb+") as file:
        file.seek(offset)
        file.write(pixels)


def time_bare_loop(root: Path, target: Path) -> tuple[float, float]:
    """Return the seconds of the bare loop without and with the final fsync."""
    paths = [root / path for path in read_train(root)["path"]]
    tasks = [(target, start * BYTES, paths[start : start + CHUNK]) for start in range(0, len(paths), CHUNK)]
    begun = time.perf_counter()
    with target.open("wb") as file:
        file.truncate(len(paths) * BYTES)
        with multiprocessing.Pool(measure.cores()) as pool:
            for _ in pool.imap_unordered(decode, tasks):
                pass
        seconds = time.perf_counter() - begun
        os.fsync(file.fileno())
    return seconds, time.perf_counter() - begun


def time_loader(root: Path) -> tuple[list[float], list[float]]:
    """Return the seconds of three setups, and patches/s of three shuffled passes."""
    from pcam_lightning.data.datamodule import PCamDataModule

    setups, rates = [], []
    for _ in range(3):
        data = PCamDataModule(root, batch_size=128)
        begun = time.perf_counter()
        data.setup("fit")
        setups.append(time.perf_counter() - begun)
    assert data.train_store is not None
    read_through([data.train_store.path])
    loader: Any = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        begun = time.perf_counter()
        seen = sum(len(batch["image"]) for batch in itertools.islice(loader, 50_000 // 128))
        rates.append(seen / (time.perf_counter() - begun))
    return setups, rates


def fit(root: Path, runs: Path, *flags: str) -> tuple[float, measure.Watched]:
    """Run fit in an empty folder; return the seconds to the end of its first step, and the measurements."""
    import torch

    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir()
    configs = ["base"] if torch.cuda.is_available() else ["base", "cpu"]
    recipe = [text for name in configs for text in ("-c", str(HERE.parent / "configs" / f"{name}.yaml"))]
    recipe += ["--model.weights", "none", "--data.root", str(root), "--trainer.default_root_dir", str(runs)]
    timer = ["--trainer.callbacks", "timers.StepTimer", "--trainer.callbacks.file", str(runs / "steps.json")]
    begun = time.time()
    watched = measure.watch([*PROJECT, "fit", *recipe, *timer, *flags], env=ENVIRONMENT)
    return json.loads((runs / "steps.json").read_text())["first"] - begun, watched


def measure_size(root: Path, runs: Path, count: int, rounds: int) -> Row:
    """Run all measurements for one size; keep the packed images, and the last run in `runs`."""
    row: Row = defaultdict(list, {"patches": [count], "table, s": [alone(time_table, root) for _ in range(3)]})
    store, target = root / ".pcam_cache", runs.with_name("bare.bin")
    read_through(list(root.glob("t*/*.tif")))
    for _ in range(rounds):
        shutil.rmtree(store, ignore_errors=True)
        bare, with_fsync = alone(time_bare_loop, root, target)
        target.unlink()
        packing = alone(time_packing, root)
        for name, seconds in (("packing", packing), ("bare loop", bare), ("bare loop with fsync", with_fsync)):
            row[f"{name}, patches/s"].append(count / seconds)
        row["packing / bare loop"].append(bare / packing)
        row["packing / bare loop with fsync"].append(with_fsync / packing)
        shutil.rmtree(store)
        os.sync()
        watched = measure.watch([*PROJECT, "pack", "--data.root", str(root)], env=ENVIRONMENT)
        row["pack command, s"].append(watched.seconds)
        row["pack command, peak MB"].append(watched.peak_anonymous / 1e6)
    row["setup, s"], row["loader, patches/s"] = alone(time_loader, root)
    for _ in range(3):
        begun = time.time()  # excludes the end of the process, which takes more than a second
        imports = float(measure.watch([sys.executable, "-c", IMPORTS], env=ENVIRONMENT).output.split()[-1]) - begun
        first, _ = fit(root, runs, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
        row["imports, s"].append(imports)
        row["first step less imports, s"].append(first - imports)
    some = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "20", "--trainer.limit_val_batches", "10")
    for _ in range(3):
        row["train, peak MB"].append(fit(root, runs, *some)[1].peak_anonymous / 1e6)
    return row


def measure_predict(root: Path, runs: Path) -> Row:
    """Predict test/ with the run in `runs`, with and without packed images."""
    (checkpoint,) = runs.glob("lightning_logs/*/version_0/checkpoints/last.ckpt")
    submission = checkpoint.parents[1] / "submission.csv"
    sample = pd.read_csv(root / "sample_submission.csv")
    row: Row = {"patches": [len(sample)]}
    for way in ("packed", "not packed"):
        if way == "not packed":
            for store in (root / ".pcam_cache").glob("test-*"):
                shutil.rmtree(store)
        watched = measure.watch([*PROJECT, "predict", "--ckpt_path", str(checkpoint)], env=ENVIRONMENT)
        written = pd.read_csv(submission)
        if list(written["id"]) != list(sample["id"]) or written["label"].isna().any():
            raise SystemExit(f"{submission}: should have one prediction per id of sample_submission.csv, in order.")
        submission.unlink()
        row[f"{way}, s"], row[f"{way}, peak MB"] = [watched.seconds], [watched.peak_anonymous / 1e6]
    return row


def measure_explore(root: Path, output: Path) -> Row:
    """Run explore on train/ and test/ with packed images."""
    command = [*PROJECT, "explore", "--data.root", str(root), "--output", str(output)]
    watched = measure.watch(command, env=ENVIRONMENT)
    page = (output / "explore.html").stat().st_size
    shutil.rmtree(output)
    return {"s": [watched.seconds], "peak MB": [watched.peak_anonymous / 1e6], "page, MB": [page / 1e6]}


def measure_official(largest: Path, root: Path, runs: Path) -> Row:
    """Write packed patches as PCam's own files, one ninth for validation; pack and fit them."""
    import h5py

    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    table = read_train(largest)
    store = open_store(table, open_source(largest), "train")
    count = len(table)
    edges = {"train": (0, count - count // 9), "valid": (count - count // 9, count)}
    for part, (start, stop) in edges.items():
        name, shape = f"{PREFIX}{part}", (stop - start, *SHAPE)
        with h5py.File(root / f"{name}_x.h5", "w") as file:
            images = file.create_dataset("x", shape, np.uint8, chunks=(CHUNK, *SHAPE))
            for first in range(start, stop, CHUNK):
                last = min(first + CHUNK, stop)
                images[first - start : last - start] = store.images[first:last]
        with h5py.File(root / f"{name}_y.h5", "w") as file:
            label = table["label"].to_numpy(dtype=np.uint8)[np.argsort(store.rows(table["id"]))]
            file["y"] = label[start:stop].reshape(-1, 1, 1, 1)
        slide = np.arange(start, stop) // 1000
        pd.DataFrame({"wsi": [f"{part}_slide_{one:03d}" for one in slide]}).to_csv(root / f"{name}_meta.csv")
    del store
    watched = measure.watch([*PROJECT, "pack", "--data.root", str(root)], env=ENVIRONMENT)
    some = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "20", "--trainer.limit_val_batches", "10")
    return {
        "patches": [count],
        "pack, s": [watched.seconds],
        "pack, peak MB": [watched.peak_anonymous / 1e6],
        "fit, peak MB": [fit(root, runs, *some)[1].peak_anonymous / 1e6],
    }


def message(values: list[float]) -> str:
    """Return the median, minimum and maximum as text."""
    middle, *ends = (
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({'-'.join(ends)})" if len(values) > 1 else middle


PANELS = {  # title and unit: rows of results by legend name
    "packing, patches/s": {
        "bare loop": "bare loop, patches/s",
        "bare loop with fsync": "bare loop with fsync, patches/s",
        "the project": "packing, patches/s",
    },
    "once, and at each start, s": {"pack command": "pack command, s", "setup": "setup, s", "table": "table, s"},
    "start of fit, s": {"imports": "imports, s", "from there to the first step": "first step less imports, s"},
    "peak memory, page cache aside, MB": {"fit": "train, peak MB", "pack command": "pack command, peak MB"},
    "loader, patches/s": {"shuffled batches of 128": "loader, patches/s"},
}


def plot(rows: list[Row], predict: Row, head: str) -> None:
    """Plot results against the number of patches, one panel per topic."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    figure.suptitle(head)
    counts = [row["patches"][0] for row in rows]
    for axis, (name, lines) in zip(axes.flat, PANELS.items(), strict=False):
        for (label, key), color, marker in zip(lines.items(), ("#0072B2", "#D55E00", "#009E73"), "os^", strict=False):
            middle = np.array([statistics.median(row[key]) for row in rows])
            reach = [middle - [min(row[key]) for row in rows], [max(row[key]) for row in rows] - middle]
            axis.errorbar(counts, middle, reach, label=label, color=color, marker=marker, capsize=3)
        title, unit = name.rsplit(", ", 1)
        axis.set(title=title, xlabel="training patches", ylabel=unit, xscale="log")
        axis.set_xticks(counts, [f"{count:,.0f}" for count in counts])
        axis.set_xticks([], minor=True)
        axis.set_yscale("log" if name.startswith("once") else "linear")
        axis.yaxis.set_major_formatter("{x:,.6g}")
        if axis.get_yscale() == "linear":
            axis.set_ylim(0, 1.25 * axis.get_ylim()[1])
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="best" if name.startswith("once") else "upper left")
    axis, ways = axes.flat[-1], ("packed", "not packed")
    axis.bar_label(axis.bar(ways, [predict[f"{way}, s"][0] for way in ways], color="#0072B2", width=0.5), fmt="%.0f")
    axis.set(title=f"predict, {predict['patches'][0]:,.0f} test patches (n=1)", xlabel="images of test/", ylabel="s")
    axis.margins(y=0.1)
    figure.savefig("scale.png", dpi=120)


def main() -> None:
    """Create the folders, measure each size and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 220_025])
    parser.add_argument("--test", type=int, default=57_458)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of packing the largest size; else three")
    parser.add_argument("--keep", action="store_true", help="keep the folders for the next run")
    args = parser.parse_args()
    work, sizes = args.work.absolute(), sorted(set(args.sizes))
    work.mkdir(parents=True, exist_ok=True)
    numbered_folders, runs = [work / f"patches-{count}" for count in sizes], work / "runs"
    largest = numbered_folders[-1]

    files = 0 if (largest / "whole.json").is_file() else (sizes[-1] + args.test) * ON_DISK
    need, free = files + (sum(sizes) + 2 * sizes[-1] + args.test) * BYTES + 10**9, shutil.disk_usage(work).free
    print(f"{work}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.", file=sys.stderr)
    if need > free:
        raise SystemExit("Free disk space, or choose smaller sizes.")
    draw_folder(args.source, largest, {"train": sizes[-1], "test": args.test})
    for folder, count in zip(numbered_folders[:-1], sizes, strict=False):
        link_folder(largest, folder, count)
    rows = []
    for folder, count in zip(numbered_folders, sizes, strict=True):
        print(f"measuring {count:,} patches", file=sys.stderr)
        rows.append(measure_size(folder, runs, count, args.rounds if folder == largest else 3))
    predict = measure_predict(largest, runs)
    explore = measure_explore(largest, work / "explore")
    official = measure_official(largest, work / "official", work / "official-runs")

    machine = measure.machine()
    found = {"machine": machine, "sizes": rows, "predict": predict, "explore": explore, "official": official}
    measure.save(Path("scale.json"), found)
    hardware = f"{machine['processor']}, {machine.get('gpu', machine['cores'] + ' cores')}, {machine['memory']}"
    plot(rows, predict, f"{hardware}, torch {machine['torch']}; medians, minimum and maximum")
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), end="\n\n")
    lines = [[name, *(message(row[name]) for row in rows)] for name in rows[0] if name != "patches"]
    print(measure.table(["training patches", *(f"{count:,}" for count in sizes)], lines))
    growth = statistics.median(rows[-1]["train, peak MB"]) - statistics.median(rows[0]["train, peak MB"])
    print(f"\ntrain memory grows by {growth:,.0f} MB from {sizes[0]:,} to {sizes[-1]:,} patches")
    for way in ("packed", "not packed"):
        print(f"predict, {args.test:,} patches, {way}: {message(predict[f'{way}, s'])} s; submission.csv is in order")
    print("explore:", ", ".join(f"{name} {message(value)}" for name, value in explore.items()))
    print("PCam's own files:", ", ".join(f"{name} {message(value)}" for name, value in official.items()))
    if not args.keep:
        for folder in (*numbered_folders, runs, work / "official", work / "official-runs"):
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
