"""Time of augmentation: milliseconds per batch for each option, and share of a training step for each config.

    python benchmarks/augmenting.py ROOT [--configs configs/base.yaml configs/best.yaml] [--batch_size 128]
        [--rounds 5] [--device cpu]

ROOT has Kaggle's layout. One batch is already on the device. Each round measures each option alone, with the strength
in `EACH`, compared with the eight symmetries, and stain normalization. For each config on top of base.yaml, it measures
the transforms before the network, a training step in the precision of `fit`, and weight averaging. Prints medians over
the rounds with minimum and maximum. Shares are relative to the step including the transform. Run nothing else on the
machine.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
import yaml
from device import wait_for_device
from timers import spread

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.weight_averaging import ExponentialMovingAverage
from pcam_lightning.transforms.augment import Augmentation, augment, to_float
from pcam_lightning.transforms.stain import StainNormalizer
from pcam_lightning.utils.system import cpu_is_faster_in_bf16, keep_freed_memory

EACH: dict[str, float] = {
    "degrees": 90, "stain": 0.1, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2,
    "hue": 0.05, "random_erasing": 0.5, "cutmix": 0.5, "mixup": 0.2,
}  # fmt: skip
TIMES = 4  # consecutive calls per round


def read_config(config: Path) -> tuple[PCamClassifier, ExponentialMovingAverage | None]:
    """Build the network and the weight averaging of a config on top of base.yaml."""
    base = yaml.safe_load((Path(__file__).parents[1] / "configs" / "base.yaml").read_text())
    own = yaml.safe_load(config.read_text())
    model: dict[str, Any] = {**base["model"], **(own.get("model") or {}), "weights": "none"}
    model["augment"] = {**base["model"]["augment"], **((own.get("model") or {}).get("augment") or {})}
    callbacks = (own.get("trainer") or {}).get("callbacks") or []
    decays = [one["init_args"]["decay"] for one in callbacks if one["class_path"].endswith(".ExponentialMovingAverage")]
    return PCamClassifier(**model), ExponentialMovingAverage(*decays) if decays else None


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    wait_for_device()
    begun = time.perf_counter()
    for _ in range(TIMES):
        call()
    wait_for_device()
    return (time.perf_counter() - begun) / TIMES


def main() -> None:
    """Run all rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--configs", type=Path, nargs="*", default=[])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    device = torch.device(args.device)
    data = PCamDataModule(args.root)
    data.setup("fit")
    image = data.sample(args.batch_size).to(device)
    label = (torch.arange(len(image), device=device) % 2).float()
    unit = to_float(image)
    calls: dict[str, Callable[[], object]] = {"eight symmetries": lambda: augment(image, label, Augmentation(d4=True))}
    for name, strength in EACH.items():
        how = Augmentation(**{"d4": name != "degrees", name: strength})  # type: ignore[arg-type]
        calls[name] = lambda how=how: augment(image, label, how)  # type: ignore[misc]
    for method in ("macenko", "reinhard"):
        normalizer = StainNormalizer(method).to(device)
        normalizer.fit(unit)
        calls[method] = lambda normalizer=normalizer: normalizer(unit)  # type: ignore[misc]
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    for config in args.configs:
        model, averaging = read_config(config)
        model.to(device)
        if model.preprocess.needs_fit:
            model.preprocess.fit(image)
        optimizer = torch.optim.AdamW(model.net.parameters(), fused=True)
        seen = model.preprocess(image)

        def prepare(model: PCamClassifier = model) -> None:
            with torch.no_grad():
                model.preprocess.finish(augment(image, label, model.augmentation, model.preprocess.stain)[0])

        def step(
            net: torch.nn.Module = model.net,
            optimizer: torch.optim.Optimizer = optimizer,
            seen: torch.Tensor = seen,
        ) -> None:
            optimizer.zero_grad()
            with torch.autocast(device.type, half, enabled=device.type == "cuda" or cpu_is_faster_in_bf16()):
                logit = net(seen).squeeze(1)
            torch.nn.functional.binary_cross_entropy_with_logits(logit.float(), label).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        calls[f"{config}: before the network"], calls[f"{config}: step"] = prepare, step
        if averaging is not None:
            averaging.setup(None, model, "fit")  # type: ignore[arg-type]
            averaging.on_fit_start(None, model)  # type: ignore[arg-type]
            calls[f"{config}: averaging"] = lambda averaging=averaging, model=model: averaging.update(model)  # type: ignore[misc]
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(args.rounds + 1):  # the first round warms up
        for name, call in calls.items():
            seconds = seconds_of(call)
            if number:
                found[name].append(1e3 * seconds)
    machine = measure.machine()
    print(f"{machine['processor']}, {machine.get('gpu', machine['cores'] + ' cores')}, torch {machine['torch']}")
    print(f"batch of {len(image)}, n={args.rounds} rounds")
    plain = statistics.median(found["eight symmetries"])
    rows = []
    for name, values in found.items():
        above = statistics.median(values) - plain if name in EACH and name != "degrees" else None
        config, _, part = name.rpartition(": ")
        share = ""
        if config and part != "step":
            ratio = [one / (one + whole) for one, whole in zip(values, found[f"{config}: step"], strict=True)]
            share = f"{statistics.median(ratio):.1%}"
        rows.append([name, spread(values), "" if above is None else f"{above:.1f}", share])
    print(measure.table(["", "ms", "ms above the symmetries", "share of a step with it"], rows))


if __name__ == "__main__":
    main()
