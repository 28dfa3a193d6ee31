"""Start-up time of the command line.

    python benchmarks/startup.py [CHECKOUT ...] [--rounds 5]

Runs each command below in a separate process, for each checkout in turn (by default, this one). Prints medians over the
rounds with minimum and maximum of wall time and processor time, which depends less on other programs. Writes
startup.json to the current folder.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import measure
from timers import spread

COMMANDS = {
    "import pcam_lightning": ["-c", "import pcam_lightning"],
    **{
        text: ["-m", "pcam_lightning", *text.split()]
        for text in (
            "--help",
            "nonsense",
            "fit --wrong_flag 1",
            "fit --model.wrong 1",
            "heatmap --wrong",
            "heatmap --help",
            "synthesize --help",
            "compare --help",
            "fit --help",
            "fit --data.root nowhere",
        )
    },
}


def run(checkout: Path, args: list[str]) -> tuple[float, float]:
    """Run Python with the package of a checkout; return wall time and processor time in seconds."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    env = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, *args], env=env, capture_output=True, check=False)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure all commands of all checkouts in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(args.rounds):
        for text, command in COMMANDS.items():
            for checkout in args.checkout:
                found[text][str(checkout)].append(run(checkout.absolute(), command))
    measure.save(Path("startup.json"), {"machine": measure.machine(), "seconds": found})
    rows = [
        [text, checkout, *(spread(list(values)) for values in zip(*times, strict=True))]
        for text, checkouts in found.items()
        for checkout, times in checkouts.items()
    ]
    print(measure.table(["command", "checkout", "seconds", "processor seconds"], rows))


if __name__ == "__main__":
    main()
