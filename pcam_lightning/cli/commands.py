"""Commands whose options are the arguments of a function of the library, and what each prints."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from pcam_lightning.cli.arguments import PROG, print_json
from pcam_lightning.cli.command import FunctionCommand
from pcam_lightning.utils.errors import rank_zero_info
from pcam_lightning.utils.run_dir import run_at

if TYPE_CHECKING:
    import pandas as pd

    from pcam_lightning.data.packed_store import PackedStore
    from pcam_lightning.evaluation.evaluate import Evaluation
    from pcam_lightning.export.export_network import Export
    from pcam_lightning.metrics.bootstrap import Interval
    from pcam_lightning.slides.score_slides import SlideScores


def _show_packs(packs: "dict[str, PackedStore]", options: Namespace) -> None:
    for part, store in packs.items():
        distinct = len(set(store.pixel_sha1))
        rank_zero_info(f"{part}: {len(store.ids):,} patches, {distinct:,} distinct, in {store.path}.")


def _show_report(result: "Evaluation", options: Namespace) -> None:
    report = result.report
    value = report["auroc"]
    bounds = "no interval" if value["low"] is None else f"95 % {value['low']:.4f} to {value['high']:.4f}"
    rank_zero_info(
        f"AUROC {value['value']:.4f} ({bounds}, over {report['clusters']:,} {report['clustered_by']}), "
        f"n = {report['patches']:,}."
    )
    if (found := report["abstention"]) is not None:
        calls = f"{found['wrong']:.1%} of these calls are wrong" if found["wrong"] is not None else "none"
        rank_zero_info(f"abstains on {1 - found['kept']:.1%} of the patches and calls {found['kept']:.1%}: {calls}.")
    for message in (report["synthetic"], *report["warnings"], report["leak"]):
        if message:
            rank_zero_info(message)
    rank_zero_info(f"{result.page}: open it in a browser.")
    if run_at(options.target).checkpoint.is_file():
        words = [str(options.target), *([] if options.root is None else [f"--root={options.root}"])]
        rank_zero_info(f"top errors: {PROG} explain {shlex.join(words)}")
        rank_zero_info(f"submission: {PROG} predict {shlex.join(words)}")
    if options.json:
        print_json(report)


def _show_difference(found: dict[str, Any], options: Namespace) -> None:
    if options.json:
        print_json(found)


def _show_slides(table: "pd.DataFrame", options: Namespace) -> None:
    from pcam_lightning.slides.heat_map import ood_warning
    from pcam_lightning.slides.predict_slide import CAUTION

    rows: Any = table.itertuples()
    for row in rows:
        score = f"{row.score:.4f} (do not use it)" if ood_warning(row.ood_fraction) else f"{row.score:.4f}"
        ood = f", {100 * row.ood_fraction:.0f} % of it out of distribution" if row.ood_fraction >= 0 else ""  # or NaN
        rank_zero_info(
            f"{row.slide}: score {score}, {row.lesions} lesion{'' if row.lesions == 1 else 's'}, tumor in "
            f"{row.tumor_mm2:.3g} of {row.tissue_mm2:.3g} mm2 of tissue{ood}, in {row.folder}."
        )
    rank_zero_info(CAUTION)
    rank_zero_info(f"{options.output / 'index.html'}: open it in a browser.")


def _show_slide_scores(scores: "SlideScores", options: Namespace) -> None:
    values: dict[str, Interval | None] = {"AUROC of slides": scores.auroc, "FROC": scores.froc}
    for name, value in values.items():
        if value is not None:
            bounds = "no interval" if value.low is None else f"95 % {value.low:.4f} to {value.high:.4f}"
            rank_zero_info(f"{name} {value.value:.4f} ({bounds}, over {len(scores.slides):,} slides).")
    for count, sensitivity in scores.sensitivity.items():
        rank_zero_info(f"sensitivity {sensitivity:.4f} at {count:g} false positives a slide.")
    folder = options.heatmaps
    rank_zero_info(f"{folder / 'slide_scores.json'}, {folder / 'slide_scores.csv'}: all of it.")


def _show_export(result: "Export", options: Namespace) -> None:
    for one in result.differences:
        rank_zero_info(
            f"{one.file}, read as {one.reader} does: logits differ from those of the {one.compared_with} by "
            f"{one.largest:.1e} at most, {one.mean:.1e} in the mean (limit: {one.limit.text}); AUROC {one.auroc:.4f} "
            f"and {one.checkpoint_auroc:.4f}."
        )
    folder, root = shlex.quote(str(result.folder)), shlex.quote(str(options.root or "DIR"))
    rank_zero_info(f"{result.folder}: README.md describes it.")
    rank_zero_info(f"a page:     {PROG} serve {folder}")
    rank_zero_info(f"submission: {PROG} predict-onnx {folder} --root {root}")


_JSON: Mapping[str, Any] = {
    "type": bool,
    "default": False,
    "help": "Print the numbers on stdout as JSON; messages go to stderr as always.",
}

FUNCTION_COMMANDS: Mapping[str, FunctionCommand] = {
    "evaluate": FunctionCommand("evaluation.evaluate", "evaluate", _show_report, {"json": _JSON}),
    "compare": FunctionCommand("evaluation.compare", "compare", _show_difference, {"json": _JSON}),
    "curves": FunctionCommand("evaluation.curves", "curves"),
    "explain": FunctionCommand("evaluation.explain", "explain"),
    "heatmap": FunctionCommand(
        "slides.many_slides", "heatmap", _show_slides, more=("slides.slide_options", "SlideOptions")
    ),
    "evaluate-slides": FunctionCommand("slides.score_slides", "evaluate_slides", _show_slide_scores),
    "mine-negatives": FunctionCommand("slides.hard_negatives", "mine_negatives"),
    "export": FunctionCommand("export.export_network", "export_network", _show_export),
    "predict-onnx": FunctionCommand("export.onnx_submission", "predict_onnx", defaults={"output": Path()}),
    "serve": FunctionCommand("serve.server", "serve"),
    "slides": FunctionCommand("data.slide_map", "slides"),
    "pack": FunctionCommand("data.pack_folder", "pack_folder", _show_packs),
    "synthesize": FunctionCommand("synthetic.kaggle_folder", "synthesize"),
}
