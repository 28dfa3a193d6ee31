"""Train a network on a data folder, and predict its test part.

python examples/train.py DATA [--epochs 5]
"""

from argparse import ArgumentParser
from pathlib import Path

from pcam_lightning import Config, fit, predict

parser = ArgumentParser(description=__doc__)
parser.add_argument("data", type=Path)
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()

config = Config.load(
    data={"root": str(args.data), "batch_size": 64},
    model={"weights": "none", "augment": {"degrees": 0, "d4": True, "stain": 0.1}},
    trainer={"max_epochs": args.epochs, "precision": "16-mixed"},
)
result = fit(config)
print(f"{result.checkpoint}: val/auroc {result.best_score:.4f} in epoch {result.best_epoch}")
predictions = predict(result.checkpoint)  # columns id, logit and prob
print(predictions.head())
