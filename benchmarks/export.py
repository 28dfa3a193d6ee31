"""Export several kinds of networks, and run the files in their target programs.

    python benchmarks/export.py networks DIR WORK
    python benchmarks/export.py environments WORK
    python benchmarks/export.py speed DIR FOLDER
    python benchmarks/export.py wsinfer WORK NETWORK SLIDE [SLIDE ...]

`networks` trains each kind of network for a few steps on the data folder DIR and exports it. It prints the differences
between the logits of the files and of the checkpoint. `environments` creates virtual environments with only ONNX
Runtime and numpy, with torch 2.5.1 and timm, and with wsinfer-zoo. It compares the exports in WORK with their test
vectors and runs `wsinfer-zoo validate-config`. It needs internet, 6 GB of disk and about 15 minutes. `speed` measures
patches/s of an export in ONNX Runtime and of its checkpoint in torch, on the test patches of DIR; run nothing else on
the machine. `wsinfer` runs WSInfer 0.6.1, in its own environment and offline, with an export of NETWORK (a checkpoint
or pcam) on slides and on a synthetic slide. It compares probabilities with those of `heatmap`, and with those of
model.onnx on the pixels that WSInfer reads. The environment needs the package index and 7 GB of disk; if it cannot be
created, this is printed and nothing is run.
"""

import argparse
import os
import shutil
import subprocess
import time
import venv
from functools import partial
from pathlib import Path

import measure
import numpy as np
import openslide
import pandas as pd
import torch
import torchvision
from PIL import Image
from scipy.special import expit

from pcam_lightning import Config, PCamDataModule, fit, load_pretrained
from pcam_lightning.export.export_network import export_network
from pcam_lightning.export.onnx_file import OnnxNetwork
from pcam_lightning.export.readers import Logits
from pcam_lightning.slides.predict_slide import predict_slide
from pcam_lightning.synthetic.kaggle_folder import sample_slide
from pcam_lightning.synthetic.whole_slide import synthesize_whole_slide, write_whole_slide

STEPS = 20
BATCH = 64  # batch size in `speed`
# Options of the model and of the export, by name.
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
# WSInfer 0.6.1 does not pin versions; later versions lack names that it imports.
WSINFER = [
    *("wsinfer==0.6.1", "zarr<3", "numcodecs<0.16", "tiffslide<3", "openslide-python", "openslide-bin"),
    *(f"{one.__name__}=={one.__version__.partition('+')[0]}" for one in (torch, torchvision)),
]
# Run in a separate environment on the folder of an export; prints the largest difference between logits.
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
if tuple(config["input_size"]) != (3, 96, 96) or config["crop_pct"] != 1:
    sys.exit("not compared: crop and scale are the caller's")
with torch.no_grad():
    both = network(image).numpy()
print(f"{abs(both[:, 1] - both[:, 0] - v['logit']).max():.1e}, {timm.__version__}")
"""


def networks(root: Path, work: Path) -> None:
    """Train and export each kind, and an ensemble of three with a temperature."""
    rows = []
    checkpoints = {}
    for number, (name, (model, options)) in enumerate(KINDS.items()):
        folder = work / f"export_{number}"
        shutil.rmtree(folder, ignore_errors=True)
        config = Config.load(
            data={"root": str(root), "batch_size": 64},
            model={"weights": "none", "freeze_epochs": 0, "lr": 3e-4, **model},
            trainer={
                "enable_progress_bar": False, "max_epochs": 1, "limit_train_batches": STEPS,
                "limit_val_batches": 8, "logger": False,
                "default_root_dir": str(work), "precision": "32-true",
            },
        )  # fmt: skip
        checkpoint = fit(config).checkpoint
        assert checkpoint is not None
        checkpoints[name] = checkpoint
        result = export_network([checkpoint], folder, sample=500, **options)  # type: ignore[arg-type]
        rows += [
            [name, one.file, f"{one.largest:.1e}", f"{one.mean:.1e}", f"{one.auroc:.4f}", f"{one.checkpoint_auroc:.4f}"]
            for one in result.differences
        ]
    folder = work / "export_ensemble"
    shutil.rmtree(folder, ignore_errors=True)
    result = export_network([checkpoints[name] for name in ENSEMBLE], folder, sample=500)
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
    """Run all exports in separate environments."""
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
            last = (done.stdout + done.stderr).strip().splitlines()[-1]
            print(f"{name}, {folder.name}: {last}", flush=True)
    python = make_environment(work / "wsinfer-zoo", ["wsinfer-zoo"])
    for folder in exports:
        command = [str(python.parent / "wsinfer-zoo"), "validate-config", str(folder / "config.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"wsinfer-zoo, {folder.name}: {done.returncode} {(done.stdout + done.stderr).strip()[-200:]}")


def speed(root: Path, folder: Path, rounds: int = 3) -> None:
    """Compare patches/s, taking turns."""
    data = PCamDataModule(root)
    data.setup("predict")
    image = data.test_store.images[:1024].copy()
    network = load_pretrained(folder / "pcam_lightning.safetensors")
    network.fold()

    def in_torch(patches: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logit: np.ndarray = network.predict_logits(torch.from_numpy(patches), folded=True).numpy()
        return logit

    ways: dict[str, Logits] = {
        "torch, float32": partial(in_torch, dtype=torch.float32),
        "torch, bfloat16": partial(in_torch, dtype=torch.bfloat16),
        "model.onnx": OnnxNetwork(folder / "model.onnx").logits,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, logits in ways.items():
            begun = time.perf_counter()
            for start in range(0, len(image), BATCH):
                logits(image[start : start + BATCH])
            if number:  # the first round warms up
                rates[name].append(len(image) / (time.perf_counter() - begun))
    rows = [[name, f"{np.median(each):,.0f} ({min(each):,.0f}-{max(each):,.0f})"] for name, each in rates.items()]
    print(measure.table([folder.name, "patches/s"], rows))
    print(measure.machine())


def wsinfer(work: Path, network: Path, *slides: Path) -> None:
    """Compare WSInfer with `heatmap`, slide by slide."""
    try:
        python = make_environment(work / "wsinfer", WSINFER)
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(work / "wsinfer", ignore_errors=True)
        print(f"skipped: WSInfer cannot be installed ({error}).")
        return
    export = work / "export_wsinfer"
    if not export.exists():
        export_network([network], export)
    synthetic = work / "synthetic.tif"
    if not synthetic.exists():
        rng = np.random.default_rng(0)
        write_whole_slide(synthetic, *synthesize_whole_slide(rng, sample_slide(rng, "tumor", 1.0), 1024, tumor=True))
    rows = []
    for slide in (*slides, synthetic):
        own = predict_slide(slide, network, work / "heatmaps" / slide.stem, accelerator="cpu", precision="32-true")
        square = own.heat_map.grid.square
        found = run_wsinfer(python, work / "wsinfer_results" / slide.stem, export, slide)
        found["row"], found["column"] = ((found[name] + found["width"] // 2) // square for name in ("miny", "minx"))
        prob = own.heat_map.prob[found["row"], found["column"]]
        both = np.isfinite(prob)
        prob, other = prob[both], found["prob_tumor"].to_numpy()[both]
        same = np.abs(logits_of(export, slide, found) - found["prob_tumor"]).max()
        difference = np.abs(prob - other)
        numbers = np.corrcoef(prob, other)[0, 1], difference.mean(), np.median(difference), difference.max()
        rows.append([slide.name, f"{both.sum():,}", *(f"{one:.3f}" for one in numbers), f"{same:.1e}"])
    header = ["slide", "squares", "correlation", "mean difference", "median", "largest", "model.onnx, same pixels"]
    print(measure.table(header, rows))
    print(measure.machine())


def run_wsinfer(python: Path, results: Path, export: Path, slide: Path) -> pd.DataFrame:
    """Run WSInfer on one slide and return its CSV file of patches."""
    shutil.rmtree(results, ignore_errors=True)
    (results / "slides").mkdir(parents=True)
    (results / "slides" / slide.name).symlink_to(slide.resolve())
    # WSInfer always requests its zoo list from the Hugging Face hub; offline, it uses an existing file.
    zoo = results / ".wsinfer-zoo" / "wsinfer-zoo-registry.json"
    zoo.parent.mkdir()
    zoo.write_text('{"models": {}}')
    command = [
        *(str(python), "-m", "wsinfer", "--backend=openslide", "run", f"--wsi-dir={results / 'slides'}"),
        *(f"--results-dir={results}", f"--config={export / 'config.json'}"),
        *(f"--model-path={export / 'torchscript_model.pt'}", "--patch-overlap-ratio=0.6667", "--num-workers=1"),
    ]
    environment = {"HOME": str(results), "HF_HUB_OFFLINE": "1", "WSINFER_FORCE_CPU": "1"}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    table = results / "model-outputs-csv" / f"{slide.stem}.csv"
    if not table.is_file():
        raise SystemExit(f"WSInfer wrote no {table}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return pd.read_csv(table)


def logits_of(export: Path, slide: Path, patches: pd.DataFrame) -> np.ndarray:
    """Return probabilities of model.onnx on the pixels that WSInfer reads: level 0, resized by Pillow."""
    session, prob = OnnxNetwork(export / "model.onnx"), []
    with openslide.OpenSlide(slide) as opened:
        for x, y, width, height in patches[["minx", "miny", "width", "height"]].to_numpy():
            region = opened.read_region((int(x), int(y)), 0, (int(width), int(height))).convert("RGB")
            image = np.asarray(region.resize((96, 96), Image.Resampling.BILINEAR))
            prob.append(expit(session.logits(image[None])[0]))
    return np.array(prob)


def make_environment(folder: Path, packages: list[str]) -> Path:
    """Create a virtual environment if needed; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def main() -> None:
    """Run the chosen benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("networks", "environments", "speed", "wsinfer"))
    parser.add_argument("paths", type=Path, nargs="+")
    args = parser.parse_args()
    if args.what == "networks":
        args.paths[-1].mkdir(parents=True, exist_ok=True)
        networks(*args.paths)
    elif args.what == "speed":
        speed(*args.paths)
    elif args.what == "wsinfer":
        args.paths[0].mkdir(parents=True, exist_ok=True)
        wsinfer(*args.paths)
    else:
        environments(*args.paths)


if __name__ == "__main__":
    main()
