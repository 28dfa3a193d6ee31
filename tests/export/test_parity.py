"""Each exported file is compared with the preprocessing of its reader: a wrong config.json or another network shows."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from conftest import NETWORK

from pcam_lightning.export.export_module import ExportNetwork
from pcam_lightning.export.export_network import check_files
from pcam_lightning.export.export_source import find_patches, read_sources, synthetic_patches
from pcam_lightning.export.parity import EXACT, ROUNDED, Comparison, Difference
from pcam_lightning.export.timm_files import find_timm_network, write_config, write_timm_weights
from pcam_lightning.export.torchscript_file import write_torchscript
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.loaded_run import load_pretrained
from pcam_lightning.utils.errors import UserError

Change = Callable[[dict[str, Any]], object]


def compare_on_synthetic(network: PCamClassifier, count: int = 6) -> Comparison:
    patches = synthetic_patches(count)
    return Comparison([network], 1.0, patches.image, patches.label)


def check_changes(folder: Path, comparison: Comparison, changes: dict[str, Change]) -> None:
    """Change config.json in each of several ways, of which each is to be noticed."""
    file = folder / "config.json"
    right = file.read_text()
    check_files(folder, comparison)
    for name, change in changes.items():
        config = json.loads(right)
        change(config)
        file.write_text(json.dumps(config))
        try:
            check_files(folder, comparison)
        except UserError as error:
            assert "its logits differ from the checkpoint" in str(error)  # noqa: PT017
        else:
            pytest.fail(f"{name}: not noticed")


def test_timm_reads_its_transform_from_config_json(tmp_path: Path) -> None:
    network = load_pretrained("pcam", "none")
    found = find_timm_network([network])
    write_config(tmp_path / "config.json", "", network, found)
    write_timm_weights(tmp_path / "model.safetensors", network)

    def cfg(**values: object) -> Change:
        return lambda config: config["pretrained_cfg"].update(values)

    changes = {
        "mean": cfg(mean=[0.485, 0.456, 0.406]),
        "std": cfg(std=[0.4, 0.5, 0.5]),
        "size": cfg(input_size=[3, 120, 120]),
        "crop": cfg(crop_pct=0.9),
        "interpolation": cfg(interpolation="bicubic"),
        "classes": lambda config: config.update(label_names=["tumor", "normal"]),
    }
    check_changes(tmp_path, compare_on_synthetic(network), changes)


def test_wsinfer_reads_its_patches_and_transform_from_config_json(tmp_path: Path) -> None:
    network = load_pretrained("pcam-small", "none")
    write_config(tmp_path / "config.json", "", network, None)
    write_torchscript(tmp_path / "torchscript_model.pt", ExportNetwork([network]))

    def top(**values: object) -> Change:
        return lambda config: config.update(values)

    changes = {
        "patch": top(patch_size_pixels=90),
        "spacing": top(spacing_um_px=0.9),
        "size": lambda config: config["transform"][0]["arguments"].update(size=80),
        "mean": lambda config: config["transform"].append(
            {"name": "Normalize", "arguments": {"mean": [0.1] * 3, "std": [1.0] * 3}}
        ),
        "classes": top(class_names=["tumor", "normal"]),
    }
    check_changes(tmp_path, compare_on_synthetic(network), changes)


def test_timm_scales_no_patch_that_is_cropped(tmp_path: Path) -> None:
    data: Any = timm.data  # without types
    for crop in range(32, 97, 2):
        network = PCamClassifier(NETWORK, "none", crop=crop)
        write_config(tmp_path / "config.json", "", network, find_timm_network([network]))
        config = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
        transform = data.create_transform(**data.resolve_data_config(pretrained_cfg=config))
        resize, center, *_ = transform.transforms
        assert (resize.size, *center.size) == (96, crop, crop)


def test_a_network_that_timm_cannot_run_alone_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    networks = {
        "timm has no ensembles": [PCamClassifier(NETWORK, "none"), PCamClassifier(NETWORK, "none")],
        "does not normalize stains": [PCamClassifier(NETWORK, "none", stain="reinhard")],
        "scales before it crops": [PCamClassifier(NETWORK, "none", crop=64, size=96)],
        "timm has no p4m_resnet16": [PCamClassifier("p4m_resnet16", "none")],
    }
    for reason, several in networks.items():
        assert find_timm_network(several) is None
        assert reason in capsys.readouterr().err


def test_limits() -> None:
    one = Difference("model.onnx", "ONNX Runtime", "checkpoint", EXACT, 1e-6, 1e-5, 0.9, 0.9)
    assert one.is_within
    for limit, changed, within in (
        (EXACT, {"largest": 2e-3}, False),
        (EXACT, {"largest": math.nan}, False),
        (ROUNDED, {"largest": 2.0, "mean": 0.09}, True),
        (ROUNDED, {"mean": 0.11}, False),
        (ROUNDED, {"mean": math.nan}, False),
    ):
        assert one._replace(limit=limit, **changed).is_within == within  # type: ignore[arg-type]


def test_bundled_networks_are_compared_with_their_caution(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patches = find_patches(read_sources(["pcam-small"], None), drawn, 8)
    assert "scores may be optimistic" in capsys.readouterr().err
    assert patches.origin.startswith("8 patches of kaggle, sampled at random; the network was trained on JPEG copies")
    assert patches.origin.endswith("so AUROC may be optimistic")
