"""Train your own network with a plain Lightning trainer.

python examples/own_network.py DATA [--epochs 5]
"""

from argparse import ArgumentParser
from itertools import pairwise
from pathlib import Path

import lightning as L
from torch import nn

from pcam_lightning import Augmentation, BestAndLastCheckpoint, PCamClassifier, PCamDataModule, predict
from pcam_lightning.models.backbones import BACKBONES, Backbone

parser = ArgumentParser(description=__doc__)
parser.add_argument("data", type=Path)
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()


def tiny() -> nn.Module:
    """Return a network of four convolutions; the last layer is replaced with a single logit."""
    channels = [3, 16, 32, 64, 64]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise(channels)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


BACKBONES["tiny"] = Backbone(tiny, head="6")
model = PCamClassifier("tiny", weights="none", lr=3e-3, augment=Augmentation(d4=True))
checkpoints = BestAndLastCheckpoint("runs/tiny")
trainer = L.Trainer(max_epochs=args.epochs, callbacks=[checkpoints], logger=False)
trainer.fit(model, PCamDataModule(args.data, batch_size=64))
print(predict("runs/tiny/checkpoints/best.ckpt").head())
