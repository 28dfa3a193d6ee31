"""What predictions take from the report.json of a run."""

import json
import math
from typing import Any

from pcam_lightning.metrics.abstention import Thresholds
from pcam_lightning.utils.errors import UserError, rank_zero_info
from pcam_lightning.utils.run_dir import Run


def read_temperature(run: Run, made_by: dict[str, Any]) -> float:
    """Return the temperature that `evaluate` found for a run's checkpoint of a step and kind of views."""
    hint = "evaluate finds that of a run's best.ckpt"
    return float(_read_report(run, made_by, "temperature", f"{hint}, where there is one", hint))


def read_thresholds(run: Run, made_by: dict[str, Any]) -> Thresholds:
    """Return the thresholds that `evaluate` found for a run's checkpoint of a step and kind of views."""
    hint = "evaluate with `abstain` 0.05 finds those of a run's best.ckpt"
    found = _read_report(run, made_by, "thresholds", hint, hint)
    infinite = {"low": -math.inf, "high": math.inf}  # JSON has none
    return Thresholds(*(infinite[name] if found[name] is None else float(found[name]) for name in ("low", "high")))


def _read_report(run: Run, made_by: dict[str, Any], name: str, missing: str, hint: str) -> Any:
    """Return an entry of a run's report.json.

    Raises:
        UserError: there is none, or it is of another checkpoint or other views.
    """
    path = run.folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found, recorded = report[name], {**report["made_by"]}
    except (OSError, ValueError, KeyError, TypeError):
        found, recorded = None, {}
    if found is None:
        raise UserError(f"{path}: no {name} there; {missing}.")
    verb = "are" if name.endswith("s") else "is"
    for what in made_by:
        if what == "batchnorm":
            raise UserError(
                f"{path}: its {name} {verb} of the network as it was trained, and AdaptBatchNorm changes it; use "
                "one of the two."
            )
        if recorded.get(what) != made_by[what]:
            raise UserError(
                f"{path}: its {name} {verb} of {what} {recorded.get(what)}, and this is {what} {made_by[what]}; "
                f"{hint}, with the options of its run."
            )
    if root := report.get("root"):  # perhaps of another hospital than the run's
        rank_zero_info(f"{path}: its {name} {verb} of the patches in {root}.")
    return found
