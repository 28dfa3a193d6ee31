"""A report's numbers, figures and patches -> report.html, one self-contained page."""

from typing import Any

import numpy as np
import pandas as pd

from pcam_lightning import figures, grids
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.page import lay_out
from pcam_lightning.scores import operate
from pcam_lightning.style import as_address, as_png, as_svg

WRONG = 16  # patches shown of each kind of mistake


def render(
    rows: pd.DataFrame,
    data: PCamDataModule | None,
    report: dict[str, Any],
    calibrated: np.ndarray,
    chosen: np.ndarray,
    ways_on: dict[str, str],
) -> str:
    """Lay out a report as one page that needs no network; what comes from files is escaped.

    Args:
        rows: labelled predictions, with columns `id`, `label` and `logit`.
        data: where their pixels are; None for no pictures of patches.
        report: the numbers.
        calibrated: logits after temperature scaling, shape (N,).
        chosen: decisions at the chosen threshold, bool, shape (N,).
        ways_on: commands to go on with, by what they do.
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
    return lay_out(
        "report.html",
        report=report,
        figures={name: as_svg(figure) for name, figure in pictures.items()},
        wrong=_wrong(rows, data),
        ways_on=ways_on,
    )


def _wrong(rows: pd.DataFrame, data: PCamDataModule | None) -> dict[str, str]:
    """Draw the patches that are most wrong, of each kind, where their pixels are at hand."""
    if data is None or data.train_store is None:
        return {}
    label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
    return {
        f"{kind}: {min(count, WRONG)} of {count:,}": as_address(as_png(figure))
        for kind, (count, figure) in grids.wrong_grids(rows["id"], label, logit, data.train_store, WRONG).items()
        if count
    }
