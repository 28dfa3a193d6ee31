"""Compare validation scores with scores on an unseen hospital: leave-one-out over five synthetic hospitals.

    python benchmarks/hospitals.py WORK [--patches 3000] [--seeds 3] [--first_seed 42] [--epochs 3]
        [--parts splits methods] [--hospitals 0 1 2 3 4]

Generates patches of five hospitals with different stains, scanners and shares of tumor (`synthesize --layout wilds`) in
WORK. For each hospital and seed, fast.yaml is trained on the other four and tested on the hospital left out:

splits   The validation split is 20 % of the patches at random, whole slides, or one whole hospital of the four. A table
         shows both scores. `evaluate --abstain 0.05` then fits thresholds on the validation split. Tables show the
         coverage and the error rates of each class, on the validation split (cross-fitted) and on the hospital left
         out. They also show the out-of-distribution share of that hospital.
methods  One of the four hospitals is held out, with one change each: stain jitter, frozen features with a linear head,
         and BatchNorm adapted to the hospital left out (transductive). A table shows test scores, and differences
         paired by hospital and seed.

Results are saved in WORK/hospitals.csv and not computed again. Prints means and standard deviations over hospitals and
seeds.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import measure
import pandas as pd

from pcam_lightning.data.wilds import Wilds
from pcam_lightning.evaluation.evaluate import evaluate
from pcam_lightning.metrics.abstention import score_decisions
from pcam_lightning.synthetic.kaggle_folder import synthesize
from pcam_lightning.training.adapt_batchnorm import AdaptBatchNorm
from pcam_lightning.training.fit import fit
from pcam_lightning.training.loaded_run import LoadedRun, load_pretrained
from pcam_lightning.training.options import Config
from pcam_lightning.training.predict import predict, test
from pcam_lightning.training.probe import probe

ERROR = 0.05  # maximum error rate of each class
CONFIGS = Path(__file__).parents[1] / "configs"
SPLITS: dict[str, dict[str, Any]] = {
    "random": {},
    "slide": {"holdout": "slide"},
    "hospital": {"holdout": "center", "folds": 4},
}
AUGMENTATIONS: dict[str, dict[str, float]] = {
    "baseline": {},
    "stain jitter 0.1": {"stain": 0.1},
    "stain jitter 0.2": {"stain": 0.2},
}
BASE = next(iter(AUGMENTATIONS))
Row = dict[str, Any]


def generate(patches: int) -> list[str]:
    """Generate the hospitals once, write a CSV file for each one left out, and return their names."""
    root = Path("synthetic")
    if not (root / "metadata.csv").is_file():
        synthesize(root, train=patches, test=1, layout="wilds")
    table = Wilds(root).read_all()[["path", "label", "slide", "patient", "center"]]
    names = sorted(set(table["center"]))
    for name in names:
        split = table["center"].eq(name).map({True: "test", False: "train"})
        table.assign(split=split).to_csv(root / f"without_{name}.csv", index=False)
    return names


def config_of(hospital: str, seed: int, epochs: int, split: str, augment: Mapping[str, float]) -> Config:
    """Return the options of a run."""
    data = {"root": str(Path("synthetic", f"without_{hospital}.csv").resolve()), "split_seed": seed, **SPLITS[split]}
    if "folds" in data:
        data["fold"] = seed % data["folds"]
    plain: dict[str, Any] = {"max_epochs": epochs, "enable_progress_bar": False, "logger": False}
    return Config.load(
        CONFIGS / "base.yaml",
        CONFIGS / "fast.yaml",
        data=data,
        model={"augment": dict(augment)},
        trainer=plain,
        seed_everything=seed,
    )


def scores(checkpoint: Path, val: float) -> Row:
    """Return the scores on the validation split and on the hospital left out."""
    return {"val": val, "test": test(checkpoint).metrics["test/auroc"]}


@cache
def fitted(hospital: str, seed: int, epochs: int, split: str, augment: str) -> tuple[Path, Row]:
    """Train; return best.ckpt and its scores."""
    result = fit(config_of(hospital, seed, epochs, split, AUGMENTATIONS[augment]))
    assert result.run is not None
    assert result.best_score is not None
    return result.run.best, scores(result.run.best, float(result.best_score))


def split_row(hospital: str, seed: int, epochs: int, split: str) -> Row:
    """Score one kind of split, and abstention with it."""
    checkpoint, row = fitted(hospital, seed, epochs, split, BASE)
    own = evaluate(checkpoint.parents[1], bootstrap_samples=100, abstain=ERROR).report["abstention"]
    predicted = predict(checkpoint, abstain=True).set_index("id")
    label = pd.read_csv(checkpoint.parents[1] / "test_predictions.csv", dtype={"id": str}).set_index("id")["label"]
    codes = predicted.loc[label.index, "decision"].map({"normal": 0, "tumor": 1, "abstain": -1})
    found = score_decisions(label.to_numpy(), codes.to_numpy())
    validation = {f"val_{name}": own[name] for name in found._fields}
    return {**row, **validation, **found._asdict(), "ood": float(predicted["ood"].mean())}


def adapted_row(hospital: str, seed: int, epochs: int) -> Row:
    """Score the baseline with BatchNorm adapted to the hospital left out."""
    checkpoint, row = fitted(hospital, seed, epochs, "hospital", BASE)
    config = Config.of_run(LoadedRun.open(checkpoint))
    data = config.data_module()
    trainer = L.Trainer(logger=False, enable_progress_bar=False, callbacks=[AdaptBatchNorm()], devices=1)
    found = trainer.test(load_pretrained(checkpoint), data, verbose=False)
    return {**row, "test": float(found[0]["test/auroc"])}


def probe_row(hospital: str, seed: int, epochs: int) -> Row:
    """Score a linear head on frozen ImageNet features."""
    result = probe(config_of(hospital, seed, epochs, "hospital", {}))
    return scores(result.checkpoint, result.score)


def augmented_row(hospital: str, seed: int, epochs: int, augment: str) -> Row:
    """Score an augmentation."""
    return fitted(hospital, seed, epochs, "hospital", augment)[1]


def methods(hospital: str, seed: int, epochs: int) -> dict[str, Callable[[], Row]]:
    """Return the scoring function of each method by name."""
    found: dict[str, Callable[[], Row]] = {
        name: partial(augmented_row, hospital, seed, epochs, name) for name in AUGMENTATIONS
    }
    found["frozen features, linear head"] = partial(probe_row, hospital, seed, epochs)
    found["BatchNorm adapted (transductive)"] = partial(adapted_row, hospital, seed, epochs)
    return found


class Results:
    """Rows of hospitals.csv by their key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known: Any = pd.read_csv(path, dtype={"hospital": str}).to_dict("records") if path.is_file() else []
        self.rows: list[Row] = known

    def add(self, key: Row, score: Callable[[], Row]) -> None:
        """Compute and write a missing row."""
        if not any(all(row[name] == value for name, value in key.items()) for row in self.rows):
            self.rows.append({**key, **score()})
            pd.DataFrame(self.rows).to_csv(self.path, index=False)
            print(self.rows[-1], flush=True)

    def of(self, part: str) -> pd.DataFrame:
        """Return the rows of `splits` or `methods`."""
        rows = pd.DataFrame(self.rows)
        return rows[rows["part"] == part] if len(rows) else rows


def spread(values: "pd.Series[float]", sign: str = "", scale: float = 1, digits: int = 3) -> str:
    """Return mean (sd)."""
    return f"{scale * values.mean():{sign}.{digits}f} ({scale * values.std():.{digits}f})"


def print_splits(rows: pd.DataFrame) -> None:
    """Print validation and test scores of each kind of split."""
    groups = {name: rows[rows["name"] == name] for name in SPLITS}
    lines = []
    for name, each in groups.items():
        difference = each["val"] - each["test"]
        lines.append([name, spread(each["val"]), spread(each["test"]), spread(difference, "+")])
    print("\n" + measure.table(["held out for validation", "val/auroc", "hospital left out", "difference"], lines))
    columns = {"kept": "called", "wrong": "error rate of these"}
    columns |= {"normal_called_tumor": "normal called tumor", "tumor_called_normal": "tumor called normal"}
    for where, prefix, more in (
        ("validation split, cross-fitted", "val_", {}),
        ("hospital left out", "", {"ood": "out-of-distribution"}),
    ):
        print(f"\nThresholds for an error rate of at most {ERROR:.0%} per class; percentages of the {where}.\n")
        names = [f"{prefix}{column}" for column in columns | more]
        lines = [[name, *(spread(each[one], scale=100, digits=1) for one in names)] for name, each in groups.items()]
        print(measure.table(["held out", *columns.values(), *more.values()], lines))


def print_methods(rows: pd.DataFrame) -> None:
    """Print the scores of each method on the hospital left out."""
    scored = rows.pivot_table("test", ["hospital", "seed"], "name")
    val = rows.groupby("name")["val"]
    lines = []
    for name in dict.fromkeys(rows["name"]):
        delta = "" if name == BASE else spread(scored[name] - scored[BASE], "+")
        lines.append([name, spread(val.get_group(name)), spread(scored[name]), delta])
    header = ["method", "val/auroc, another hospital", "hospital left out", "difference, paired"]
    print("\n" + measure.table(header, lines))


def check_settings(settings: dict[str, int]) -> None:
    """Record the settings in the folder, or exit if it has results of other settings."""
    file = Path("settings.json")
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise SystemExit(f"{file.resolve()}: results of {file.read_text().strip()}; use another WORK folder.")
    file.write_text(json.dumps(settings) + "\n")


def main() -> None:
    """Generate data, train, test and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--patches", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=42)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=("splits", "methods"), default=["splits", "methods"])
    parser.add_argument("--hospitals", nargs="+", help="hospitals to leave out; all by default")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)
    check_settings({"patches": args.patches, "epochs": args.epochs})
    names = generate(args.patches)
    results = Results(Path("hospitals.csv"))
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for hospital in args.hospitals or names:
            key = {"hospital": hospital, "seed": seed}
            for split in SPLITS if "splits" in args.parts else ():
                row = partial(split_row, hospital, seed, args.epochs, split)
                results.add({"part": "splits", "name": split, **key}, row)
            for name, score in methods(hospital, seed, args.epochs).items() if "methods" in args.parts else ():
                results.add({"part": "methods", "name": name, **key}, score)
    print(f"\n{args.patches:,} patches of {len(names)} synthetic hospitals, {args.seeds} seeds, {measure.machine()}")
    if "splits" in args.parts:
        print_splits(results.of("splits"))
    if "methods" in args.parts:
        print_methods(results.of("methods"))


if __name__ == "__main__":
    main()
