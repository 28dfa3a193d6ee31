"""Time of custom layers on a CPU: milliseconds of a training step and of prediction, compared with torch layers.

    python benchmarks/layers.py train [--networks efficientnet_lite0 convnext_tiny] [--sides 96 192]
    python benchmarks/layers.py predict [--networks efficientnet_lite0 resnet18] [--sides 96 192]

`train` measures a training step with torch layers in float32 and bfloat16, and with depthwise convolutions that have
faster gradients (models/depthwise.py) in bfloat16, with AdamW. `predict` measures the eight views of a batch with torch
layers and with BatchNorm folded into convolutions (models/batchnorm.py), in float32 and bfloat16. Weights and images
are random. Each round measures all networks and image sides in turn. Prints medians over the rounds with minimum and
maximum, and the ratio of torch layers in bfloat16 to the fastest custom variant. Run nothing else on the machine.
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
from torch import nn
from torch.nn import functional

from pcam_lightning.models.backbones import build_backbone
from pcam_lightning.models.batchnorm import fold_batchnorm
from pcam_lightning.transforms.geometry import d4_views
from pcam_lightning.utils.system import keep_freed_memory

# Whether to use custom layers, and whether to run in bfloat16.
WAYS = {
    "train": {"float32": (False, False), "bfloat16": (False, True), "ours, bfloat16": (True, True)},
    "predict": {
        "float32": (False, False),
        "bfloat16": (False, True),
        "ours, float32": (True, False),
        "ours, bfloat16": (True, True),
    },
}
NETWORKS = {"train": ["efficientnet_lite0", "convnext_tiny"], "predict": ["efficientnet_lite0", "resnet18"]}
TIMES = {"train": 3, "predict": 1}  # consecutive calls per round


def build(name: str, side: int, ours: bool) -> nn.Module:
    """Build a network with torch layers or custom layers."""
    torch.manual_seed(0)
    if ours:
        network = build_backbone(name, side)
    else:
        with mock.patch("pcam_lightning.models.backbones.replace_depthwise"):
            network = build_backbone(name, side)
    return network.to(memory_format=torch.channels_last)


def build_step(name: str, side: int, batch_size: int, ours: bool, bf16: bool) -> Callable[[], None]:
    """Build a network and return its training step."""
    network = build(name, side, ours).train()
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


def build_prediction(name: str, side: int, batch_size: int, ours: bool, bf16: bool) -> Callable[[], None]:
    """Build a network and return a function that predicts the eight views of a batch."""
    network = build(name, side, ours).eval()
    image = torch.rand(batch_size, 3, side, side).to(memory_format=torch.channels_last)
    if ours:
        network = fold_batchnorm(network, image[:1]) or network

    def predict() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for view in d4_views(image):
                network(view)

    return predict


def main() -> None:
    """Run all rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 192])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    keep_freed_memory()
    networks, ways, times = args.networks or NETWORKS[args.what], WAYS[args.what], TIMES[args.what]
    make = build_step if args.what == "train" else build_prediction
    timed = {
        (name, side, way): make(name, side, args.batch_size, *options)
        for name in networks
        for side in args.sides
        for way, options in ways.items()
    }
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for number in range(args.rounds + 1):  # the first round warms up
        for key, run in timed.items():
            begun = time.perf_counter()
            for _ in range(times if number else 1):
                run()
            if number:
                found[key].append(1e3 * (time.perf_counter() - begun) / times)
    machine = measure.machine()
    print(f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}")
    print(f"batch of {args.batch_size}, n={args.rounds} rounds; ms to {args.what}")
    rows = []
    for name in networks:
        for side in args.sides:
            cells = {way: found[name, side, way] for way in ways}
            best = min((way for way in ways if way.startswith("ours")), key=lambda way: statistics.median(cells[way]))
            ratio = [before / after for before, after in zip(cells["bfloat16"], cells[best], strict=True)]
            rows.append([f"{name}, {side} px", *map(spread, cells.values()), f"{statistics.median(ratio):.2f}"])
    print(measure.table(["", *ways, "bfloat16 / best of ours"], rows))


if __name__ == "__main__":
    main()
