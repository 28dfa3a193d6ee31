"""Speed, memory and interruptions of `heatmap` on synthetic slides.

    python benchmarks/slides.py speed WORK [CKPT] [--side 20000]
    python benchmarks/slides.py memory WORK [--side 100000]
    python benchmarks/slides.py kill WORK [--kills 10]
    python benchmarks/slides.py judge WORK CKPT [--slides 10]
    python benchmarks/slides.py dense WORK CKPT
    python benchmarks/slides.py scales WORK CKPT
    python benchmarks/slides.py mine WORK [--slides 10] [--rounds 3]

`speed` measures patches/s of `heatmap`, of a loop that reads single patches, of `predict` on the same packed patches,
and of reading only. `memory` measures the peak memory of the whole command on a slide with a few pieces of tissue on
glass. `kill` sends SIGKILL at random moments, restarts the command each time, and compares all files with those of an
uninterrupted command. `judge` runs `evaluate-slides` on synthetic slides with a checkpoint of a demo run, and computes
the FROC again from polygons. `dense` compares logits of patches with those of one pass over a whole region, with
features averaged in windows of a patch; CKPT is a timm network at 96 pixels with `model.normalize` half. `scales`
compares the map of a slide at several um per pixel with that at 0.243. `mine` compares scores on synthetic slides
before and after a second demo run that also trains on false positives of other synthetic slides, with one seed per
round.

WORK is a folder for slides and results. Run nothing else on the machine.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import lightning as L
import measure
import numpy as np
import pandas as pd
import pyvips
import shapely
import torch
from PIL import Image
from torch.nn import functional

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.slides.patch_grid import CENTER, PATCH, PatchGrid, Region
from pcam_lightning.slides.predict_slide import predict_slide
from pcam_lightning.slides.region_predictor import LogitFile, Logits, SlidePredictor
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.slides.slide_regions import SlideDataModule, SlideRegions, cut_patches
from pcam_lightning.slides.tissue_mask import tissue_mask
from pcam_lightning.synthetic.kaggle_folder import sample_slide
from pcam_lightning.synthetic.whole_slide import MPP, synthesize_whole_slide, write_whole_slide
from pcam_lightning.training.loaded_run import load_pretrained
from pcam_lightning.utils.system import supported_precision

COMMAND = [sys.executable, "-m", "pcam_lightning"]
PIECE = 2048  # side of a synthetic piece of tissue, in pixels of 0.972 um


def draw_piece() -> np.ndarray:
    """Return a synthetic lymph node, uint8 (2048, 2048, 3)."""
    rng = np.random.default_rng(0)
    return synthesize_whole_slide(rng, sample_slide(rng, "tumor", 1.0), PIECE, tumor=True)[0]


def draw_large(path: Path, side: int, pieces: int | None) -> None:
    """Write a slide, with its side in pixels of 0.243 um, filled with tissue or with a few pieces on glass."""
    if path.exists():
        return
    part = path.with_name(f"part_{path.name}")
    coarse = side // 4
    piece = pyvips.Image.new_from_array(draw_piece())
    if pieces is None:
        image = piece.replicate(coarse // PIECE + 1, coarse // PIECE + 1).crop(0, 0, coarse, coarse)
    else:
        image = (pyvips.Image.black(coarse, coarse, bands=3) + 245).cast("uchar").copy(interpretation="srgb")
        for number in range(pieces):
            at = int((coarse - PIECE) * number / max(1, pieces - 1))
            image = image.insert(piece, at, at)
    per_mm = 4000 / MPP
    image.resize(4, kernel="nearest").tiffsave(
        str(part), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg", Q=85, bigtiff=True,
        xres=per_mm, yres=per_mm, resunit="cm",
    )  # fmt: skip
    part.rename(path)


def corners(grid: PatchGrid, squares: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield x and y of all patches."""
    x, y = grid.corners(*np.nonzero(squares))
    yield from zip(x.tolist(), y.tolist(), strict=True)


def speed(work: Path, side: int, ckpt_path: str, rounds: int, patches: int) -> None:
    """Compare patches/s."""
    path = work / f"tissue_{side}.tif"
    draw_large(path, side, None)
    slide = SlideReader(path)
    grid = PatchGrid(slide.width, slide.height, slide.mpp)
    squares = grid.squares_with(tissue_mask(slide, grid))
    every = int(squares.sum())
    squares &= np.cumsum(squares).reshape(squares.shape) <= patches
    count = int(squares.sum())
    network = load_pretrained(ckpt_path)
    packed = work / f"packed_{side}_{patches}"
    write_patches(packed, slide, grid, squares)
    rows: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, seconds in (
            ("heatmap", by_regions(path, grid, squares, network, work)),
            ("predict, packed patches", by_predict(packed, network)),
            ("one read per patch", by_patches(slide, grid, squares, network)),
            ("reading only, by regions", read_regions(path, grid, squares)),
            ("reading only, one read per patch", read_patches(slide, grid, squares)),
        ):
            rows.setdefault(name, []).append(count / seconds)
    print(measure.machine())
    print(f"{side} x {side} pixels, {every:,} squares of tissue, the first {count:,} of them; {ckpt_path}")
    spreads = [[name, f"{np.median(v):,.0f} ({min(v):,.0f}-{max(v):,.0f})"] for name, v in rows.items()]
    print(measure.table(["", "patches/s"], spreads))
    measure.save(Path("slides_speed.json"), {"machine": measure.machine(), "patches": count, **rows})


def build_trainer(*callbacks: L.Callback) -> L.Trainer:
    """Build a quiet trainer."""
    return L.Trainer(
        accelerator="auto", devices=1, precision=supported_precision("auto", "16-mixed"), callbacks=list(callbacks),
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


class Seconds(L.Callback):
    """Measures predictions, from the end of the setup to the last batch."""

    begun = seconds = 0.0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.begun = time.perf_counter()

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.begun


def by_regions(path: Path, grid: PatchGrid, squares: np.ndarray, network: torch.nn.Module, work: Path) -> float:
    """Predict as `heatmap` does; return seconds."""
    clock, logit = Seconds(), np.full(squares.shape, np.nan, dtype=np.float32)
    nothing = Logits(logit, logit, np.zeros(squares.shape, dtype=bool))
    keeper = LogitFile(work / "logits.npz", "", nothing, int(squares.sum()))
    data = SlideDataModule(SlideRegions(path, grid, list(grid.regions(squares)), squares), num_workers=2)
    build_trainer(clock, keeper).predict(SlidePredictor(network, grid.stride, 256), data, return_predictions=False)  # type: ignore[arg-type]
    return clock.seconds


def write_patches(folder: Path, slide: SlideReader, grid: PatchGrid, squares: np.ndarray) -> None:
    """Write the patches as a data folder for `predict`."""
    if (folder / "sample_submission.csv").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "test").mkdir(parents=True)
    ids = []
    for number, (x, y) in enumerate(corners(grid, squares)):
        pixels = slide.read(x, y, 96, 96, slide.level_for(grid.mpp))
        Image.fromarray(pixels).save(folder / "test" / f"{number:06d}.tif")
        ids.append(f"{number:06d}")
    pd.DataFrame({"id": ids, "label": 0}).to_csv(folder / "sample_submission.csv", index=False)


def by_predict(folder: Path, network: L.LightningModule) -> float:
    """Predict packed patches; return seconds."""
    clock, data = Seconds(), PCamDataModule(folder, batch_size=256)
    build_trainer(clock).predict(network, data, return_predictions=False)
    return clock.seconds


@torch.inference_mode()
def by_patches(slide: SlideReader, grid: PatchGrid, squares: np.ndarray, network: L.LightningModule) -> float:
    """Read single patches and predict them in batches; return seconds."""
    level, begun = slide.level_for(grid.mpp), time.perf_counter()
    places = list(corners(grid, squares))
    network.fold()  # type: ignore[operator]
    half = supported_precision("auto", "16-mixed") == "bf16-mixed"
    for first in range(0, len(places), 256):
        images = [slide.read(x, y, 96, 96, level) for x, y in places[first : first + 256]]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            network.predict_logits(torch.from_numpy(np.stack(images)), folded=True)  # type: ignore[operator]
    return time.perf_counter() - begun


def read_regions(path: Path, grid: PatchGrid, squares: np.ndarray) -> float:
    """Read regions and crop their patches; return seconds."""
    data = SlideRegions(path, grid, list(grid.regions(squares)), squares)
    begun = time.perf_counter()
    for number in range(len(data)):
        batch = data[number]
        cut_patches(batch["image"], batch["row"], batch["column"], grid.stride).contiguous()
    return time.perf_counter() - begun


def read_patches(slide: SlideReader, grid: PatchGrid, squares: np.ndarray) -> float:
    """Read single patches; return seconds."""
    level, begun = slide.level_for(grid.mpp), time.perf_counter()
    for x, y in corners(grid, squares):
        slide.read(x, y, 96, 96, level)
    return time.perf_counter() - begun


def memory(work: Path, side: int) -> None:
    """Measure the peak memory of the command on a large, sparse slide."""
    path = work / f"sparse_{side}.tif"
    draw_large(path, side, 3)
    shutil.rmtree(work / "memory", ignore_errors=True)
    flags = ["--ckpt_path=pcam-small", "--stride=96", f"--output={work / 'memory'}"]
    watched = measure.watch([*COMMAND, "heatmap", str(path), *flags])
    print(measure.machine())
    page = work / "memory" / path.stem / "heatmap.html"
    tiles = sum(file.stat().st_size for file in page.parent.glob("heatmap_tiles/*"))
    print(
        f"{side} x {side} pixels, {path.stat().st_size / 1e9:.2f} GB: peak {watched.peak_anonymous / 1e9:.2f} GB, with "
        f"mapped files {watched.peak_pss / 1e9:.2f} GB, {watched.seconds:.0f} s; "
        f"page {page.stat().st_size / 1e6:.1f} MB, its tiles {tiles / 1e6:.0f} MB"
    )


def kill(work: Path, kills: int, seed: int) -> None:
    """Kill the command at random moments and compare its final files."""
    path = work / "killed.tif"
    rng = np.random.default_rng(1)
    write_whole_slide(path, *synthesize_whole_slide(rng, sample_slide(rng, "tumor", 1.0), 1024, tumor=True))

    # Write after every region, so that the command can resume.
    often = "from pcam_lightning.slides import region_predictor as p; p._EVERY = 0; "
    often += "from pcam_lightning.cli.main import run; run()"

    def command(output: str) -> list[str]:
        return [
            sys.executable,
            "-c",
            often,
            "heatmap",
            str(path),
            "--ckpt_path=pcam-small",
            f"--output={work / output}",
        ]

    for name in ("alone", "killed"):
        shutil.rmtree(work / name, ignore_errors=True)
    alone = measure.watch(command("alone"))
    moments, restarts = random.Random(seed), 0
    for _ in range(kills):
        with subprocess.Popen(command("killed"), stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(moments.uniform(0, alone.seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                restarts += 1
        if restarts < kills and (work / "killed" / path.stem / "slide.json").exists():
            shutil.rmtree(work / "killed")
    measure.watch(command("killed"))
    differ = [
        file.name
        for file in sorted((work / "alone" / path.stem).iterdir())
        if file.suffix in (".csv", ".geojson", ".tif", ".png")
        and file.read_bytes() != (work / "killed" / path.stem / file.name).read_bytes()
    ]
    left = sorted({file.name for file in (work / "killed" / path.stem).iterdir()})
    print(f"{restarts} kills; files that differ: {differ or 'none'}; in the folder: {', '.join(left)}")


def judge(work: Path, ckpt_path: str, slides: int) -> None:
    """Score synthetic slides."""
    for name in ("synthetic", "scored"):
        shutil.rmtree(work / name, ignore_errors=True)
    synthetic, scored = work / "synthetic", work / "scored"
    measure.watch([*COMMAND, "synthesize", str(synthetic), "--slides", str(slides), "--whole", "--seed", "1"])
    measure.watch([*COMMAND, "heatmap", str(synthetic), "--ckpt_path", ckpt_path, "--output", str(scored)])
    arguments = ["--reference", str(synthetic / "reference.csv"), "--annotations", str(synthetic)]
    print(measure.watch([*COMMAND, "evaluate-slides", str(scored), *arguments]).output)
    print((scored / "slide_scores.csv").read_text())
    print(f"FROC counted lesion by lesion, from polygons: {count_froc(synthetic, scored):.4f}")


def count_froc(synthetic: Path, scored: Path) -> float:
    """Compute the FROC from annotations and detections with polygons instead of masks and a loop over thresholds."""
    lesions, hits, false = 0, [], []  # best confidence of each detected lesion, and confidences of false positives
    names = pd.read_csv(synthetic / "reference.csv")["slide"]
    for name in names:
        table = pd.read_csv(scored / name / "lesions.csv")
        points = [shapely.Point(x, y) for x, y in zip(table["x"], table["y"], strict=True)]
        outside = np.full(len(points), fill_value=True)
        for part in grown_outlines(synthetic / f"{name}.xml"):
            counts = long_enough(part)
            lesions += counts
            inside = np.array([part.contains(point) for point in points], dtype=np.bool_)
            outside &= ~inside
            if counts and inside.any():
                hits.append(table["confidence"][inside].max())
        false += table["confidence"][outside].tolist()
    score = 0.0
    for wanted in (1 / 4, 1 / 2, 1, 2, 4, 8):
        allowed = sorted(false, reverse=True)[: int(wanted * len(names)) + 1]
        least = allowed[-1] if len(allowed) > wanted * len(names) else -1.0
        score += sum(hit > least for hit in hits) / lesions / 6
    return score


def grown_outlines(path: Path) -> list[shapely.Polygon]:
    """Return the lesions of a slide, dilated by half of 75 um and without holes, in pixels of 0.243 um."""
    if not path.is_file():
        return []
    rings = [
        [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in annotation.iter("Coordinate")]
        for annotation in ElementTree.parse(path).getroot().iter("Annotation")
    ]
    union = shapely.union_all([shapely.Polygon(ring).buffer(75 / 2 / 0.243) for ring in rings])
    return [shapely.Polygon(part.exterior) for part in shapely.get_parts(union)]


def long_enough(lesion: shapely.Polygon) -> bool:
    """Return whether the major axis of a lesion is at least 275 um."""
    left, top, right, bottom = lesion.bounds
    x, y = np.meshgrid(np.arange(left, right, 16), np.arange(top, bottom, 16))
    inside = shapely.contains_xy(lesion, x, y)
    return bool(4 * np.sqrt(np.linalg.eigvalsh(np.cov(x[inside], y[inside]))[-1]) * 0.243 >= 275)


@torch.inference_mode()
def dense(work: Path, ckpt_path: str) -> None:
    """Compare single patches of a region with one pass over the region."""
    path = work / "dense.tif"
    rng = np.random.default_rng(1)
    write_whole_slide(path, *synthesize_whole_slide(rng, sample_slide(rng, "tumor", 1.0), 1024, tumor=True))
    slide, network = SlideReader(path), load_pretrained(ckpt_path)
    if network.hparams["normalize"] != "half" or network.preprocess.side != 96:
        raise SystemExit(f"{ckpt_path}: should use 96 pixels and `model.normalize` half.")
    region = Region(8, 8, 16, 16)
    image = torch.from_numpy(PatchGrid(slide.width, slide.height, slide.mpp).read(slide, region).copy())
    row, column = torch.arange(256) // 16, torch.arange(256) % 16
    begun = time.perf_counter()
    single = network.predict_logits(cut_patches(image, row, column, CENTER))
    middle = time.perf_counter()
    net: Any = network.net
    features = net.forward_features((image[None].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
    step = len(image) // features.shape[-1]  # pixels per feature
    windows = functional.avg_pool2d(features, PATCH // step, CENTER // step)[0]  # (C, 16, 16)
    whole = net.get_classifier()(windows.flatten(1).T).squeeze(1)
    ended = time.perf_counter()
    difference = (single - whole).abs()
    print(
        f"one pass is {(middle - begun) / (ended - middle):.1f} times as fast; logits differ by "
        f"{difference.mean():.3f}, at most {difference.max():.3f}"
    )


def scales(work: Path, ckpt_path: str) -> None:
    """Compare the maps of one slide at several scales."""
    rng = np.random.default_rng(5)
    image = Image.fromarray(synthesize_whole_slide(rng, sample_slide(rng, "tumor", 1.0), 1024, tumor=True)[0])
    maps = {}
    for mpp in (0.243, 0.226, 0.25, 0.499, 1.0):
        side = round(1024 * MPP / mpp)
        path = work / f"scale_{mpp}.png"
        image.resize((side, side), Image.Resampling.BICUBIC).save(path)
        found = predict_slide(path, ckpt_path, work / f"scale_{mpp}", mpp=mpp, precision="32-true", num_workers=0)
        maps[mpp] = found.heat_map.prob[:32, :32]
        both = ~np.isnan(maps[mpp]) & ~np.isnan(maps[0.243])
        difference = np.abs(maps[mpp] - maps[0.243])[both]
        correlation = np.corrcoef(maps[mpp][both], maps[0.243][both])[0, 1]
        print(
            f"{mpp} um: {both.sum()} squares, mean difference {difference.mean():.3f}, 95 % below "
            f"{np.quantile(difference, 0.95):.3f}, correlation {correlation:.3f}, score {found.heat_map.score:.3f}"
        )


def mine(work: Path, slides: int, seeds: int) -> None:
    """Score synthetic slides with networks trained with and without mined negatives."""
    work = work.resolve()
    patches, train, test = work / "patches", work / "train_slides", work / "test_slides"
    for folder, options in (
        (patches, []),
        (train, ["--whole", f"--slides={slides}", "--seed=2"]),
        (test, ["--whole", f"--slides={slides}", "--seed=1"]),
    ):
        if not folder.exists():
            measure.watch([*COMMAND, "synthesize", str(folder), *options])
    annotated = [f"--reference={train / 'reference.csv'}", f"--annotations={train}"]
    rows: list[list[str]] = []
    for seed in range(42, 42 + seeds):
        folder = work / f"seed_{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        checkpoint = fit_demo(folder, patches, seed)
        rows.append([str(seed), "no", *score_slides(folder / "before", checkpoint, test)])
        measure.watch([*COMMAND, "heatmap", str(train), f"--ckpt_path={checkpoint}", f"--output={folder / 'train'}"])
        mined = folder / "mined"
        measure.watch([*COMMAND, "mine-negatives", str(folder / "train"), f"--output={mined}", *annotated])
        checkpoint = fit_demo(folder, patches, seed, f"--data.extra_train={mined}")
        rows.append(
            [
                str(seed),
                str(len(pd.read_csv(mined / "train_labels.csv"))),
                *score_slides(folder / "after", checkpoint, test),
            ]
        )
        print(measure.table(["seed", "mined patches", "AUROC", "FROC", "false positives per slide"], rows), flush=True)
    print(measure.machine())


def fit_demo(folder: Path, patches: Path, seed: int, *options: str) -> Path:
    """Train fast.yaml for 6 epochs; return its best checkpoint."""
    configs = Path(__file__).parent.parent / "configs"
    command = [*COMMAND, "fit", "-c", str(configs / "base.yaml"), "-c", str(configs / "fast.yaml"), *options]
    command += [f"--data.root={patches}", "--trainer.max_epochs=6", f"--seed_everything={seed}"]
    before = set(folder.glob("lightning_logs/fast/*"))
    measure.watch([*command, f"--trainer.default_root_dir={folder}"])
    (run,) = set(folder.glob("lightning_logs/fast/*")) - before
    return run / "checkpoints" / "best.ckpt"


def score_slides(output: Path, checkpoint: Path, slides: Path) -> list[str]:
    """Predict and score slides; return AUROC, FROC and false positives per slide at 0.5."""
    measure.watch([*COMMAND, "heatmap", str(slides), f"--ckpt_path={checkpoint}", f"--output={output}"])
    reference = [f"--reference={slides / 'reference.csv'}", f"--annotations={slides}"]
    measure.watch([*COMMAND, "evaluate-slides", str(output), *reference])
    scores = json.loads((output / "slide_scores.json").read_text())
    false = pd.read_csv(output / "slide_scores.csv")["false"].mean()
    return [f"{scores['auroc']['value']:.3f}", f"{scores['froc']['value']:.3f}", f"{false:.1f}"]


def main() -> None:
    """Run the chosen benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "kill", "judge", "dense", "scales", "mine"))
    parser.add_argument("work", type=Path)
    parser.add_argument("ckpt_path", nargs="?", default="pcam-small")
    parser.add_argument("--side", type=int, help="side of the slide in pixels of 0.243 um")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patches", type=int, default=8192)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--slides", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "speed":
        speed(args.work, args.side or 20_000, args.ckpt_path, args.rounds, args.patches)
    elif args.what == "memory":
        memory(args.work, args.side or 100_000)
    elif args.what == "kill":
        kill(args.work, args.kills, args.seed)
    elif args.what == "judge":
        judge(args.work, args.ckpt_path, args.slides)
    elif args.what == "dense":
        dense(args.work, args.ckpt_path)
    elif args.what == "mine":
        mine(args.work, args.slides, args.rounds)
    else:
        scales(args.work, args.ckpt_path)


if __name__ == "__main__":
    main()
