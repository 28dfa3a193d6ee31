"""Export networks of several kinds, and run the files where they are meant to run.

    python benchmarks/export.py networks DIR WORK
    python benchmarks/export.py environments WORK

`networks`: trains each kind of network for a few steps on DIR, a data folder, exports it and prints how far the files'
logits are from those of the checkpoint. `environments`: makes virtual environments with ONNX Runtime and numpy alone,
with torch 2.5.1 and timm, and with wsinfer-zoo, and runs there what `networks` has exported into WORK: test vectors
against what must come out, and `wsinfer-zoo validate-config`. Needs the network, 6 GB of disk and some 15 minutes.
"""

import argparse
import shutil
import subprocess
import venv
from pathlib import Path

import measure

from pcam_lightning import Config, fit
from pcam_lightning.export.export import export

STEPS = 20
# By name: backbone and other options of the model, and those of the export.
KINDS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "resnet18": ({"backbone": "resnet18"}, {}),
    "resnet18, macenko, crop 64": ({"backbone": "resnet18", "stain": "macenko", "crop": 64}, {}),
    "resnet18, reinhard, 64 to 96": ({"backbone": "resnet18", "stain": "reinhard", "crop": 64, "size": 96}, {}),
    "resnet18, 96 to 64, own": ({"backbone": "resnet18", "size": 64, "normalize": "own"}, {}),
    "resnet18, stages": ({"backbone": "resnet18", "features": "stages"}, {}),
    "p4m_resnet16": ({"backbone": "p4m_resnet16"}, {}),
    "efficientnet_lite0, 128, d4": (
        {"backbone": "efficientnet_lite0", "weights": "imagenet", "normalize": "half", "size": 128},
        {"tta": "d4"},
    ),
    "ViT-S/16": ({"backbone": "timm/vit_small_patch16_224"}, {}),
}
ENSEMBLE = ("resnet18", "p4m_resnet16", "efficientnet_lite0, 128, d4")
# Run in an environment of its own, on the folder of an export: prints the largest difference of logits.
WITH_ONNX = """
import sys, numpy as np, onnxruntime
v = np.load(sys.argv[1] + "/test_vectors.npz")
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
prob, logit = session.run(["prob", "logit"], {"image": v["image"]})
one = session.run(["logit"], {"image": v["image"][:1]})[0]
print(f"{max(abs(logit - v['logit']).max(), abs(one - v['logit'][:1]).max()):.1e}, {onnxruntime.__version__}")
"""
WITH_TORCH = """
import sys, numpy as np, torch
v = np.load(sys.argv[1] + "/test_vectors.npz")
module = torch.jit.load(sys.argv[1] + "/torchscript_model.pt", map_location="cpu")
assert next(module.parameters()) is not None and not module.training
image = torch.from_numpy(v["image"]).permute(0, 3, 1, 2).float() / 255
both = module(image).numpy()
prob = torch.softmax(torch.from_numpy(both), 1)[:, 1].numpy()
assert abs(prob - v["prob"]).max() < 1e-3
print(f"{abs(both[:, 1] - both[:, 0] - v['logit']).max():.1e}, {torch.__version__}")
"""
WITH_TIMM = """
import json, sys, numpy as np, timm, torch
v = np.load(sys.argv[1] + "/test_vectors.npz")
network = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
config = timm.data.resolve_model_data_config(network)
mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
image = (torch.from_numpy(v["image"]).permute(0, 3, 1, 2).float() / 255 - mean) / std
assert config["input_size"][1:] == (96, 96), config
with torch.no_grad():
    both = network(image).numpy()
print(f"{abs(both[:, 1] - both[:, 0] - v['logit']).max():.1e}, {timm.__version__}")
"""


def networks(root: Path, work: Path) -> None:
    """Train and export each kind, and an ensemble of three with a temperature of its own."""
    rows = []
    checkpoints = {}
    for number, (name, (model, options)) in enumerate(KINDS.items()):
        folder = work / f"export_{number}"
        shutil.rmtree(folder, ignore_errors=True)
        config = Config.load(
            data={"root": str(root), "batch_size": 64},
            model={"weights": "none", "freeze_epochs": 0, "lr": 3e-4, **model},
            trainer={
                "max_epochs": 1, "limit_train_batches": STEPS, "limit_val_batches": 8, "logger": False,
                "default_root_dir": str(work), "precision": "32-true",
            },
        )  # fmt: skip
        checkpoint = fit(config).checkpoint
        assert checkpoint is not None
        checkpoints[name] = checkpoint
        result = export([checkpoint], folder, sample=500, **options)  # type: ignore[arg-type]
        rows += [
            [name, one.file, f"{one.largest:.1e}", f"{one.mean:.1e}", f"{one.auroc:.4f}", f"{one.checkpoint_auroc:.4f}"]
            for one in result.differences
        ]
    folder = work / "export_ensemble"
    shutil.rmtree(folder, ignore_errors=True)
    result = export([checkpoints[name] for name in ENSEMBLE], folder, sample=500)
    rows += [
        [
            "ensemble of three",
            one.file,
            f"{one.largest:.1e}",
            f"{one.mean:.1e}",
            f"{one.auroc:.4f}",
            f"{one.checkpoint_auroc:.4f}",
        ]
        for one in result.differences
    ]
    print(measure.table(["network", "file", "largest difference", "mean", "AUROC", "of the checkpoint"], rows))
    print(measure.machine())


def environments(work: Path) -> None:
    """Run all exports in environments of their own."""
    exports = sorted(work.glob("export_*"))
    for name, packages, script in (
        ("onnxruntime", ["onnxruntime", "numpy"], WITH_ONNX),
        ("torch", ["torch==2.5.1", "numpy", "timm", "safetensors"], WITH_TORCH),
        ("timm", [], WITH_TIMM),
    ):
        python = make_environment(work / ("torch" if name == "timm" else name), packages)
        for folder in exports:
            if name == "timm" and not (folder / "model.safetensors").exists():
                continue
            done = subprocess.run([python, "-c", script, str(folder)], capture_output=True, text=True, check=False)
            lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
            print(f"{name}, {folder.name}: {lines[-1]}", flush=True)
    python = make_environment(work / "wsinfer-zoo", ["wsinfer-zoo"])
    for folder in exports:
        command = [str(python.parent / "wsinfer-zoo"), "validate-config", str(folder / "config.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"wsinfer-zoo, {folder.name}: {done.returncode} {(done.stdout + done.stderr).strip()[-200:]}")


def make_environment(folder: Path, packages: list[str]) -> Path:
    """Make a virtual environment, where it is not there; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("networks", "environments"))
    parser.add_argument("paths", type=Path, nargs="+")
    args = parser.parse_args()
    args.paths[-1].mkdir(parents=True, exist_ok=True)
    if args.what == "networks":
        networks(*args.paths)
    else:
        environments(*args.paths)


if __name__ == "__main__":
    main()
