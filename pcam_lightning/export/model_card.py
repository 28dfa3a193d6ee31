"""README.md of an export: a Hugging Face model card, filled from the records of the run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from scipy.special import expit, logit

from pcam_lightning import __version__
from pcam_lightning.export.export_source import ExportSource
from pcam_lightning.export.parity import Difference
from pcam_lightning.utils.run_dir import BundledRun

WORST = 5  # number of slides that the card lists
# Licenses of pretrained weights by prefix of the network's name; the first match counts.
_LICENSES = {
    "efficientnet_lite": "Apache-2.0",
    "resnet": "BSD-3-Clause (torchvision)",
    "convnext": "BSD-3-Clause (torchvision)",
    "efficientnet_b": "BSD-3-Clause (torchvision)",
}
_FILES = {
    "model.onnx": "`image`, uint8 (N, 96, 96, 3) -> `prob` and `logit`, float32 (N,); opset 20",
    "torchscript_model.pt": "for WSInfer and QuPath: float (N, 3, 96, 96) in [0, 1] -> logits (N, 2) of normal, tumor",
    "config.json": "for WSInfer and timm",
    "model.safetensors": "for timm: `timm.create_model('local-dir:.', pretrained=True)`; the network alone",
    "test_vectors.npz": "ten synthetic patches, `image`, and the expected `logit` and `prob`",
    "training_features.safetensors": "for `serve`: features of training patches, to detect out-of-distribution patches",
}


def write_card(
    path: Path, sources: Sequence[ExportSource], temperature: float, origin: str, differences: Sequence[Difference]
) -> None:
    """Write the card.

    Args:
        path: path of the card, in the folder of the exported files.
        sources: exported networks; the scores are those of the first.
        temperature: divisor of the logits.
        origin: description of the patches used for the comparison.
        differences: result of the comparison.
    """
    first = sources[0]
    report = _report(first) if len(sources) == 1 else None
    files = {name: text for name, text in _FILES.items() if (path.parent / name).is_file()}
    files |= {
        file.name: "for pcam_lightning: the network in float32, and its training record"
        for file in sorted(path.parent.glob("pcam_lightning*.safetensors"))
    }
    environment = Environment(
        loader=PackageLoader("pcam_lightning.export"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("card.md").render(
        head=_head(report, Path(first.loaded.config["data"]["root"]).name, timm="model.safetensors" in files),
        members=[_describe(source) for source in sources],
        own_cards=[text for source in sources if (text := _own_card(source))],
        report=report,
        test=_test(first) if len(sources) == 1 else None,
        worst=(report or {}).get("slides", [])[:WORST],
        temperature=temperature,
        threshold=None if report is None else _threshold(float(report["threshold"]), temperature),
        origin=origin,
        differences=differences,
        files=files,
        versions={"pcam_lightning": __version__, "torch": torch.__version__, "timm": timm.__version__},
    )
    path.write_text(text, encoding="utf-8")


def _head(report: dict[str, Any] | None, data: str, *, timm: bool) -> str:
    """Return the card's metadata as YAML; scores on synthetic tissue are left out."""
    results = None
    if report is not None and not report["synthetic"]:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type="other",
                dataset_name=f"validation part of {data}, {report['patches']:,} patches",
                metric_type="roc_auc",
                metric_value=round(report["auroc"]["value"], 4),
            )
        ]
    head = ModelCardData(
        library_name="timm" if timm else "onnx",
        pipeline_tag="image-classification",
        tags=["pathology", "histology", "PatchCamelyon", "CAMELYON16", "wsinfer"],
        model_name="pcam_lightning" if results else None,
        eval_results=results,
    )
    return str(head.to_yaml())


def _describe(source: ExportSource) -> dict[str, Any]:
    """Return the card's description of a network."""
    network, checkpoint = source.network, source.loaded.checkpoint
    record = checkpoint["pcam"]
    data, preprocess = record["config"]["data"], network.preprocess
    trained = source.loaded.trained
    side = f"the center {preprocess.crop} x {preprocess.crop} pixels"
    side += f", scaled to {preprocess.side} x {preprocess.side}" if preprocess.side != preprocess.crop else ""
    return {
        "backbone": network.hparams["backbone"],
        "parameters": sum(value.numel() for value in network.net.parameters()),
        "seen": side,
        "stain": network.hparams["stain"],
        "normalize": network.hparams["normalize"],
        "views": 8 if network.hparams["tta"] == "d4" else 1,
        "start": _start(source),
        "bundled": source.loaded.run.folder.name if isinstance(source.loaded.run, BundledRun) else None,
        "data": Path(data["root"]).name,
        "patches": record["data"].get("patches"),
        "fingerprint": record["data"].get("pixels"),
        "held_out": record["split"].get("val"),
        "split": _split(record),
        "extra": Path(data["extra_train"]).name if data.get("extra_train") else None,
        "tumor": network.positive_fraction,
        "steps": checkpoint["global_step"],
        "origins": list(trained.origins),
        "version": record.get("version"),
        "seed": record["config"]["seed_everything"],
    }


def _own_card(source: ExportSource) -> str | None:
    """Return the card of a bundled network without its title, or None for other networks."""
    if not isinstance(source.loaded.run, BundledRun):
        return None
    return source.loaded.run.file.with_suffix(".md").read_text(encoding="utf-8").partition("\n")[2].strip()


def _start(source: ExportSource) -> str:
    """Return the initial weights of training, and their license."""
    weights = str(source.loaded.checkpoint["init_weights"])
    if weights == "none":
        return "random weights"
    backbone = str(source.network.hparams["backbone"])
    if weights != "imagenet":
        return f"the weights {Path(weights).name}, whose license is not recorded"
    license_ = next((name for start, name in _LICENSES.items() if backbone.startswith(start)), None)
    if license_ is None:
        config: Any = getattr(source.network.net, "pretrained_cfg", None) or {}
        license_ = config.get("license") if isinstance(config, dict) else getattr(config, "license", None)
    return f"ImageNet weights, license: {license_ or 'unknown'}"


def _threshold(prob: float, temperature: float) -> float:
    """Return the probability threshold after division of the logits by a temperature."""
    return float(expit(logit(prob) / temperature))


def _split(record: dict[str, Any]) -> str:
    """Return a description of the split."""
    data, kind = record["config"]["data"], str(record["split"]["kind"])
    if data.get("split_file"):
        return kind
    seed = f"seed {data.get('split_seed', 'not recorded')}"
    return f"{kind}, fold {data['fold'] + 1} of {data['folds']}, {seed}" if data.get("folds") else f"{kind}, {seed}"


def _report(source: ExportSource) -> dict[str, Any] | None:
    """Return evaluate's report on this checkpoint and its views, or None if there is none."""
    try:
        report: dict[str, Any] = json.loads((source.loaded.run.folder / "report.json").read_text(encoding="utf-8"))
        return report if report["made_by"] == source.made_by else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _test(source: ExportSource) -> float | None:
    """Return AUROC on the test part if test has scored this checkpoint, else None."""
    try:
        scores = json.loads((source.loaded.run.folder / "test.json").read_text(encoding="utf-8"))
        same = scores["step"] == source.loaded.step and scores["tta"] == source.network.hparams["tta"]
        return float(scores["test/auroc"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
