"""A report's numbers, figures and patches -> report.html, one self-contained page."""

from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment
from scipy.special import expit

from pcam_lightning import figures
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.scores import operate

WRONG = 16  # patches shown of each kind of mistake


def render(
    rows: pd.DataFrame, data: PCamDataModule | None, report: dict[str, Any], calibrated: np.ndarray, chosen: np.ndarray
) -> str:
    """Lay out a report as one page that needs no network; what comes from files is escaped.

    Args:
        rows: labelled predictions, with columns `id`, `label` and `logit`.
        data: where their pixels are; None for no pictures of patches.
        report: the numbers.
        calibrated: logits after temperature scaling, shape (N,).
        chosen: decisions at the chosen threshold, bool, shape (N,).
    """
    label, logit = rows["label"].to_numpy(dtype=np.int64), rows["logit"].to_numpy()
    operation = operate(label, chosen)
    pictures = {
        "roc": figures.roc(label, logit, operation),
        "precision_recall": figures.precision_recall(label, logit),
        "reliability": figures.reliability_diagram(label, logit, calibrated),
        "histogram": figures.score_histogram(label, logit),
        "confusion_half": figures.confusion(operate(label, logit >= 0), "Called at 0.5"),
        "confusion": figures.confusion(operation, "Called at the chosen threshold"),
    }
    template = resources.files("pcam_lightning").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        report=report,
        figures={name: figures.as_svg(figure) for name, figure in pictures.items()},
        wrong=_wrong(rows, data),
    )


def _wrong(rows: pd.DataFrame, data: PCamDataModule | None) -> dict[str, str]:
    """Draw the patches that are most wrong, of each kind, where their pixels are at hand."""
    if data is None or data.store is None:
        return {}
    prob, drawn = expit(rows["logit"]), {}
    for kind, truth, worst in (("called tumour, is normal", 0, prob), ("called normal, is tumour", 1, 1 - prob)):
        wrong = rows[(rows["label"] == truth) & (worst > 0.5)].index
        first = worst[wrong].sort_values(ascending=False, kind="stable").index[:WRONG]
        if len(first):
            images = data.store.images[data.store.rows(rows.loc[first, "id"])]
            titles = [f"{rows.loc[row, 'id'][:12]}\n{prob[row]:.3f}" for row in first]
            drawn[f"{kind}: {len(first)} of {len(wrong):,}"] = figures.as_png(figures.patch_grid(images, titles))
    return drawn
