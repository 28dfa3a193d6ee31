"""Speed compared with a plain PyTorch loop and with the matrix product rate of the machine.

    python benchmarks/speed.py ROOT [--batch_size 128] [--rounds 3] [--device cpu] [--compile]

ROOT has Kaggle's layout. In each round, the project and the baseline (`reference.py`) take turns, each in a separate
process, on the same folder with the same batch size, and the matrix product rate of the machine is measured. The
project runs through its command line with configs/base.yaml and cpu.yaml and random weights. Prints medians over the
rounds with minimum and maximum, and the median ratio:

- loader: patches/s of whole shuffled passes; files and packed images are in the page cache.
- training step: patches/s with the batch already on the device. It includes augmentation (in the baseline, the loader
  augments), metrics and optimizer. Results in float32 and, on a CPU, without keeping freed memory are printed too.
- predicting: patches/s with the batch already on the device.
- epoch: seconds of the whole command with one epoch and its validation, the share of the epoch spent waiting for data,
  and the peak memory of all processes without the page cache.
- first step: seconds from the start of the command to the end of its first step; for the project with and without a
  pack.

    python benchmarks/speed.py ROOT --older CHECKOUT

measures operations with worker processes and threads instead, for this checkout and an older one in turn: seconds to
the first results of a map over two processes; patches/s of packing, of generating 400 synthetic patches and of loading
with two workers (without imports); and the first step of `fit` without a pack.

The share of the matrix product rate assumes 1.955 GFLOP per patch for training and 0.666 for prediction (ResNet-18 at
96 pixels; a multiply-add counts as two). Writes speed.json to the current folder. Run nothing else on the machine.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import measure
import pandas as pd
import torch
from device import wait_for_device
from reference import Baseline, make_loader, read_split
from timers import spread

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.utils.system import cpu_is_faster_in_bf16, keep_freed_memory

HERE = Path(__file__).parent
GFLOP = {"training step": 1.955, "predicting": 0.666}  # per patch
WARM = 3  # warm-up steps excluded from the median
STEPS = 12
_GIVES_BACK = """
import sys
import pcam_lightning.training.trainer
from pcam_lightning.cli.main import main
pcam_lightning.training.trainer.keep_freed_memory = lambda: False
sys.exit(main())
"""

# Run in each checkout with torch's threads started, as in `fit`; prints names and values as a JSON object.
_WORKERS = """
import json, sys, tempfile, time
from pathlib import Path
import torch
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_train
from pcam_lightning.synthetic.kaggle_folder import synthesize
from pcam_lightning.utils.parallel import process_map

def seconds(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun

def start():
    with process_map(2) as map_on_cores:
        list(map_on_cores(abs, range(2)))

def load():
    for _ in range(5):
        for _ in loader: pass

torch.ones(2000, 2000) @ torch.ones(2000, 2000)
root, scratch = Path(sys.argv[1]), Path(tempfile.mkdtemp(dir=sys.argv[2]))
table = read_train(root)
found = {"start of two processes, s": seconds(start)}
found["packing, patches/s"] = len(table) / seconds(lambda: open_store(table, open_source(root), "train", scratch))
found["synthesis, patches/s"] = 400 / seconds(lambda: synthesize(scratch / "synthetic", train=400, test=0))
data = PCamDataModule(root, batch_size=128, num_workers=2, cache_dir=scratch)
data.setup("fit")
loader = data.train_dataloader()
found["loading with two workers, patches/s"] = 5 * len(loader) * 128 / seconds(load)
print(json.dumps(found))
"""

Row = defaultdict[str, dict[str, float]]  # values of each side by measurement, for one round


def median_rate(seconds: list[float], patches: int) -> float:
    """Return patches/s of the median step after the first ones."""
    return patches / statistics.median(seconds[WARM:])


def time_calls(call: Any, device: torch.device, times: int) -> list[float]:
    """Return the seconds of each call."""
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        wait_for_device()
        seconds.append(time.perf_counter() - begun)
    return seconds


# Run in a separate process by `--probe NAME`; each returns the result for the parent to print.


def probe_matmul(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Return GFLOP/s of a large matrix product in the precision of each side."""
    side = 8192 if device.type == "cuda" else 3072
    half = torch.float16 if device.type == "cuda" else torch.bfloat16 if cpu_is_faster_in_bf16() else torch.float32
    rates = {}
    for name, dtype in (("baseline", half if device.type == "cuda" else torch.float32), ("project", half)):
        left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        seconds = time_calls(lambda left=left, right=right: left @ right, device, WARM + 7)
        rates[name] = 2 * side**3 / statistics.median(seconds[WARM:]) / 1e9
    return rates


def probe_baseline_loader(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Measure one pass after a warm-up pass, with running workers and files in the page cache."""
    train, _ = read_split(args.root)
    loader = make_loader(args.root / "train", train, args.batch_size, device, train=True)
    seconds = time_calls(lambda: [len(label) for _, label in loader], device, 2)
    return {"rate": len(train) / seconds[1]}


def probe_project_loader(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Return the median of five passes after a warm-up pass."""
    keep_freed_memory()
    data = PCamDataModule(args.root, batch_size=args.batch_size)
    data.setup("fit")
    loader = data.train_dataloader()
    seconds = time_calls(lambda: [len(batch["label"]) for batch in loader], device, 6)
    return {"rate": len(loader) * args.batch_size / statistics.median(seconds[1:])}


def probe_baseline_step(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Measure training steps and predictions on one batch that is already on the device, as in the project."""
    train, _ = read_split(args.root)
    loader = make_loader(args.root / "train", train, args.batch_size, device, train=True)
    baseline = Baseline(device)
    batches = iter(loader)
    image, label = (tensor.to(device) for tensor in next(batches))
    del batches, loader  # otherwise its workers would keep decoding
    seconds = time_calls(lambda: baseline.step(image, label), device, STEPS)
    baseline.net.eval()
    predicting = time_calls(lambda: baseline.predict(image), device, STEPS)
    return {
        "step": median_rate(seconds, args.batch_size),
        "predict": median_rate(predicting, args.batch_size),
    }


class Bench:
    """Runs the probes and the real commands of one round."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args = args
        self.scratch = scratch
        self.device = [
            *("--trainer.accelerator", "gpu" if args.device == "cuda" else "cpu"),
            *("--trainer.enable_progress_bar", "false"),
        ]
        configs = ["base.yaml", *(["cpu.yaml"] if args.device == "cpu" else [])]
        self.recipe = [
            *(f"--config={HERE.parent / 'configs' / name}" for name in configs),
            *("--data.root", str(args.root), "--data.batch_size", str(args.batch_size), "--model.weights", "none"),
            *("--trainer.default_root_dir", str(scratch), *self.device),
        ]

    def probe(self, name: str) -> dict[str, float]:
        """Run a probe and return its result."""
        command = [sys.executable, __file__, str(self.args.root), "--probe", name, "--device", self.args.device]
        done = subprocess.run(
            [*command, "--batch_size", str(self.args.batch_size)], stdout=subprocess.PIPE, text=True, check=True
        )
        message: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return message

    def baseline_first_step(self) -> float:
        """Return the seconds from the start of the baseline command to the end of its first step."""
        command = [sys.executable, str(HERE / "reference.py"), str(self.args.root), "--first_step"]
        command += ["--batch_size", str(self.args.batch_size), "--device", self.args.device]
        begun = time.time()
        return float(measure.watch(command).output.splitlines()[-1]) - begun

    def project(
        self, stage: str, *flags: str, gives_back: bool = False, checkout: Path = HERE.parent
    ) -> tuple[dict[str, Any], float]:
        """Run a stage of the project with a timer; return the times and the start time of the command."""
        file = self.scratch / "steps.json"
        timer = ("--trainer.callbacks", "timers.StepTimer", "--trainer.callbacks.file", str(file))
        begun = time.time()
        command = [sys.executable, *(("-c", _GIVES_BACK) if gives_back else ("-m", "pcam_lightning"))]
        command += [stage, *flags, *timer]
        measure.watch(command, env={"PYTHONPATH": f"{HERE}:{checkout}"})
        message: dict[str, Any] = json.loads(file.read_text())
        return message, begun

    def fit(self, *flags: str, gives_back: bool = False, checkout: Path = HERE.parent) -> tuple[dict[str, Any], float]:
        """Run a few steps of fit, without validation."""
        fixed = (*self.recipe, "--trainer.limit_val_batches", "0")
        return self.project("fit", *fixed, *flags, gives_back=gives_back, checkout=checkout)

    def last_run(self) -> Path:
        """Return the newest run."""
        runs = (self.scratch / "lightning_logs").glob("*/version_*")
        return max(runs, key=lambda run: (run / "config.yaml").stat().st_mtime)

    def steps(self, row: Row, side: str, *flags: str) -> None:
        """Measure the training step, the first step and prediction of the project."""
        message, begun = self.fit("--trainer.max_steps", str(STEPS), *flags)
        row["first step, s"][side] = message["first"] - begun
        row["training step, patches/s"][side] = median_rate(message["seconds"], self.args.batch_size)
        checkpoint = self.last_run() / "checkpoints" / "last.ckpt"
        message, _ = self.project("predict", "--ckpt_path", str(checkpoint), *self.device, *flags)
        full = message["seconds"][:-1]  # the last batch is smaller
        row["predicting, patches/s"][side] = median_rate(full, self.args.batch_size)
        shutil.rmtree(self.last_run())

    def workers(self, older: Path) -> Row:
        """Measure operations with workers once, in an older checkout and in this one."""
        row: Row = defaultdict(dict)
        for side, checkout in (("baseline", older), ("project", HERE.parent)):
            command = [sys.executable, "-c", _WORKERS, str(self.args.root), str(self.scratch)]
            output = measure.watch(command, env={"PYTHONPATH": str(checkout)}).output
            for what, value in json.loads(output.splitlines()[-1]).items():
                row[what][side] = value
            cold = self.scratch / "cold"
            more = ("--trainer.max_steps", "1", "--data.cache_dir", str(cold))
            message, begun = self.fit(*more, checkout=checkout)
            row["first step without a pack, s"][side] = message["first"] - begun
            shutil.rmtree(cold)
        return row

    def epochs(self, row: Row) -> None:
        """Measure a whole epoch of both sides."""
        message = {}
        command = [sys.executable, str(HERE / "reference.py"), str(self.args.root), "--epochs", "1"]
        command += ["--batch_size", str(self.args.batch_size), "--device", self.args.device]
        message["baseline"] = measure.watch(command)
        fields = dict(field.rsplit(" ", 1) for field in message["baseline"].output.splitlines()[-1].split(", "))
        command = [sys.executable, "-m", "pcam_lightning", "fit", *self.recipe, "--trainer.max_epochs", "1"]
        message["project"] = measure.watch(command, env={"PYTHONPATH": str(HERE.parent)})
        metrics = pd.read_csv(self.last_run() / "metrics.csv").iloc[-1]
        for side, watched in message.items():
            row["epoch, s"][side] = watched.seconds
            row["peak memory, GB"][side] = watched.peak_anonymous / 1e9
        row["waiting for data, share"] = {
            "baseline": float(fields["waiting"]),
            "project": float(metrics["train/waiting_for_data"]),
        }

    def round(self) -> Row:
        """Run all measurements once, with the sides taking turns."""
        row: Row = defaultdict(dict)
        row["matmul, GFLOP/s"] = self.probe("matmul")
        for side in ("baseline", "project"):
            row["loader, patches/s"][side] = self.probe(f"{side}_loader")["rate"]
        row["first step, s"]["baseline"] = self.baseline_first_step()
        message = self.probe("baseline_step")
        row["training step, patches/s"]["baseline"] = message["step"]
        row["predicting, patches/s"]["baseline"] = message["predict"]
        self.steps(row, "project")
        self.steps(row, "in float32", "--trainer.precision", "32-true")
        if self.args.device == "cpu":
            timed, _ = self.fit("--trainer.max_steps", str(STEPS), gives_back=True)
            row["training step, patches/s"]["memory given back"] = median_rate(timed["seconds"], self.args.batch_size)
            shutil.rmtree(self.last_run())
        if self.args.compile:
            self.steps(row, "compiled", "--model.compile", "true")
        cold = self.scratch / "cold"
        message, begun = self.fit("--trainer.max_steps", "1", "--data.cache_dir", str(cold))
        row["first step, s"]["no pack yet"] = message["first"] - begun
        shutil.rmtree(cold)
        self.epochs(row)
        for what, gflop in GFLOP.items():
            row[f"{what}, share of the matmul rate"] = {
                side: row[f"{what}, patches/s"][side] * gflop / row["matmul, GFLOP/s"][side]
                for side in ("baseline", "project")
            }
        return row


def summary(rows: list[Row]) -> str:
    """Return a table of medians, minima and maxima, and ratios (above 1 if the project is better)."""
    lines = []
    for what, sides in rows[0].items():
        baseline = [row[what]["baseline"] for row in rows]
        for side in list(sides)[1:]:
            own = [row[what][side] for row in rows]
            pairs = list(zip(own, baseline, strict=True))
            faster = [mine / other if "/s" in what else other / mine for mine, other in pairs]
            name = what if side == "project" else f"{what} ({side})"
            lines.append([name, spread(baseline), spread(own), "" if "share" in what else spread(faster)])
    return measure.table(["", "baseline", "project", "ratio"], lines)


def main() -> None:
    """Run all rounds, or a single probe for a parent process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="also measure --model.compile true")
    parser.add_argument("--older", type=Path, help="older checkout to compare operations with workers")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        message = globals()[f"probe_{args.probe}"](args, torch.device(args.device))
        print(json.dumps(message))
        return
    args.root = args.root.absolute()
    if args.older is None and sum(1 for _ in (args.root / "test").iterdir()) < (WARM + 2) * args.batch_size:
        raise SystemExit(
            f"{args.root / 'test'}: at least {WARM + 2} batches are needed; choose a smaller --batch_size."
        )
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, Path(scratch))
        if args.older is None:
            measure.watch([sys.executable, "-m", "pcam_lightning", "pack", "--data.root", str(args.root)])
        for number in range(args.rounds):
            rows.append(bench.round() if args.older is None else bench.workers(args.older.absolute()))
            print(f"round {number + 1} of {args.rounds}:\n{summary(rows[-1:])}", flush=True)
    measure.save(Path("speed.json"), {"machine": measure.machine(), "batch_size": args.batch_size, "rounds": rows})
    print(f"{measure.machine()}, batch {args.batch_size}, n={args.rounds}")
    print(summary(rows))


if __name__ == "__main__":
    main()
