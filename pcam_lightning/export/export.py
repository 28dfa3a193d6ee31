"""export: a trained network as a folder that ONNX Runtime, WSInfer, QuPath, timm and the Hugging Face hub take."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcam_lightning import __version__
from pcam_lightning.data.quality import patch_properties
from pcam_lightning.export.card import write_card
from pcam_lightning.export.network import ExportNetwork
from pcam_lightning.export.onnx_file import write_onnx
from pcam_lightning.export.proof import (
    Comparison,
    Difference,
    Logits,
    check,
    checkpoint_logits,
    one_view_logits,
    onnx_logits,
    timm_logits,
    torchscript_logits,
)
from pcam_lightning.export.quantize import quantize
from pcam_lightning.export.source import Patches, Source, draw_patches, find_patches, read_sources, without_paths
from pcam_lightning.export.timm_files import find_timm_network, write_config, write_timm_weights
from pcam_lightning.export.torchscript_file import write_torchscript
from pcam_lightning.training.feature_distance import FILE as FEATURES_FILE
from pcam_lightning.training.feature_distance import find_feature_distance
from pcam_lightning.utils.atomic_io import atomic_folder
from pcam_lightning.utils.errors import UserError, check_number, rank_zero_info
from pcam_lightning.utils.weights_file import write_weights

VECTORS = 10  # drawn patches in test_vectors.npz
RANGE = (0.1, 99.9)  # percentiles of the properties of training patches


@dataclass(frozen=True)
class Export:
    """An exported network.

    Attributes:
        folder: of its files.
        differences: of each file's logits from those of the checkpoint.
        patches: what these were compared on.
    """

    folder: Path
    differences: list[Difference]
    patches: str


def export_network(
    targets: list[Path | str],
    output: Path | None = None,
    tta: str | None = None,
    calibrate: bool = False,
    int8: bool = False,
    sample: int = 1000,
    root: Path | None = None,
) -> Export:
    """Write a trained network as a folder of files that other programs open.

    The files are compared with the checkpoint, patch by patch; where logits differ by more than 0.001, nothing is
    written.

    Args:
        targets: runs, whose best checkpoint counts, checkpoints, or pcam or pcam-small, which come with the package; of
            several, the mean of their logits is exported.
        output: folder to make; by default `export` in the run of a single target.
        tta: none or d4, the mean of eight views; by default what each run had.
        calibrate: divide logits by the temperature that evaluate has found.
        int8: also write a quantized ONNX file, where it loses less than 0.002 of AUROC on these patches.
        sample: validation patches that files are compared on, drawn at random; 0 for all.
        root: data folder, where it has moved since the run.

    Raises:
        UserError: a target cannot be used or exported, files differ from the checkpoint, or the folder cannot be
            written.
    """
    check_number("sample", sample, whole=True)
    if tta not in (None, "none", "d4"):
        raise UserError(f"`tta` {tta}: should be none or d4.")
    if calibrate and len(targets) > 1:
        raise UserError("`calibrate`: a temperature is of one run, and these are several.")
    sources = read_sources(targets, tta)
    if output is None and len(sources) > 1:
        raise UserError("`output` DIR is required for several networks: they belong to none of the runs.")
    folder = sources[0].run.folder / "export" if output is None else Path(output).expanduser()
    temperature = sources[0].temperature() if calibrate else 1.0
    patches = find_patches(sources, root, sample)
    try:
        with atomic_folder(folder) as temporary:
            differences = _write(temporary, sources, temperature, patches, int8=int8)
    except FileExistsError:
        raise UserError(f"{folder} is there already, and is no empty folder; name another `output`.") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from None
    return Export(folder, differences, patches.origin)


def _write(
    folder: Path, sources: list[Source], temperature: float, patches: Patches, *, int8: bool
) -> list[Difference]:
    """Write all files, and compare them."""
    networks = [source.network for source in sources]
    network = ExportNetwork(networks, temperature)
    names = " + ".join(str(one.hparams["backbone"]) for one in networks)
    rank_zero_info(f"export: {names}, compared on {patches.origin}.")
    comparison, expected_of = Comparison(patches.image, patches.label), checkpoint_logits(networks, temperature)
    expected = comparison.run(expected_of)
    if not np.isfinite(expected).all():
        raise UserError(f"{sources[0].path}: some of its logits are NaN or infinite.")
    write_onnx(folder / "model.onnx", network, _metadata(sources, temperature))
    write_torchscript(folder / "torchscript_model.pt", network)
    differences = [
        comparison.compare(file, "checkpoint", comparison.run(logits(folder / file)), expected)
        for file, logits in (("model.onnx", onnx_logits), ("torchscript_model.pt", torchscript_logits))
    ]
    found = find_timm_network(networks[0]) if len(networks) == 1 else None
    write_config(folder / "config.json", names, networks[0], found)
    if found is not None:
        write_timm_weights(folder / "model.safetensors", networks[0])
        logit = comparison.run(timm_logits(folder, networks[0]))
        of_one_view = comparison.run(one_view_logits(networks[0]))
        differences.append(comparison.compare("model.safetensors", "checkpoint's network", logit, of_one_view))
    check(differences)
    if int8:
        differences += quantize(folder, comparison, expected, patches.training)
    for number, source in enumerate(sources, start=1):
        name = "pcam_lightning.safetensors" if len(sources) == 1 else f"pcam_lightning_{number}.safetensors"
        write_weights(folder / name, without_paths(source.checkpoint))
    _write_vectors(folder / "test_vectors.npz", expected_of)
    if patches.training is not None:
        _write_properties(folder / "training_patches.json", patches.training)
    distance = find_feature_distance(sources[0].path) if len(sources) == 1 else None
    if distance is not None:
        distance.write(folder / FEATURES_FILE)
    write_card(folder / "README.md", sources, temperature, patches.origin, differences)
    return differences


def _metadata(sources: list[Source], temperature: float) -> dict[str, str]:
    """Return what model.onnx says of itself."""
    return {
        "pcam_lightning": __version__,
        "networks": ", ".join(str(source.network.hparams["backbone"]) for source in sources),
        "tta": ", ".join(str(source.network.hparams["tta"]) for source in sources),
        "temperature": repr(temperature),
        "classes": "normal, tumor",
        "um_per_pixel": "0.972",
        "input": "image: uint8 (N, 96, 96, 3), RGB",
        "output": "prob, logit: float32 (N,), of tumor in the center 32 x 32 pixels",
    }


def _write_vectors(path: Path, logits: Logits) -> None:
    """Write drawn patches and what must come out of the exported files."""
    image = draw_patches(VECTORS).image
    logit = logits(image)
    np.savez_compressed(path, image=image, logit=logit, prob=1 / (1 + np.exp(-logit.astype(np.float64))))


def _write_properties(path: Path, training: np.ndarray) -> None:
    """Write between which values the properties of nearly all training patches lie."""
    table = patch_properties(training)
    ranges = {name: np.percentile(table[name], RANGE).tolist() for name in table}
    path.write_text(json.dumps({"patches": len(training), "percentiles": RANGE, "ranges": ranges}, indent=2) + "\n")
