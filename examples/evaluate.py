"""Evaluate one or two runs on their validation patches, and compare the scores.

python examples/evaluate.py RUN [OTHER_RUN]
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np

from pcam_lightning import evaluate
from pcam_lightning.evaluation.labeled_predictions import read_labeled_predictions
from pcam_lightning.metrics.bootstrap import delong_test

parser = ArgumentParser(description=__doc__)
parser.add_argument("runs", type=Path, nargs="+", help="folders of runs with the same split")
args = parser.parse_args()

for run in args.runs:
    evaluation = evaluate(run)
    auroc = evaluation.report["auroc"]
    print(f"{run}: AUROC {auroc['value']:.4f}, 95 % {auroc['low']} to {auroc['high']}; {evaluation.page}")
if len(args.runs) == 2:
    first, second = (read_labeled_predictions(run).rows.set_index("id") for run in args.runs)
    label = first["label"].to_numpy()
    logits = np.asarray(first["logit"]), np.asarray(second["logit"].loc[first.index])
    difference, p_value = delong_test(label, *logits)
    print(
        f"difference {difference.value:+.4f}, 95 % {difference.low:+.4f} to {difference.high:+.4f}, p = {p_value:.2g}"
    )
