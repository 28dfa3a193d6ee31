"""Write one of the networks that come with the package, and its card.

    python benchmarks/bundle.py NAME DIR CHECKPOINT --command COMMAND

NAME is pcam or pcam-small; DIR is in Kaggle's layout, with an answers.csv (id,label) for its test/ part, which is of
other slides than train/; COMMAND is what made the checkpoint, on a random split of DIR. Writes
pcam_lightning/weights/NAME.safetensors and NAME_features.safetensors, which tells what is unlike the training patches
(alone with --features, where CHECKPOINT may be NAME), scores it on the validation part and, for the card alone, on
test/, with one view and with eight, and writes NAME.md.
"""

import argparse
from pathlib import Path

import measure

from pcam_lightning import PCamDataModule, __version__
from pcam_lightning.data.splits import split_digest
from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.evaluation.report_metrics import score_with_intervals
from pcam_lightning.training.checkpoint import load_pretrained, read_checkpoint
from pcam_lightning.training.feature_distance import features_file, measure_feature_distance
from pcam_lightning.training.options import Config
from pcam_lightning.training.predict import test, validate
from pcam_lightning.training.predictions import read_predictions_csv
from pcam_lightning.utils.atomic_io import atomic_write
from pcam_lightning.utils.bundled import BUNDLED, WEIGHTS
from pcam_lightning.utils.weights_file import write_weights

ORIGIN = "JPEG copies of patches of PCam's training slides, which are those of Kaggle's train/"
CARD = """# {name}

The probability that the center 32 x 32 pixels of a 96 x 96 patch contain tumor; the patch is of a lymph node section
stained with hematoxylin and eosin, at about 1 um per pixel. The network comes with pcam_lightning: `predict --ckpt_path
{name} --data.root DIR`, or `load_pretrained("{name}")` in Python.

| | |
|---|---|
| network | {backbone}, {parameters:,} parameters, {megabytes:.2f} MB in half precision; {size} x {size} pixels |
| started from | ImageNet weights of EfficientNet-Lite0 (Apache-2.0) |
| trained on | {train:,} of {patches:,} JPEG copies (quality 75) of PCam's training patches (CC0) |
| split | random, stratified by label, seed {seed}; the validation part chose the epoch |
| trained by | `{command}` |
| written by | `python benchmarks/bundle.py {name} DIR CHECKPOINT`, pcam_lightning {version} |

| AUROC, 95 % interval | one view | eight views (`--model.tta d4`) |
|---|---|---|
| validation part, {val} patches of the same slides | {val_none} | {val_d4} |
| {unseen} patches of other slides, of PCam's validation part | {unseen_none} | {unseen_d4} |

Intervals are of a bootstrap over patches, for want of slides, and too narrow. The patches went through JPEG: these are
not PCam's scores. Patches of other laboratories, scanners and organs have not been tried.

For research and teaching. It is no medical device and must not be used for diagnosis. In training {tumor:.0%} of the
patches were tumor, so that probabilities are too high where tumor is rarer, as in whole slides. Scores on Kaggle's
train/ and on PCam's training part are optimistic: patches of these slides trained it.
"""


def score(name: str, root: Path, seed: int) -> dict[str, str]:
    """Score the network on the validation part and on test/; return the cells of the card."""
    cells = {}
    for views in ("none", "d4"):
        for part, stage in (("val", validate), ("unseen", test)):
            data = {"root": str(root), "val_fraction": 0.2, "split_seed": seed}
            config = Config.of_checkpoint(read_checkpoint(Path(name)), data=data, model={"tta": views})
            rows = read_predictions_csv(stage(name, config).predictions)
            label, logit = rows["label"].to_numpy(), rows["logit"].to_numpy()
            auroc = score_with_intervals(label, logit, rows["id"].to_numpy(), 1000, 0)[0]["auroc"]
            cells[f"{part}_{views}"] = f"{auroc.value:.4f} ({auroc.low:.4f} to {auroc.high:.4f})"
            cells[part] = f"{len(rows):,}"
    return cells


def write_features(file: Path, data: PCamDataModule) -> None:
    """Measure the features of training patches, beside the weights."""
    distance = measure_feature_distance(file, read_checkpoint(file), data)
    distance.write(features_file(file))
    print(f"{features_file(file)}: {len(distance.mean)} features, threshold {distance.threshold:.3f}")


def main() -> None:
    """Write the weights, score them, write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BUNDLED)
    parser.add_argument("root", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--command", required=True, help="that made the checkpoint")
    parser.add_argument("--features", action="store_true", help="write NAME_features.safetensors alone")
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
            "data": {"root": "data", "val_fraction": 1.0},  # of other data nothing has trained it
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
    # Hashes of JPEG copies find nobody's patches, and would be a sixth of pcam-small.
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
