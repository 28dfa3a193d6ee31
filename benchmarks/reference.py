"""The baseline: the reference recipe in plain PyTorch, as a competent user would write it.

    python benchmarks/reference.py ROOT --epochs 15 --batch_size 512 [--split_file split.csv] [--weights imagenet]

ROOT has Kaggle's layout. Uses PIL in a Dataset, torchvision transforms for each patch, a DataLoader with one worker per
core, ResNet-18 with one logit, BCE, AdamW with cosine decay by epoch, and scikit-learn's AUROC; float32 on a CPU,
autocast with a GradScaler on CUDA. With ImageNet weights, the backbone is frozen in the first epoch. Prints a row for
each validation. With --first_step, prints only the end time of the first step (seconds since 1970). Other benchmarks
import its functions.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from device import wait_for_device
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

AUGMENTED = transforms.Compose(
    [
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.RandomRotation(90),
        transforms.ToTensor(),
    ]
)
PLAIN = transforms.ToTensor()


class Tiles(Dataset[tuple[torch.Tensor, float]]):
    """TIFFs of a folder with their labels, decoded one by one."""

    def __init__(self, folder: Path, frame: pd.DataFrame, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths = [str(folder / f"{patch_id}.tif") for patch_id in frame["id"]]
        self.labels = frame["label"].to_numpy(np.float32)
        self.transform = transform

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, float]:
        """Return the transformed patch, float (3, 96, 96), and its label."""
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), self.labels[index]


def read_split(root: Path, split_file: Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the training and validation tables (id,label): stratified 80/20 with seed 42, or from split_file."""
    frame = pd.read_csv(root / "train_labels.csv")
    if split_file is None:
        train, val = train_test_split(frame, test_size=0.2, stratify=frame["label"], random_state=42)
        return train, val
    part = frame["id"].map(pd.read_csv(split_file).set_index("id")["split"])
    return frame[part == "train"], frame[part == "val"]


def make_loader(
    folder: Path, frame: pd.DataFrame, batch_size: int, device: torch.device, *, train: bool
) -> DataLoader[Any]:
    """Return a loader of shuffled, augmented training batches, or of plain batches in order."""
    return DataLoader(
        Tiles(folder, frame, AUGMENTED if train else PLAIN),
        batch_size=batch_size,
        shuffle=train,
        num_workers=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )


class Baseline:
    """Network, optimizer and gradient scaler, with training and prediction steps."""

    def __init__(self, device: torch.device, weights: str = "none") -> None:
        self.device = device
        self.net = models.resnet18(weights=models.ResNet18_Weights.IMAGENET1K_V1 if weights == "imagenet" else None)
        self.net.fc = nn.Linear(self.net.fc.in_features, 1)
        self.net.to(device)
        self.loss = nn.BCEWithLogitsLoss()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, weight_decay=0.01)
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def _autocast(self) -> Any:
        return torch.autocast("cuda", dtype=torch.float16) if self.device.type == "cuda" else nullcontext()

    def freeze(self, frozen: bool) -> None:
        """Train only the head, or all layers."""
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad = name.startswith("fc.") or not frozen

    def step(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Train on one batch; return its loss, on the device."""
        image, label = image.to(self.device, non_blocking=True), label.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss: torch.Tensor = self.loss(self.net(image).squeeze(1), label)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    @torch.inference_mode()
    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of one batch, on the device."""
        with self._autocast():
            logit: torch.Tensor = self.net(image.to(self.device, non_blocking=True)).squeeze(1)
        return logit.float().sigmoid()

    def score(self, loader: DataLoader[Any]) -> float:
        """Return the AUROC over a loader."""
        self.net.eval()
        parts = [(self.predict(image).cpu(), label) for image, label in loader]
        self.net.train()
        prob, label = (torch.cat(column) for column in zip(*parts, strict=True))
        return float(roc_auc_score(label.numpy(), prob.numpy()))


def fit(
    baseline: Baseline,
    train: DataLoader[Any],
    val: DataLoader[Any],
    epochs: int,
    *,
    frozen_epochs: int = 0,
    every: int | None = None,
) -> Iterator[dict[str, float]]:
    """Train, and yield a row at each validation.

    Args:
        baseline: network and optimizer to train.
        train: shuffled training batches.
        val: validation batches.
        epochs: number of epochs, and length of the cosine schedule.
        frozen_epochs: number of initial epochs that train only the head.
        every: steps between validations; by default, one validation per epoch.

    Yields:
        epoch, step, AUROC, seconds of training (without validation), and the share spent waiting for data.
    """
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(baseline.optimizer, T_max=epochs)
    seconds, waited, step = 0.0, 0.0, 0
    begun = ended = time.perf_counter()
    for epoch in range(epochs):
        baseline.freeze(epoch < frozen_epochs)
        baseline.net.train()
        for number, (image, label) in enumerate(train, start=1):
            waited += time.perf_counter() - ended
            baseline.step(image, label)
            step += 1
            if number == len(train):
                schedule.step()
            if number == len(train) if every is None else step % every == 0:
                wait_for_device()
                seconds += time.perf_counter() - begun
                row = {"epoch": epoch + 1, "step": step, "seconds": seconds, "waiting": waited / seconds}
                yield {**row, "auroc": baseline.score(val)}
                begun = time.perf_counter()
            ended = time.perf_counter()


def main() -> None:
    """Train with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--split_file", type=Path)
    parser.add_argument("--weights", choices=("none", "imagenet"), default="none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--first_step", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    train, val = read_split(args.root, args.split_file)
    baseline = Baseline(device, args.weights)
    loader = make_loader(args.root / "train", train, args.batch_size, device, train=True)
    if args.first_step:
        baseline.step(*next(iter(loader)))
        wait_for_device()
        print(time.time())
        return
    rows = fit(
        baseline,
        loader,
        make_loader(args.root / "train", val, args.batch_size, device, train=False),
        args.epochs,
        frozen_epochs=int(args.weights == "imagenet"),
    )
    for row in rows:
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
