"""What do faster gradients of depthwise convolutions bring? Milliseconds of a training step with torch's and with ours.

    python benchmarks/depthwise.py [--networks efficientnet_lite0 convnext_tiny] [--sides 96 192] [--batch_size 64]
        [--rounds 3]

In each round a training step of every network takes turns at every side of its images: torch's own layers in float32
and in bfloat16, and ours (models/depthwise.py) in bfloat16; random weights and images, AdamW. Prints medians over the
rounds with minimum and maximum. With nothing else on the machine.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from unittest import mock

import measure
import torch
from timers import spread
from torch.nn import functional

from pcam_lightning.models.backbones import build_backbone
from pcam_lightning.utils.system import keep_freed_memory

TIMES = 3  # steps a round, one after another
WAYS = {"float32": (False, False), "bfloat16": (False, True), "ours, bfloat16": (True, True)}


def build_step(name: str, side: int, batch_size: int, ours: bool, bf16: bool) -> Callable[[], None]:
    """Build a network and return its training step."""
    torch.manual_seed(0)
    if ours:
        network = build_backbone(name, side)
    else:
        with mock.patch("pcam_lightning.models.backbones.replace_depthwise"):
            network = build_backbone(name, side)
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    image = torch.rand(batch_size, 3, side, side).to(memory_format=torch.channels_last)
    label = torch.arange(batch_size) % 2

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logit: torch.Tensor = network(image).squeeze(1)
        functional.binary_cross_entropy_with_logits(logit, label.float()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def main() -> None:
    """Take turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["efficientnet_lite0", "convnext_tiny"])
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 192])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    keep_freed_memory()
    steps = {
        (name, side, way): build_step(name, side, args.batch_size, *options)
        for name in args.networks
        for side in args.sides
        for way, options in WAYS.items()
    }
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for number in range(args.rounds + 1):  # kernels are chosen in the first
        for key, step in steps.items():
            begun = time.perf_counter()
            for _ in range(TIMES if number else 1):
                step()
            if number:
                found[key].append(1e3 * (time.perf_counter() - begun) / TIMES)
    machine = measure.machine()
    print(f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}")
    print(f"batch of {args.batch_size}, n={args.rounds} rounds; ms a training step")
    rows = []
    for name in args.networks:
        for side in args.sides:
            plain, ours = found[name, side, "bfloat16"], found[name, side, "ours, bfloat16"]
            ratio = [before / after for before, after in zip(plain, ours, strict=True)]
            cells = [spread(found[name, side, way]) for way in WAYS]
            rows.append([f"{name}, {side} px", *cells, f"{statistics.median(ratio):.2f}"])
    print(measure.table(["", *WAYS, "bfloat16 / ours"], rows))


if __name__ == "__main__":
    main()
