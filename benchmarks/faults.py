"""Count losses after kills, on full disks and during long use in one process; there should be none.

    python benchmarks/faults.py WORK [--kills 30] [--seed 0]

Creates small synthetic data folders below WORK, an empty or new folder, and removes them at the end. All processes run
the command line, `python -m pcam_lightning`.

- Killed while packing: `pack` of 4,000 patches is killed (SIGKILL) at random moments --kills times. After each kill,
  any existing store is checked. At the end, the store of an uninterrupted command is compared with the images byte by
  byte.
- Killed while training: `fit` of 6 epochs is killed and resumed until it finishes; then another run starts. After each
  kill, all checkpoints, CSV files and configs are read. Epochs in metrics.csv that are missing in last.ckpt count as
  lost. Metrics and weights of each finished run are compared bit by bit with an uninterrupted run.
- Stopped while training: the same with Ctrl-C (SIGINT) and SIGTERM in turn.
- Full disk: packing, training and prediction on a tmpfs that is too small, in a user namespace if available, then again
  with enough space. Old files must not change.
- In one process: memory (MB) and open files after 10 % and 100 % of 200 store openings, 50 predictions and 20 epochs.

Prints a table and writes faults.json to the current folder.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import measure
import numpy as np
import pandas as pd
import psutil
import torch
import yaml

from pcam_lightning.data.image_io import read_patch
from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_train
from pcam_lightning.training.fit import fit
from pcam_lightning.training.options import Config

COMMAND = [sys.executable, "-m", "pcam_lightning"]
CPU = "--trainer.accelerator=cpu"
EPOCHS = 6
FIT = [
    "--model.backbone=p4m_resnet16",
    "--model.weights=none",
    "--data.batch_size=32",
    f"--trainer.max_epochs={EPOCHS}",
    CPU,
]
RUNS = Path("lightning_logs") / "default"
TIMES = ["train/patches_per_second", "train/waiting_for_data"]
Row = tuple[str, int, int, str]  # fault, number of times, number of losses, details


def run(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command and wait for it."""
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(args)}\n{done.stderr[-2000:]}")
    return done


def stop(args: list[str], number: signal.Signals, after: float) -> int | None:
    """Start a command and send a signal after some seconds; return its status, or None if it had already ended."""
    with subprocess.Popen([*COMMAND, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            return process.wait() or None  # 0: it ended at the same time
    if process.returncode:
        raise SystemExit(f"{' '.join(args)} ended with {process.returncode}")
    return None


def packing(kills: int, rng: random.Random) -> list[Row]:
    """Kill `pack` repeatedly."""
    root = Path("large")
    run("synthesize", str(root), "--train=4000", "--test=0")
    begun = time.perf_counter()
    run("pack", "--data.root", str(root))
    seconds = time.perf_counter() - begun
    killed = broken = 0
    while killed < kills:
        shutil.rmtree(root / ".pcam_cache", ignore_errors=True)  # missing if the process was killed early
        if stop(["pack", "--data.root", str(root)], signal.SIGKILL, rng.uniform(0, seconds)) is None:
            continue
        killed += 1
        for folder in (root / ".pcam_cache").glob("train-*"):
            if folder.suffix != ".tmp":  # a finished store
                broken += not whole(root, folder)
    run("pack", "--data.root", str(root))
    (folder,) = (root / ".pcam_cache").glob("train-*")
    return [("SIGKILL while packing", killed, broken + (not whole(root, folder)), f"one command takes {seconds:.1f} s")]


def whole(root: Path, folder: Path) -> bool:
    """Return whether a pack has the pixels of all files."""
    table = read_train(root).sort_values("id", ignore_index=True)
    index = pd.read_csv(folder / "index.csv", dtype=str)
    images = np.load(folder / "images.npy", mmap_mode="r")
    return list(index["id"]) == list(table["id"]) and all(
        images[row].tobytes() == read_patch(root / path) for row, path in enumerate(table["path"])
    )


def training(kills: int, rng: random.Random, numbers: list[signal.Signals]) -> list[Row]:
    """Kill or stop `fit` repeatedly, and resume each time."""
    root = Path("small")
    if not root.exists():
        run("synthesize", str(root), "--train=240", "--test=40")
    shutil.rmtree("lightning_logs", ignore_errors=True)
    fresh = ["fit", "--data.root", str(root), *FIT]
    begun = time.perf_counter()
    run(*fresh)
    seconds = time.perf_counter() - begun
    straight = message(RUNS / "version_0")
    version, stopped, broken, lost = 1, 0, 0, 0
    equal: list[bool] = []  # whether each finished run equals the uninterrupted run
    while stopped < kills:
        folder = RUNS / f"version_{version}"
        resuming = (folder / "checkpoints" / "last.ckpt").is_file()
        args = ["fit", "--ckpt_path=last"] if resuming else fresh
        status = stop(args, numbers[stopped % len(numbers)], rng.uniform(0, seconds))
        if status is None:
            equal.append(message(folder) == straight)
            version += 1
            continue
        stopped += 1
        # Before the command is imported, Python handles signals itself.
        broken += status not in (130, 143, *(-one for one in numbers)) or not readable(folder)
        lost += epochs_lost(folder)
        if folder.exists() and not (folder / "checkpoints" / "last.ckpt").is_file():
            version += 1  # stopped before there was anything to go on with
        elif folder.exists() and epochs(folder) == EPOCHS:  # between its last checkpoint and its end
            equal.append(message(folder) == straight)
            version += 1
    folder = RUNS / f"version_{version}"
    if (folder / "checkpoints" / "last.ckpt").is_file():  # the last one runs to its end
        run("fit", "--ckpt_path=last")
        equal.append(message(folder) == straight)
    name = "SIGKILL" if numbers == [signal.SIGKILL] else "ctrl-C and SIGTERM"
    more = f"one takes {seconds:.1f} s; {len(equal)} runs ended, {sum(equal)} of them equal to the one left alone"
    return [(f"{name} while training", stopped, broken + lost + equal.count(False), more)]


def message(folder: Path) -> tuple[str, str]:
    """Return the metrics of a run and a hash of its last weights."""
    metrics = pd.read_csv(folder / "metrics.csv").drop(columns=TIMES).to_csv()
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values()))
    return metrics, digest.hexdigest()


def epochs(folder: Path) -> int:
    """Return the number of completed epochs in the last checkpoint of a run."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return len(state["callbacks"]["MetricsFile"]["rows"])


def readable(folder: Path) -> bool:
    """Return whether all final files of a run can be read completely."""
    try:
        for path in folder.rglob("*"):
            if path.suffix == ".ckpt":
                torch.load(path, weights_only=True)
            elif path.name in ("metrics.csv", "split.csv"):
                rows = pd.read_csv(path)
                assert not rows.empty and path.read_bytes().endswith(b"\n")  # noqa: PT018 - of one file
            elif path.suffix == ".yaml":
                assert {"data", "model", "trainer"} <= set(yaml.safe_load(path.read_text()))
    except Exception as error:
        print(f"{path}: {error!r}", flush=True)
        return False
    return True


def epochs_lost(folder: Path) -> int:
    """Return the number of epochs in metrics.csv that last.ckpt lacks, apart from the one being written."""
    metrics, last = folder / "metrics.csv", folder / "checkpoints" / "last.ckpt"
    return max(0, len(pd.read_csv(metrics)) - epochs(folder) - 1) if metrics.is_file() and last.is_file() else 0


_FULL = """
set -e
mkdir -p disk
mount -t tmpfs -o size={size} tmpfs disk
{before}
set +e
{command} > output 2>&1
echo $? > status
{after}
"""


def full_disk() -> list[Row]:
    """Pack, train and predict on a full disk."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        return [("a full disk: no user namespaces here", 0, 0, "not tried")]
    command, rows = " ".join(COMMAND), []
    last = (RUNS / "version_0" / "checkpoints" / "last.ckpt").absolute()
    # Space for a run and two thirds of another checkpoint.
    taken = {path.stat().st_ino: path.stat().st_size for path in (RUNS / "version_0").rglob("*") if path.is_file()}
    size = sum(taken.values()) + last.stat().st_size * 2 // 3
    more = "fit --ckpt_path=last --trainer.max_epochs=8 --trainer.default_root_dir=disk"
    submit = f"predict --ckpt_path {last} --output disk --overwrite --model.tta=d4 {CPU}"
    for name, room, before, tried, kept in (
        ("packing", "2m", "true", "pack --data.root small --data.cache_dir disk", "find disk -name images.npy | wc -l"),
        (
            "checkpointing", str(size), f"mkdir -p disk/{RUNS} && cp -a {RUNS}/version_0 disk/{RUNS}", more,
            f"cmp disk/{RUNS}/version_0/checkpoints/last.ckpt {last} && echo 0",
        ),
        (
            "writing a submission", "8k", "cp output_before/*.csv disk", submit,
            "cmp disk/submission.csv output_before/submission.csv && echo 0",
        ),
    ):  # fmt: skip
        if name == "writing a submission":
            run("predict", "--ckpt_path", str(last), "--output", "output_before", CPU)
        script = _FULL.format(size=room, before=before, command=f"{command} {tried}", after=f"({kept}) > kept 2>&1")
        subprocess.run(["unshare", "-rm", "bash", "-c", script], check=True)
        lines = Path("output").read_text().replace("\r", "\n").splitlines()
        error = next((line for line in lines if line.startswith("error: ")), "no error")
        good = Path("status").read_text().strip() == "2" and Path("kept").read_text().strip() == "0"
        good = good and ("left on device" in error or "are free" in error)
        rows.append((f"a disk that is full: {name}", 1, int(not good), error.removeprefix("error: ")))
    return rows


def in_one_process() -> list[Row]:
    """Repeat each operation in a new process."""
    rows = []
    for name, count in (("openings of a store", 200), ("predictions", 50), ("epochs of a run", 20)):
        done = subprocess.run(
            [sys.executable, __file__, "--again", name, str(count)], check=True, capture_output=True, text=True
        )
        files, memory = json.loads(done.stdout.splitlines()[-1])
        lost = files[0] != files[1] or memory[1] - memory[0] > 40
        more = f"open files {files[0]}, then {files[1]}; memory {memory[0]:.0f} MB, then {memory[1]:.0f} MB"
        rows.append((f"{name} in one process", count, int(lost), more))
    return rows


def again(name: str, count: int) -> None:
    """Repeat an operation; print open files and memory (MB) after 10 % and 100 % of the repetitions."""
    import gc

    import lightning as L

    from pcam_lightning.cli.main import main

    taken: list[tuple[int, float]] = []

    def note() -> None:
        gc.collect()
        process = psutil.Process()
        taken.append((process.num_fds(), process.memory_info().rss / 1e6))

    class Note(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch + 1 in (count // 10, count):
                note()

    root, last = Path("small"), RUNS / "version_0" / "checkpoints" / "last.ckpt"
    if name.startswith("epochs"):
        options = {"max_epochs": count, "logger": False, "accelerator": "cpu", "enable_progress_bar": False}
        fit(
            Config.load(
                data={"root": str(root), "batch_size": 32},
                model={"backbone": "p4m_resnet16", "weights": "none"},
                trainer=options,
            ),
            callbacks=[Note()],
        )
    else:
        for number in range(1, count + 1):
            if name == "predictions":
                main(
                    ["predict", "--ckpt_path", str(last), "--output=again", CPU, "--trainer.enable_progress_bar=false"]
                )
            else:
                open_store(read_train(root), open_source(root), "train").images.sum()
            if number in (count // 10, count):
                note()
    print(json.dumps(list(zip(*taken, strict=True))))


def main() -> None:
    """Run all tests and print the losses."""
    if sys.argv[1:2] == ["--again"]:
        again(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if any(args.work.iterdir()):
        parser.error(f"{args.work} is not empty")
    here, rng = Path.cwd(), random.Random(args.seed)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).absolute().parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    os.chdir(args.work)
    rows = packing(args.kills, rng)
    shutil.rmtree("large")
    rows += training(args.kills, rng, [signal.SIGINT, signal.SIGTERM])
    rows += training(args.kills, rng, [signal.SIGKILL])
    rows += full_disk()
    rows += in_one_process()
    os.chdir(here)
    shutil.rmtree(args.work)
    print(measure.machine())
    print(measure.table(["tried", "times", "lost or broken", ""], [(a, str(n), str(b), c) for a, n, b, c in rows]))
    measure.save(Path("faults.json"), {"machine": measure.machine(), "rows": rows})


if __name__ == "__main__":
    main()
