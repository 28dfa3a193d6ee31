"""How soon does the command line answer?

    python benchmarks/startup.py [CHECKOUT ...] [--rounds 5]

Runs each command below in a process of its own; checkouts of the project, by default this one, take turns. Prints
medians over the rounds with minimum and maximum, of the seconds that pass and of those that the processors work for it,
which other programs on the machine change less. Writes startup.json into the current folder.
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
    """Run Python with a checkout's package; return the seconds that passed, and those of processor time."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    env = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, *args], env=env, capture_output=True, check=False)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Time all commands of all checkouts in turn."""
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
    print(measure.table(["command", "checkout", "seconds", "of processor time"], rows))


if __name__ == "__main__":
    main()
