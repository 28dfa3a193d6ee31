"""export: a trained network as files for ONNX Runtime, WSInfer, QuPath, timm and the Hugging Face hub."""

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

VECTORS = 10  # number of synthetic patches in test_vectors.npz


@dataclass(frozen=True)
class Export:
    """An exported network.

    Attributes:
        folder: folder of the files.
        differences: differences between the logits of each file and those of the checkpoint.
        patches: description of the patches used for the comparison.
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
    """Export a trained network as files for other programs.

    Each file is compared with the checkpoint, patch by patch, with the preprocessing of the program that reads it. If a
    logit differs by more than 0.001, nothing is written. If timm scales patches, it rounds pixels, so the limit for
    model.safetensors is a mean difference of 0.1; beyond it, only this file is left out.

    Args:
        targets: runs (their best checkpoint), checkpoints, or pcam or pcam-small (bundled with the package); several
            networks are exported as the mean of their logits.
        output: folder to create; by default `export` in the run of a single target.
        tta: test-time augmentation, none or d4 (mean of eight views); by default that of each run.
        calibrate: divide the last layer by the temperature that evaluate fitted.
        sample: number of randomly sampled validation patches for the comparison; 0 for all.
        root: data folder, if it has moved since the run.

    Raises:
        UserError: a target cannot be exported, files differ from the checkpoint, or the folder cannot be written.
    """
    check_number("sample", sample, whole=True)
    if tta not in (None, "none", "d4"):
        raise UserError(f"`tta` {tta}: should be none or d4.")
    if calibrate and len(targets) > 1:
        raise UserError("`calibrate`: not supported for several networks.")
    sources = read_sources(targets, tta)
    if output is None and len(sources) > 1:
        raise UserError("`output` is required for several networks.")
    folder = sources[0].loaded.run.folder / "export" if output is None else Path(output).expanduser()
    temperature = sources[0].temperature() if calibrate else 1.0
    patches = find_patches(sources, root, sample)
    rank_zero_info(f"export: comparing {_names(sources, ' + ')} on {patches.origin}.")
    networks = [source.network for source in sources]
    try:
        with atomic_folder(folder) as temporary:
            comparison = Comparison(networks, temperature, patches.image, patches.label)
            if not np.isfinite(comparison.logit).all():
                raise UserError(f"{sources[0].loaded.path}: some logits are NaN or infinite.")
            _write_networks(temporary, sources, temperature)
            differences = check_files(temporary, comparison)
            _write_records(temporary, sources, temperature)
            write_card(temporary / "README.md", sources, temperature, patches.origin, differences)
    except FileExistsError:
        raise UserError(f"{folder} exists and is not empty; choose another `output` folder.") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from None
    return Export(folder, differences, patches.origin)


def _write_networks(folder: Path, sources: list[ExportSource], temperature: float) -> None:
    """Write the files that contain a network."""
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

    A file with an optional limit is removed with a warning if it exceeds the limit.

    Returns:
        The differences of the remaining files.

    Raises:
        UserError: a file exceeds a required limit.
    """
    differences = comparison.files(folder)
    for one in [one for one in differences if not one.is_within]:
        message = (
            f"{one.file}: read with {one.reader}, its logits differ from the {one.compared_with} by up to "
            f"{one.largest:.2g} (mean {one.mean:.2g}); the limit is {one.limit.text}"
        )
        if one.limit.required:
            raise UserError(f"{message}; nothing is written.")
        rank_zero_warn(f"{message}; this file is not written.")
        (folder / one.file).unlink()
        differences = [other for other in differences if other.file != one.file]
    return differences


def _write_records(folder: Path, sources: list[ExportSource], temperature: float) -> None:
    """Write test vectors, and features of training patches."""
    _write_vectors(folder / "test_vectors.npz", checkpoint_logits([one.network for one in sources], temperature))
    distance = find_feature_distance(sources[0].loaded) if len(sources) == 1 else None
    if distance is not None:
        distance.write(folder / FEATURES_FILE)


def _names(sources: list[ExportSource], separator: str) -> str:
    return separator.join(str(source.network.hparams["backbone"]) for source in sources)


def _metadata(sources: list[ExportSource], temperature: float) -> dict[str, str]:
    """Return the metadata of model.onnx."""
    return {
        "pcam_lightning": __version__,
        "networks": _names(sources, ", "),
        "tta": ", ".join(str(source.network.hparams["tta"]) for source in sources),
        "temperature": repr(temperature),
        "classes": "normal, tumor",
        "um_per_pixel": "0.972",
        "input": "image: uint8 (N, 96, 96, 3), RGB",
        "output": "prob, logit: float32 (N,), tumor in the center 32 x 32 pixels",
    }


def _write_vectors(path: Path, logits: Logits) -> None:
    """Write synthetic patches and the expected outputs of the exported files."""
    image = synthetic_patches(VECTORS).image
    logit = logits(image)
    np.savez_compressed(path, image=image, logit=logit, prob=1 / (1 + np.exp(-logit.astype(np.float64))))
