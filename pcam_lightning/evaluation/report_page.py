"""Rendering of report.html, a self-contained page with numbers, figures and patches."""

from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.evaluation.decisions import confidences
from pcam_lightning.evaluation.report_metrics import REPORT_METRICS
from pcam_lightning.metrics.classification import RATES, confusion_counts
from pcam_lightning.plotting import patch_grids, plots
from pcam_lightning.plotting.style import as_png, as_svg, data_uri

WRONG = 16  # patches shown of each kind of error


def render(
    rows: pd.DataFrame,
    data: PCamDataModule | None,
    report: dict[str, Any],
    calibrated: np.ndarray,
    chosen: np.ndarray,
) -> str:
    """Render a report as one page without external resources; values from files are escaped.

    Args:
        rows: labeled predictions with columns `id`, `label` and `logit`.
        data: data with the images; None omits patches.
        report: contents of report.json.
        calibrated: logits after temperature scaling, shape (N,).
        chosen: decisions at the chosen threshold, bool, shape (N,).
    """
    label, logit = rows["label"].to_numpy(dtype=np.int64), rows["logit"].to_numpy()
    operation = confusion_counts(label, chosen)
    pictures = {
        "roc": plots.roc(label, logit, operation),
        "precision_recall": plots.precision_recall(label, logit),
        "reliability": plots.reliability_diagram(label, logit, calibrated),
        "histogram": plots.score_histogram(label, logit),
        "confusion_half": plots.confusion(confusion_counts(label, logit >= 0), "Called at 0.5"),
        "confusion": plots.confusion(operation, "Called at the chosen threshold"),
        "risk_coverage": plots.risk_coverage(label, logit, confidences(rows)),
    }
    return render_template(
        "report.html",
        report=report,
        metrics=REPORT_METRICS,
        rates=RATES,
        figures={name: as_svg(figure) for name, figure in pictures.items()},
        wrong=_wrong(rows, data),
    )


def _wrong(rows: pd.DataFrame, data: PCamDataModule | None) -> dict[str, str]:
    """Plot the patches with the largest errors of each kind, if images are available."""
    if data is None:
        return {}
    label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
    return {
        f"{kind}: {min(count, WRONG)} of {count:,}": data_uri(as_png(figure))
        for kind, (count, figure) in patch_grids.error_grids(rows["id"], label, logit, data.train_store, WRONG).items()
        if count
    }


def render_template(template: str, **values: Any) -> str:
    """Render a template that extends page.html; values are escaped."""
    loader = PackageLoader("pcam_lightning.evaluation", "templates")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)
