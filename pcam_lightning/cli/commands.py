"""Commands whose options are the arguments of a function."""

import shlex
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

from pcam_lightning.cli.arguments import PROG, print_json
from pcam_lightning.cli.command import FunctionCommand
from pcam_lightning.utils.errors import rank_zero_info
from pcam_lightning.utils.run_dir import BundledRun, run_at


def _pack(
    root: Path = Path("data"),
    cache_dir: Path | None = None,
    columns: dict[str, str] | None = None,
    resize: Literal["crop", "scale"] | None = None,
    mpp: float | None = None,
    verify: bool = False,
) -> None:
    """Pack the images of a data folder ahead of the first fit and the first predict.

    Args:
        root: data folder; one that has only test/ is packed too.
        cache_dir: folder for the packed images; by default .pcam_cache in the data folder.
        columns: of a CSV of patches: what its columns path, label, id, slide, patient, center and split are called,
            where that is none of the usual names.
        resize: take images of another size, or JPEG: crop cuts 96 x 96 pixels at the center, scale resamples the 93 um
            at the center to 96 x 96 pixels. Needs `mpp`.
        mpp: um per pixel of the images that are resized, such as 0.5 of a scan at 20x.
        verify: hash all packed pixels and image files, pack again where they differ, and stop where pixels are not what
            the ids say (Kaggle's ids are the SHA-1 of the pixels).
    """
    from pcam_lightning.data.datamodule import PCamDataModule
    from pcam_lightning.data.sources import parts

    data = PCamDataModule(
        root, val_fraction=0, cache_dir=cache_dir, columns=columns, resize=resize, mpp=mpp, verify=verify
    )
    for part in parts(root, columns):
        data.setup({"train": "fit", "test": "predict"}[part])
        store = data.train_store if part == "train" else data.test_store
        assert store is not None
        distinct = len(set(store.pixel_sha1))
        rank_zero_info(f"{part}: {len(store.ids):,} patches, {distinct:,} distinct, in {store.path}.")


def _evaluate(
    target: Path,
    labels: Path | None = None,
    slides: Path | None = None,
    root: Path | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    abstain: float | None = None,
    json: bool = False,
) -> None:
    """Score a run, a cross-validation or a file of predictions: report.html and report.json.

    Args:
        target: a run's folder (its best checkpoint is validated again), a cross-validation's, a CSV with id,logit or a
            submission, or pcam or pcam-small, the networks that come with the package, with `root`.
        labels: CSV with id,label, for a CSV that has no labels itself.
        slides: CSV with id,wsi, where the slides are not known already.
        root: data folder, where it has moved since the run.
        bootstrap_samples: for the intervals.
        seed: of the bootstrap and of the parts that thresholds and temperature are cross-fitted on.
        abstain: share of each class that may be called the other one, such as 0.05; patches between the two thresholds
            that follow are called neither. By default all are called.
        json: print what report.json holds on stdout; messages go to stderr as always.
    """
    from pcam_lightning.evaluation.evaluate import evaluate

    next_steps = {}
    run = run_at(target)
    if run.checkpoint.is_file():
        checkpoint = target if isinstance(run, BundledRun) else run.checkpoint
        moved = [] if root is None else [str(root)]
        explain = ["explain", str(target), *(f"--root={one}" for one in moved)]
        predicts = ["predict", "--ckpt_path", str(checkpoint), *(f"--data.root={one}" for one in moved)]
        next_steps["shows where in its top errors the network finds tumor"] = f"{PROG} {shlex.join(explain)}"
        next_steps["writes a submission for test/"] = f"{PROG} {shlex.join(predicts)}"
    with redirect_stdout(sys.stderr):  # where progress bars go too
        result = evaluate(target, labels, slides, root, bootstrap_samples, seed, abstain, next_steps=next_steps)
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
    if json:
        print_json(report)


def _compare(
    first: Path,
    second: Path,
    slides: Path | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Compute the difference of two runs' AUROCs on the same patches, with intervals.

    Args:
        first: a run's folder, a cross-validation's, or a CSV with id,label,logit.
        second: another one, of the same patches.
        slides: CSV with id,wsi, where the slides are not known already.
        bootstrap_samples: for the interval over slides.
        seed: of the bootstrap.
        json: print the numbers on stdout as JSON; messages go to stderr as always.
    """
    from pcam_lightning.evaluation.compare import compare

    with redirect_stdout(sys.stderr):
        found = compare(first, second, slides, bootstrap_samples, seed)
    if json:
        print_json(found)


def _heatmap(
    slides: list[Path], ckpt_path: Path | str = "pcam", output: Path = Path("heatmaps"), **options: Any
) -> None:
    """Predict slides: where tumor is probable, as tables, pictures and QuPath's objects.

    Args:
        slides: files that OpenSlide or Pillow reads, or folders of them, with those below.
        ckpt_path: pcam or pcam-small, which come with the package, or a checkpoint of this project.
        output: folder of the results, a folder for each slide; `slides.csv` and `index.html` list all.
        options: of `SlideOptions`.
    """
    from pcam_lightning.slides.heat_map import ood_warning
    from pcam_lightning.slides.heatmaps import heatmap
    from pcam_lightning.slides.options import SlideOptions  # whose arguments are options of the command
    from pcam_lightning.slides.predict import CAUTION

    rows: Any = heatmap(slides, ckpt_path, output, **vars(SlideOptions(**options))).itertuples()
    for row in rows:
        score = f"{row.score:.4f} (do not use it)" if ood_warning(row.ood_fraction) else f"{row.score:.4f}"
        ood = f", {100 * row.ood_fraction:.0f} % of it out of distribution" if row.ood_fraction >= 0 else ""  # or NaN
        rank_zero_info(
            f"{row.slide}: score {score}, {row.lesions} lesion{'' if row.lesions == 1 else 's'}, tumor in "
            f"{row.tumor_mm2:.3g} of {row.tissue_mm2:.3g} mm2 of tissue{ood}, in {row.folder}."
        )
    rank_zero_info(CAUTION)
    rank_zero_info(f"{output / 'index.html'}: open it in a browser.")


def _evaluate_slides(
    heatmaps: Path,
    reference: Path | None = None,
    annotations: Path | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    tumor_class: list[str] | None = None,
    camelyon16: bool = False,
) -> None:
    """Score the heat maps of slides: AUROC of slides, and the FROC of their lesions by CAMELYON16's rules.

    Args:
        heatmaps: folder that `heatmap` has written.
        reference: CSV with slide,label, 1 for slides with metastases; or CAMELYON16's, with the name and Tumor or
            Normal. By default, slides with annotations are those with metastases.
        annotations: folder with the outlines of metastases, for each slide that has any: its name with .xml (ASAP's) or
            .geojson.
        bootstrap_samples: for the intervals.
        seed: of the bootstrap.
        tumor_class: a class of outlines that is tumor, besides tumor, metastases, _0 and _1; none is outlines without
            class. Repeatable.
        camelyon16: compute the FROC as CAMELYON16's own script does, and write camelyon16/<slide>.csv for it.
    """
    from pcam_lightning.slides.evaluate import evaluate_slides

    scores = evaluate_slides(heatmaps, reference, annotations, bootstrap_samples, seed, tumor_class or (), camelyon16)
    for name, value in (("AUROC of slides", scores.auroc), ("FROC", scores.froc)):
        if value is not None:
            bounds = "no interval" if value.low is None else f"95 % {value.low:.4f} to {value.high:.4f}"
            rank_zero_info(f"{name} {value.value:.4f} ({bounds}, over {len(scores.slides):,} slides).")
    for count, sensitivity in scores.sensitivity.items():
        rank_zero_info(f"sensitivity {sensitivity:.4f} at {count:g} false positives a slide.")
    rank_zero_info(f"{heatmaps / 'slide_scores.json'}, {heatmaps / 'slide_scores.csv'}: all of it.")


def _mine_negatives(
    heatmaps: Path,
    output: Path = Path("hard_negatives"),
    reference: Path | None = None,
    annotations: Path | None = None,
    threshold: float = 0.5,
    per_slide: int = 1000,
    tumor_class: list[str] | None = None,
) -> None:
    """Write the false positives of annotated slides as a data folder, which fit adds with --data.extra_train.

    Args:
        heatmaps: folder that `heatmap` has written; its slides must be where they were.
        output: folder to make.
        reference: CSV with slide,label, or CAMELYON16's; slides without metastases need no annotations.
        annotations: folder with the outlines of metastases: the name of a slide with .xml (ASAP's) or .geojson. A slide
            that neither says anything of is skipped.
        threshold: probability from which a patch counts as positive.
        per_slide: patches of a slide at most, those with the highest probabilities.
        tumor_class: a class of outlines that is tumor, besides tumor, metastases, _0 and _1; none is outlines without
            class. Repeatable.
    """
    from pcam_lightning.slides.mine import mine_negatives

    mine_negatives(heatmaps, output, reference, annotations, threshold, per_slide, tumor_class or ())


def _export(
    targets: list[Path],
    output: Path | None = None,
    tta: Literal["none", "d4"] | None = None,
    calibrate: bool = False,
    sample: int = 1000,
    root: Path | None = None,
) -> None:
    """Write a trained network as a folder for ONNX Runtime, WSInfer, QuPath, timm and the Hugging Face hub.

    Each file is compared with the checkpoint, patch by patch, by the steps of the program that reads it; where a logit
    differs by more than 0.001, nothing is written. Where timm has to scale patches, model.safetensors rounds by design,
    and is left out of the folder where its logits differ by more than 0.1 in the mean.

    Args:
        targets: runs, whose best checkpoint counts, checkpoints, or pcam or pcam-small, which come with the package; of
            several, the mean of their logits is exported.
        output: folder to make; by default `export` in the run of a single target.
        tta: none or d4, the mean of eight views; by default what each run had.
        calibrate: divide the last layer by the temperature that evaluate has found.
        sample: validation patches that files are compared on, sampled at random; 0 for all.
        root: data folder, where it has moved since the run.
    """
    from pcam_lightning.export.export import export_network

    result = export_network([*targets], output, tta, calibrate, sample, root)
    for one in result.differences:
        rank_zero_info(
            f"{one.file}, read as {one.reader} does: logits differ from those of the {one.compared_with} by "
            f"{one.largest:.1e} at most, {one.mean:.1e} in the mean (limit: {one.limit.text}); AUROC {one.auroc:.4f} "
            f"and {one.checkpoint_auroc:.4f}."
        )
    folder, data = shlex.quote(str(result.folder)), "DIR" if root is None else shlex.quote(str(root))
    rank_zero_info(f"{result.folder}: README.md describes it.")
    rank_zero_info(f"a page:     {PROG} serve {folder}")
    rank_zero_info(f"submission: {PROG} predict-onnx {folder} --root {data}")


def _predict_onnx(
    model: Path,
    root: Path = Path("data"),
    output: Path = Path(),
    batch_size: int = 64,
    cache_dir: Path | None = None,
    columns: dict[str, str] | None = None,
    resize: Literal["crop", "scale"] | None = None,
    mpp: float | None = None,
    overwrite: bool = False,
) -> None:
    """Write submission.csv for test/, predicted by an exported network.

    Args:
        model: model.onnx of an export, or its folder.
        root: data folder.
        output: folder to write into, by default the working folder.
        batch_size: patches a batch.
        cache_dir: folder for the packed images; by default .pcam_cache in the data folder.
        columns: of a CSV of patches: what its columns path, label, id, slide, patient, center and split are called,
            where that is none of the usual names.
        resize: take images of another size, or JPEG: crop cuts 96 x 96 pixels at the center, scale resamples the 93 um
            at the center to 96 x 96 pixels. Needs `mpp`.
        mpp: um per pixel of the images that are resized, such as 0.5 of a scan at 20x.
        overwrite: replace a submission that is there and differs.
    """
    from pcam_lightning.cli.run_commands import check_output
    from pcam_lightning.export.predict import predict_onnx
    from pcam_lightning.training.predictions import write_submission

    output.mkdir(parents=True, exist_ok=True)
    check_output(output)
    predictions = predict_onnx(model, root, batch_size, cache_dir, columns, resize, mpp)
    write_submission(output / "submission.csv", predictions, overwrite=overwrite)


def _serve(folder: Path, host: str = "127.0.0.1", port: int = 8000, max_mb: int = 20) -> None:
    """Serve a local page that predicts one's own patches with an exported network, until Ctrl-C.

    Images stay in memory and are not kept. The page is for research and not for diagnosis.

    Args:
        folder: that `export` wrote.
        host: name or address to listen on; anything but 127.0.0.1 and localhost lets others in the network use the
            page.
        port: to listen on; 0 for any that is free.
        max_mb: largest file that is accepted, in MB.
    """
    from pcam_lightning.serve.serve import serve

    serve(folder, host, port, max_mb)


FUNCTION_COMMANDS: Mapping[str, FunctionCommand] = {
    "evaluate": FunctionCommand("evaluation.evaluate", _evaluate),
    "compare": FunctionCommand("evaluation.compare", _compare),
    "curves": FunctionCommand("evaluation.curves"),
    "explain": FunctionCommand("evaluation.explain"),
    "heatmap": FunctionCommand("slides.heatmaps", _heatmap),
    "evaluate-slides": FunctionCommand("slides.evaluate", _evaluate_slides),
    "mine-negatives": FunctionCommand("slides.mine", _mine_negatives),
    "export": FunctionCommand("export.export", _export),
    "predict-onnx": FunctionCommand("export.predict", _predict_onnx),
    "serve": FunctionCommand("serve.serve", _serve),
    "slides": FunctionCommand("data.slide_map"),
    "pack": FunctionCommand("data.datamodule", _pack),
    "synthesize": FunctionCommand("synthetic.kaggle_folder"),
}
