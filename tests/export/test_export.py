"""Exported folders: each file says what the checkpoint says, and what cannot be exported leaves nothing."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import timm
import torch
import yaml
from conftest import NETWORK
from forked import run_code
from PIL import Image
from torch import nn

from pcam_lightning.cli.main import main
from pcam_lightning.export import parity
from pcam_lightning.export.export_module import ExportNetwork
from pcam_lightning.export.export_network import check_files, export_network
from pcam_lightning.export.export_source import synthetic_patches
from pcam_lightning.export.onnx_file import OnnxNetwork
from pcam_lightning.export.onnx_submission import predict_onnx
from pcam_lightning.export.parity import Comparison
from pcam_lightning.export.timm_files import find_timm_network, write_config, write_timm_weights
from pcam_lightning.export.torchscript_file import read_torchscript, write_torchscript
from pcam_lightning.models.backbones import BACKBONES, Backbone
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.training.loaded_run import load_pretrained
from pcam_lightning.utils.bundled import WEIGHTS
from pcam_lightning.utils.errors import UserError

FILES = {
    *("model.onnx", "torchscript_model.pt", "config.json", "README.md", "test_vectors.npz"),
    *("pcam_lightning.safetensors", "model.safetensors"),
}


@pytest.fixture(scope="module")
def exported(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, exported."""
    folder = tmp_path_factory.mktemp("export") / "small"
    assert main(["export", str(small), "--output", str(folder)]) == 0
    return folder


def write_checkpoint(path: Path, small: Path, **options: Any) -> Path:
    """Write the checkpoint of a network that nothing has trained, with the record of a run."""
    torch.manual_seed(0)
    checkpoint = read_checkpoint(small / "checkpoints" / "best.ckpt")
    network = PCamClassifier(weights="none", **options)
    for name, value in network.net.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    if network.preprocess.needs_fit:
        network.preprocess.fit(torch.from_numpy(drawn_patches()))
    config = checkpoint["pcam"]["config"]
    config["model"] = {**config["model"], **{"crop": 96, "size": None, "stain": "none"}, **options, "weights": "none"}
    checkpoint |= {"state_dict": network.state_dict(), "hyper_parameters": dict(network.hparams)}
    torch.save(checkpoint, path)
    return path


def drawn_patches() -> np.ndarray:
    return synthetic_patches(8).image


def test_the_folder_holds_what_each_program_reads(exported: Path, small: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    vectors = np.load(exported / "test_vectors.npz")
    image, logit = vectors["image"], vectors["logit"]
    network = load_pretrained(small / "checkpoints" / "best.ckpt")
    with torch.no_grad():
        assert logit == pytest.approx(network.predict_logits(torch.from_numpy(image)).numpy(), abs=1e-5)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    for batch in (image, image[:1], image[:7]):
        prob, found = session.run(["prob", "logit"], {"image": batch})
        assert found == pytest.approx(logit[: len(batch)], abs=1e-4)
        assert prob == pytest.approx(1 / (1 + np.exp(-found)), abs=1e-6)
    module = read_torchscript(exported / "torchscript_model.pt")
    assert list(module.parameters())  # a frozen one has none, and WSInfer asks for them
    both = module(torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255)
    assert not both.requires_grad
    assert both.shape == (10, 2)
    assert torch.softmax(both, dim=1)[:, 1].detach().numpy() == pytest.approx(vectors["prob"], abs=1e-5)
    config = json.loads((exported / "config.json").read_text())
    assert config["class_names"][1] == "tumor"
    assert config["transform"] == [{"name": "Resize", "arguments": {"size": 96}}, {"name": "ToTensor"}]
    again = load_pretrained(exported / "pcam_lightning.safetensors")
    with torch.no_grad():
        assert again.predict_logits(torch.from_numpy(image)).numpy() == pytest.approx(logit, abs=1e-6)


def test_the_card_tells_of_the_run_and_names_no_folder_of_the_machine(exported: Path, drawn: Path) -> None:
    text = (exported / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["pipeline_tag"] == "image-classification"
    assert NETWORK in body
    assert "kaggle: 120 labeled patches" in body
    assert "patches at random, stratified by label, seed 42; 23 patches held out" in body
    assert "`evaluate` has not scored this checkpoint" in body
    assert "23 validation patches of kaggle" in body
    assert body.count("| `model.onnx` |") == 2
    here = [str(path).encode() for path in (drawn.parent, Path(__file__).parents[2], Path(torch.__file__).parents[1])]
    for file in exported.iterdir():
        contents = [file.read_bytes()]
        if file.suffix in (".pt", ".npz"):
            with zipfile.ZipFile(file) as archive:
                contents = [archive.read(name) for name in archive.namelist()]
        assert not [path for path in here for content in contents if path in content], file.name


def test_a_traced_network_runs_on_any_device(small: Path, tmp_path: Path) -> None:
    for stain in ("macenko", "reinhard"):
        path = write_checkpoint(tmp_path / f"{stain}.ckpt", small, backbone=NETWORK, stain=stain, tta="d4")
        network = ExportNetwork([load_pretrained(path)])
        write_torchscript(tmp_path / "model.pt", network)
        module: Any = read_torchscript(tmp_path / "model.pt")
        # What is made on a device that the trace has noted cannot meet tensors of another one.
        assert 'value="cpu"' not in str(module.inlined_graph)


KINDS: dict[str, dict[str, Any]] = {
    "macenko": {"backbone": NETWORK, "stain": "macenko", "crop": 64, "size": 96},
    "cropped": {"backbone": NETWORK, "normalize": "half", "crop": 62},
    "a transformer, scaled": {"backbone": "timm/test_vit", "size": 112},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_gives_the_logits_of_the_checkpoint(kind: str, small: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt", small, **KINDS[kind])
    result = export_network([str(path)], tmp_path / "export", tta="d4", sample=8)
    files = [one.file for one in result.differences]
    of_timm = {"macenko": 0, "cropped": 1, "a transformer, scaled": 2}[kind]
    assert files[:3] == ["model.onnx", "torchscript_model.pt", "pcam_lightning.safetensors"]
    assert files[3:] == ["model.safetensors"] * of_timm
    assert all(one.is_within for one in result.differences)
    image = torch.from_numpy(drawn_patches())
    with torch.no_grad():
        views = load_pretrained(path, "d4").predict_logits(image).numpy()
        assert load_pretrained(result.folder / "pcam_lightning.safetensors").predict_logits(image).numpy() == (
            pytest.approx(views, abs=1e-6)
        )
        if of_timm == 0:
            return
        network = timm.create_model(f"local-dir:{result.folder}", pretrained=True).eval()
        data: Any = timm.data  # without types
        transform = data.create_transform(**data.resolve_model_data_config(network))
        both = network(torch.stack([transform(Image.fromarray(one)) for one in image.numpy()]))
        one_view = load_pretrained(path, "none").predict_logits(image).numpy()
        abs_ = 1e-4 if of_timm == 1 else 0.05
        assert (both[:, 1] - both[:, 0]).numpy() == pytest.approx(one_view, abs=abs_)


def test_several_networks_are_one_mean_and_a_temperature_is_inside(small: Path, tmp_path: Path) -> None:
    paths = [
        write_checkpoint(tmp_path / "a.ckpt", small, backbone=NETWORK),
        write_checkpoint(tmp_path / "b.ckpt", small, backbone=NETWORK, tta="d4", normalize="none"),
    ]
    result = export_network([*paths], tmp_path / "both", sample=8)
    assert {path.name for path in result.folder.iterdir()} >= {"pcam_lightning_1.safetensors", "model.onnx"}
    image = drawn_patches()
    with torch.no_grad():
        logits = [load_pretrained(path).predict_logits(torch.from_numpy(image)).numpy() for path in paths]
    assert OnnxNetwork(result.folder / "model.onnx").logits(image) == pytest.approx(np.mean(logits, axis=0), abs=1e-5)
    shutil.copytree(small, tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--bootstrap_samples=100"]) == 0
    file = tmp_path / "run" / "report.json"
    report = json.loads(file.read_text())
    file.write_text(json.dumps(report | {"temperature": 2.0}))
    paths[0] = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with torch.no_grad():
        logits[0] = load_pretrained(paths[0]).predict_logits(torch.from_numpy(image)).numpy()
    result = export_network([paths[0]], tmp_path / "calibrated", calibrate=True, sample=8)
    assert OnnxNetwork(result.folder / "model.onnx").logits(image) == pytest.approx(logits[0] / 2, abs=1e-5)
    with torch.no_grad():
        own = load_pretrained(result.folder / "pcam_lightning.safetensors").predict_logits(torch.from_numpy(image))
    assert own.numpy() == pytest.approx(logits[0] / 2, abs=1e-5)
    card = (result.folder / "README.md").read_text()
    assert f"| AUROC | {report['auroc']['value']:.4f} (" in card
    assert f"- {report['leak']}" in card
    assert "In all files, the last layer is divided by a temperature of 2.000" in card
    with pytest.raises(UserError, match="`output` is required"):
        export_network([*paths])
    with pytest.raises(UserError, match="named twice"):
        export_network([paths[0], paths[0]], tmp_path / "twice")


def test_predictions_of_the_file_are_those_of_predict(exported: Path, small: Path, drawn: Path) -> None:
    assert main(["predict-onnx", str(exported), "--root", str(drawn), "--output", "onnx"]) == 0
    args = ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    assert main(["predict", "--ckpt_path", str(small / "checkpoints/best.ckpt"), "--output", "torch", *args]) == 0
    files = [pd.read_csv(f"{folder}/submission.csv") for folder in ("onnx", "torch")]
    assert files[0]["id"].tolist() == files[1]["id"].tolist()
    assert files[0]["label"].to_numpy() == pytest.approx(files[1]["label"].to_numpy(), abs=1e-5)


def test_what_rounds_by_design_is_left_out_beyond_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity, "ROUNDED", parity.ROUNDED._replace(value=0.0))
    network = PCamClassifier(NETWORK, "none", size=64).eval()
    write_config(tmp_path / "config.json", "", network, find_timm_network([network]))
    write_timm_weights(tmp_path / "model.safetensors", network)
    comparison = Comparison([network], 1.0, synthetic_patches(4).image, np.arange(4) % 2)
    assert check_files(tmp_path, comparison) == []
    assert not (tmp_path / "model.safetensors").exists()
    assert "the limit is 0.1 on average; this file is not written" in capsys.readouterr().err


def test_predictions_by_the_file_of_a_bundled_network_carry_its_caution(
    exported: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(exported / "model.onnx", tmp_path)
    shutil.copy(WEIGHTS / "pcam-small.safetensors", tmp_path / "pcam_lightning.safetensors")
    predict_onnx(tmp_path, drawn)
    assert "trained on JPEG copies" in capsys.readouterr().err


class Untraceable(nn.Module):
    """A network that looks at its values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean = image.mean(dim=(2, 3))
        return torch.as_tensor(self.fc(mean if float(mean.sum()) > 0 else -mean))


def test_what_cannot_be_exported_leaves_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BACKBONES, "untraceable", Backbone(Untraceable, "fc"))
    paths = {"untraceable": write_checkpoint(tmp_path / "u.ckpt", small, backbone="untraceable")}
    checkpoint = read_checkpoint(small / "checkpoints" / "best.ckpt")
    for name, message in (("nan", "some weights are NaN"), ("other", "install the version that wrote it")):
        paths[message] = tmp_path / f"{name}.ckpt"
    torch.save({**checkpoint, "pcam": {**checkpoint["pcam"], "format": 99}}, paths["install the version that wrote it"])
    state = {
        name: value * (float("nan") if name.endswith("classifier.weight") else 1)
        for name, value in checkpoint["state_dict"].items()
    }
    torch.save({**checkpoint, "state_dict": state}, paths["some weights are NaN"])
    messages = {"untraceable": "model.onnx: the network cannot be written as ONNX"}
    for message, path in paths.items():
        assert main(["export", str(path), "--output", str(tmp_path / "export")]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert messages.get(message, message) in error
        assert not (tmp_path / "export").exists()
        assert not list(tmp_path.glob(".export*"))
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine").touch()
    assert main(["export", str(small), "--output", str(tmp_path / "export")]) == 2
    assert "export exists and is not empty" in capsys.readouterr().err
    assert main(["export", str(small), "--tta=d8"]) == 2
    shutil.copytree(small, tmp_path / "diverged")
    (tmp_path / "diverged" / "diverged.csv").write_text("id\n")
    assert main(["export", str(tmp_path / "diverged")]) == 2
    assert "the loss of this run was NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "diverged" / "export").exists()


@pytest.mark.process
def test_a_full_disk_leaves_nothing(small: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pcam_lightning.cli.main import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000,) * 2)\n"
        "run()\n"
    )
    done = run_code(code, "export", small, f"--output={tmp_path / 'full'}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'full'} cannot be written: ")
    assert not list(tmp_path.glob("*full*"))
