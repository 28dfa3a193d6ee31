"""export: a trained network as a folder that ONNX Runtime, WSInfer, QuPath, timm and the Hugging Face hub take."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pcam_lightning import __version__
from pcam_lightning.export.export_module import ExportNetwork
from pcam_lightning.export.export_source import (
    ExportSource,
    exported_checkpoint,
    find_patches,
    read_sources,
    synthetic_patches,
)
from pcam_lightning.export.model_card import write_card
from pcam_lightning.export.onnx_file import write_onnx
from pcam_lightning.export.parity import (
    ONNX,
    TIMM,
    TORCHSCRIPT,
    Comparison,
    Difference,
    checkpoint_logits,
    weights_names,
)
from pcam_lightning.export.readers import Logits
from pcam_lightning.export.timm_files import find_timm_network, write_config, write_timm_weights
from pcam_lightning.export.torchscript_file import write_torchscript
from pcam_lightning.training.feature_distance import FILE as FEATURES_FILE
from pcam_lightning.training.feature_distance import find_feature_distance
from pcam_lightning.utils.atomic_io import atomic_folder
from pcam_lightning.utils.errors import UserError, check_number, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.weights_file import write_weights

VECTORS = 10  # synthetic patches in test_vectors.npz


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
    tta: Literal["none", "d4"] | None = None,
    calibrate: bool = False,
    sample: int = 1000,
    root: Path | None = None,
) -> Export:
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
    folder = sources[0].loaded.run.folder / "export" if output is None else Path(output).expanduser()
    temperature = sources[0].temperature() if calibrate else 1.0
    patches = find_patches(sources, root, sample)
    rank_zero_info(f"export: {_names(sources, ' + ')}, compared on {patches.origin}.")
    networks = [source.network for source in sources]
    try:
        with atomic_folder(folder) as temporary:
            comparison = Comparison(networks, temperature, patches.image, patches.label)
            if not np.isfinite(comparison.logit).all():
                raise UserError(f"{sources[0].loaded.path}: some of its logits are NaN or infinite.")
            _write_networks(temporary, sources, temperature)
            differences = check_files(temporary, comparison)
            _write_records(temporary, sources, temperature)
            write_card(temporary / "README.md", sources, temperature, patches.origin, differences)
    except FileExistsError:
        raise UserError(f"{folder} is there already, and is no empty folder; name another `output`.") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from None
    return Export(folder, differences, patches.origin)


def _write_networks(folder: Path, sources: list[ExportSource], temperature: float) -> None:
    """Write the files that hold a network."""
    checkpoints = [exported_checkpoint(source, temperature) for source in sources]
    networks = [
        replace(source.loaded, checkpoint=one).classifier() for source, one in zip(sources, checkpoints, strict=True)
    ]
    for name, checkpoint in zip(weights_names(len(sources)), checkpoints, strict=True):
        write_weights(folder / name, checkpoint)
    network = ExportNetwork(networks)
    write_onnx(folder / ONNX, network, _metadata(sources, temperature))
    write_torchscript(folder / TORCHSCRIPT, network)
    found = find_timm_network(networks)
    write_config(folder / "config.json", _names(sources, " + "), networks[0], found)
    if found is not None:
        write_timm_weights(folder / TIMM, networks[0])


def check_files(folder: Path, comparison: Comparison) -> list[Difference]:
    """Compare the files of a folder with the checkpoint.

    A file that rounds by design is removed where it exceeds its limit, with a warning.

    Returns:
        The differences of the files that are left.

    Raises:
        UserError: another file exceeds its limit.
    """
    differences = comparison.files(folder)
    for one in [one for one in differences if not one.is_within]:
        message = (
            f"{one.file}: read as {one.reader} does, its logits differ from those of the {one.compared_with} by up to "
            f"{one.largest:.2g}, {one.mean:.2g} in the mean; the limit is {one.limit.text}"
        )
        if one.limit.required:
            raise UserError(f"{message}; nothing is written.")
        rank_zero_warn(f"{message}, so that this file is not written.")
        (folder / one.file).unlink()
        differences = [other for other in differences if other.file != one.file]
    return differences


def _write_records(folder: Path, sources: list[ExportSource], temperature: float) -> None:
    """Write what else programs need: test vectors, and features of training patches."""
    _write_vectors(folder / "test_vectors.npz", checkpoint_logits([one.network for one in sources], temperature))
    distance = find_feature_distance(sources[0].loaded) if len(sources) == 1 else None
    if distance is not None:
        distance.write(folder / FEATURES_FILE)


def _names(sources: list[ExportSource], separator: str) -> str:
    return separator.join(str(source.network.hparams["backbone"]) for source in sources)


def _metadata(sources: list[ExportSource], temperature: float) -> dict[str, str]:
    """Return what model.onnx says of itself."""
    return {
        "pcam_lightning": __version__,
        "networks": _names(sources, ", "),
        "tta": ", ".join(str(source.network.hparams["tta"]) for source in sources),
        "temperature": repr(temperature),
        "classes": "normal, tumor",
        "um_per_pixel": "0.972",
        "input": "image: uint8 (N, 96, 96, 3), RGB",
        "output": "prob, logit: float32 (N,), of tumor in the center 32 x 32 pixels",
    }


def _write_vectors(path: Path, logits: Logits) -> None:
    """Write synthetic patches and what must come out of the exported files."""
    image = synthetic_patches(VECTORS).image
    logit = logits(image)
    np.savez_compressed(path, image=image, logit=logit, prob=1 / (1 + np.exp(-logit.astype(np.float64))))
