"""Write a network included in the package, and its model card.

    python benchmarks/bundle.py NAME DIR CHECKPOINT --command COMMAND

NAME is pcam or pcam-small. DIR has Kaggle's layout, with an answers.csv (id,label) for test/, which contains other
slides than train/. COMMAND is the command that trained the checkpoint on a random split of DIR. Writes
pcam_lightning/weights/NAME.safetensors, and NAME_features.safetensors to detect out-of-distribution patches. With
--features, writes only the latter, and CHECKPOINT can be NAME. Scores the network on the validation split and, only for
the card, on test/, with one view and with eight, and writes NAME.md.
"""

import argparse
from pathlib import Path

import measure

from pcam_lightning import PCamDataModule, __version__
from pcam_lightning.data.splits import split_digest
from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.evaluation.report_metrics import score_with_intervals
from pcam_lightning.training.checkpoint import read_checkpoint
from pcam_lightning.training.feature_distance import features_file, measure_feature_distance
from pcam_lightning.training.loaded_run import LoadedRun, load_pretrained
from pcam_lightning.training.options import Config
from pcam_lightning.training.predict import test, validate
from pcam_lightning.training.predictions import read_predictions_csv
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.bundled import BUNDLED, WEIGHTS
from pcam_lightning.utils.weights_file import write_weights

ORIGIN = "JPEG copies of patches of PCam's training slides, which are those of Kaggle's train/"
CARD = """# {name}

Predicts the probability that the center 32 x 32 pixels of a 96 x 96 patch contain tumor. Patches show lymph node
sections stained with hematoxylin and eosin, at about 1 um per pixel. The network is included in pcam_lightning:
`predict --ckpt_path {name} --data.root DIR`, or `load_pretrained("{name}")` in Python.

| | |
|---|---|
| network | {backbone}, {parameters:,} parameters, {megabytes:.2f} MB in half precision; {size} x {size} pixels |
| initial weights | ImageNet weights of EfficientNet-Lite0 (Apache-2.0) |
| training data | {train:,} of {patches:,} JPEG copies (quality 75) of PCam's training patches (CC0) |
| split | random, stratified by label, seed {seed}; the epoch was selected on the validation split |
| training command | `{command}` |
| card command | `python benchmarks/bundle.py {name} DIR CHECKPOINT`, pcam_lightning {version} |

| AUROC, 95 % interval | one view | eight views (`--model.tta d4`) |
|---|---|---|
| validation split, {val} patches of the same slides | {val_none} | {val_d4} |
| {unseen} patches of other slides, from PCam's validation split | {unseen_none} | {unseen_d4} |

The intervals are too narrow: slides are unknown, so patches are resampled. The patches were stored as JPEG, so these
scores differ from scores on PCam. Patches of other laboratories, scanners and organs have not been tested.

For research and teaching. This is not a medical device and must not be used for diagnosis. {tumor:.0%} of the training
patches were tumor, so probabilities are too high where tumor is rarer, as in whole slides. Scores on Kaggle's train/
and on PCam's training split are optimistic, because patches of these slides were used for training.
"""


def score(name: str, root: Path, seed: int) -> dict[str, str]:
    """Score the network on the validation split and on test/; return the cells of the card."""
    cells = {}
    for views in ("none", "d4"):
        for part, stage in (("val", validate), ("unseen", test)):
            data = {"root": str(root), "val_fraction": 0.2, "split_seed": seed}
            config = Config.of_run(LoadedRun.open(name), data=data, model={"tta": views})
            rows = read_predictions_csv(stage(name, config).predictions)
            label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
            auroc = score_with_intervals(label, logit, rows["id"].to_numpy(), 1000, 0)[0]["auroc"]
            cells[f"{part}_{views}"] = f"{auroc.value:.4f} ({auroc.low:.4f} to {auroc.high:.4f})"
            cells[part] = f"{len(rows):,}"
    return cells


def write_features(file: Path, data: PCamDataModule) -> None:
    """Write the features of training patches beside the weights."""
    distance, path = measure_feature_distance(loaded := LoadedRun.open(file), data), features_file(loaded)
    distance.write(path)
    print(f"{path}: {len(distance.mean)} features, threshold {distance.threshold:.3f}")


def main() -> None:
    """Write the weights, the scores and the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BUNDLED)
    parser.add_argument("root", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--command", required=True, help="command that trained the checkpoint")
    parser.add_argument("--features", action="store_true", help="write only NAME_features.safetensors")
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.checkpoint)
    options = checkpoint["pcam"]["config"]
    seed = options["data"].get("split_seed", 42)
    data = PCamDataModule(args.root, split_seed=seed)
    data.setup("fit")
    file = WEIGHTS / f"{args.name}.safetensors"
    if args.features:
        write_features(file, data)
        return
    checkpoint["pcam"] = {
        "version": __version__,
        "format": checkpoint["pcam"]["format"],
        "config": {
            "seed_everything": options["seed_everything"],
            "data": {"root": "data", "val_fraction": 1.0},  # the network was trained on no other data
            "model": options["model"],
            "trainer": {"precision": "16-mixed"},
        },
        "data": {"root": "data"},
        "split": {
            "val": int(data.val_mask.sum()),
            "sha256": split_digest(data.table, data.val_mask),
            "kind": data.split_kind,
        },
    }
    # Hashes of JPEG copies match no other patches, and would take a sixth of pcam-small.
    checkpoint["trained"] = TrainingPatches(known=False, origins=(ORIGIN,)).record()
    checkpoint["positive_fraction"] = float(data.table["label"][~data.val_mask].mean())
    write_weights(file, checkpoint, half=True)
    write_features(file, data)
    network = load_pretrained(args.name).net
    text = CARD.format(
        name=args.name,
        backbone=options["model"]["backbone"],
        size=options["model"]["size"] or options["model"]["crop"],
        parameters=sum(one.numel() for one in network.parameters()),
        megabytes=file.stat().st_size / 1e6,
        train=int((~data.val_mask).sum()),
        patches=len(data.table),
        seed=seed,
        tumor=data.table["label"][~data.val_mask].mean(),
        command=args.command,
        version=__version__,
        **score(args.name, args.root, seed),
    )
    atomic_write(file.with_suffix(".md"), text)
    print(text)
    print(measure.machine())


if __name__ == "__main__":
    main()
