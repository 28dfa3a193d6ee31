"""Which validation score could be believed at a hospital that has never been seen? Five drawn hospitals, leave one out.

    python benchmarks/hospitals.py WORK [--patches 3000] [--seeds 3] [--first_seed 42] [--epochs 3]
        [--parts splits methods] [--hospitals 0 1 2 3 4]

Draws patches of five hospitals whose stains, scanners and shares of tumor differ (`synthesize --layout wilds`) into
WORK. For each hospital and seed, fast.yaml is fitted to the other four, for so many epochs, and tested on the hospital
left out:

splits   with a fifth of the patches held out for validation at random, by whole slides, or one whole hospital of the
         four. A table tells both scores. `evaluate --abstain 0.05` then finds thresholds on the validation part:
         tables tell what share of the patches is called and how often each class is called the other one, on held-out
         parts of the validation part itself (cross-fitted) and on the hospital left out, and what share of that
         hospital is out of distribution.
methods  with one of the four hospitals held out, and one change each: stain jitter, frozen features with a linear head,
         and BatchNorm adapted to the hospital left out, which is transductive. A table tells test scores, and
         differences paired by hospital and seed.

Every result goes to WORK/hospitals.csv: one that is there is not computed again. Prints means and standard deviations,
over hospitals and seeds.
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

ERROR = 0.05  # that each class may be called the other one
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


def draw(patches: int) -> list[str]:
    """Draw the hospitals, once, and write a CSV for each that is left out; return their names."""
    root = Path("drawn")
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
    data = {"root": str(Path("drawn", f"without_{hospital}.csv").resolve()), "split_seed": seed, **SPLITS[split]}
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
    """Return the validation score, and that of the hospital left out."""
    return {"val": val, "test": test(checkpoint).metrics["test/auroc"]}


@cache
def fitted(hospital: str, seed: int, epochs: int, split: str, augment: str) -> tuple[Path, Row]:
    """Fit; return best.ckpt and its scores."""
    result = fit(config_of(hospital, seed, epochs, split, AUGMENTATIONS[augment]))
    assert result.run is not None
    assert result.best_score is not None
    return result.run.best, scores(result.run.best, float(result.best_score))


def split_row(hospital: str, seed: int, epochs: int, split: str) -> Row:
    """Score one kind of split, and abstention by it."""
    checkpoint, row = fitted(hospital, seed, epochs, split, BASE)
    own = evaluate(checkpoint.parents[1], bootstrap_samples=100, abstain=ERROR).report["abstention"]
    predicted = predict(checkpoint, abstain=True).set_index("id")
    label = pd.read_csv(checkpoint.parents[1] / "test_predictions.csv", dtype={"id": str}).set_index("id")["label"]
    codes = predicted.loc[label.index, "decision"].map({"normal": 0, "tumor": 1, "abstain": -1})
    found = score_decisions(label.to_numpy(), codes.to_numpy())
    validation = {f"val_{name}": own[name] for name in found._fields}
    return {**row, **validation, **found._asdict(), "ood": float(predicted["ood"].mean())}


def adapted_row(hospital: str, seed: int, epochs: int) -> Row:
    """Score BatchNorm adapted to the hospital left out, of the baseline."""
    checkpoint, row = fitted(hospital, seed, epochs, "hospital", BASE)
    config = Config.of_run(LoadedRun.open(checkpoint))
    data = config.data_module()
    trainer = L.Trainer(logger=False, enable_progress_bar=False, callbacks=[AdaptBatchNorm()], devices=1)
    found = trainer.test(load_pretrained(checkpoint), data, verbose=False)
    return {**row, "test": float(found[0]["test/auroc"])}


def probe_row(hospital: str, seed: int, epochs: int) -> Row:
    """Score a linear head on frozen features of ImageNet weights."""
    result = probe(config_of(hospital, seed, epochs, "hospital", {}))
    return scores(result.checkpoint, result.score)


def augmented_row(hospital: str, seed: int, epochs: int, augment: str) -> Row:
    """Score an augmentation."""
    return fitted(hospital, seed, epochs, "hospital", augment)[1]


def methods(hospital: str, seed: int, epochs: int) -> dict[str, Callable[[], Row]]:
    """Return what scores each method, by its name."""
    found: dict[str, Callable[[], Row]] = {
        name: partial(augmented_row, hospital, seed, epochs, name) for name in AUGMENTATIONS
    }
    found["frozen features, linear head"] = partial(probe_row, hospital, seed, epochs)
    found["BatchNorm adapted (transductive)"] = partial(adapted_row, hospital, seed, epochs)
    return found


class Results:
    """Rows of hospitals.csv, by what they are of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known: Any = pd.read_csv(path, dtype={"hospital": str}).to_dict("records") if path.is_file() else []
        self.rows: list[Row] = known

    def add(self, key: Row, score: Callable[[], Row]) -> None:
        """Compute a row that is not there yet, and write it."""
        if not any(all(row[name] == value for name, value in key.items()) for row in self.rows):
            self.rows.append({**key, **score()})
            pd.DataFrame(self.rows).to_csv(self.path, index=False)
            print(self.rows[-1], flush=True)

    def of(self, part: str) -> pd.DataFrame:
        """Return the rows of a part."""
        rows = pd.DataFrame(self.rows)
        return rows[rows["part"] == part] if len(rows) else rows


def spread(values: "pd.Series[float]", sign: str = "", scale: float = 1, digits: int = 3) -> str:
    """Return mean (sd)."""
    return f"{scale * values.mean():{sign}.{digits}f} ({scale * values.std():.{digits}f})"


def print_splits(rows: pd.DataFrame) -> None:
    """Print what each kind of split promised, and what came of it."""
    groups = {name: rows[rows["name"] == name] for name in SPLITS}
    lines = []
    for name, each in groups.items():
        difference = each["val"] - each["test"]
        lines.append([name, spread(each["val"]), spread(each["test"]), spread(difference, "+")])
    print("\n" + measure.table(["held out for validation", "val/auroc", "hospital left out", "difference"], lines))
    columns = {"kept": "called", "wrong": "wrong of these"}
    columns |= {"normal_called_tumor": "normal called tumor", "tumor_called_normal": "tumor called normal"}
    for where, prefix, more in (
        ("validation part, cross-fitted", "val_", {}),
        ("hospital left out", "", {"ood": "out of distribution"}),
    ):
        print(f"\nThresholds for at most {ERROR:.0%} of each class; shares in percent, of the {where}.\n")
        names = [f"{prefix}{column}" for column in columns | more]
        lines = [[name, *(spread(each[one], scale=100, digits=1) for one in names)] for name, each in groups.items()]
        print(measure.table(["held out", *columns.values(), *more.values()], lines))


def print_methods(rows: pd.DataFrame) -> None:
    """Print what each method scores on the hospital left out."""
    scored = rows.pivot_table("test", ["hospital", "seed"], "name")
    val = rows.groupby("name")["val"]
    lines = []
    for name in dict.fromkeys(rows["name"]):
        delta = "" if name == BASE else spread(scored[name] - scored[BASE], "+")
        lines.append([name, spread(val.get_group(name)), spread(scored[name]), delta])
    header = ["method", "val/auroc, another hospital", "hospital left out", "difference, paired"]
    print("\n" + measure.table(header, lines))


def check_settings(settings: dict[str, int]) -> None:
    """Note the settings in the folder, or exit where it has results of others."""
    file = Path("settings.json")
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise SystemExit(f"{file.resolve()}: results of {file.read_text().strip()}; name another WORK.")
    file.write_text(json.dumps(settings) + "\n")


def main() -> None:
    """Draw, fit, test and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--patches", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=42)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=("splits", "methods"), default=["splits", "methods"])
    parser.add_argument("--hospitals", nargs="+", help="those to leave out, all by default")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)
    check_settings({"patches": args.patches, "epochs": args.epochs})
    names = draw(args.patches)
    results = Results(Path("hospitals.csv"))
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for hospital in args.hospitals or names:
            key = {"hospital": hospital, "seed": seed}
            for split in SPLITS if "splits" in args.parts else ():
                row = partial(split_row, hospital, seed, args.epochs, split)
                results.add({"part": "splits", "name": split, **key}, row)
            for name, score in methods(hospital, seed, args.epochs).items() if "methods" in args.parts else ():
                results.add({"part": "methods", "name": name, **key}, score)
    print(f"\n{args.patches:,} patches of {len(names)} drawn hospitals, {args.seeds} seeds, {measure.machine()}")
    if "splits" in args.parts:
        print_splits(results.of("splits"))
    if "methods" in args.parts:
        print_methods(results.of("methods"))


if __name__ == "__main__":
    main()
