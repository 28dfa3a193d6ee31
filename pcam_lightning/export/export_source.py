"""Networks to export, and the patches to compare files on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from pcam_lightning.data.datamodule import READ_OPTIONS, PCamDataModule
from pcam_lightning.data.sources import parts
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.heads import head_of
from pcam_lightning.synthetic.kaggle_folder import sample_slide
from pcam_lightning.synthetic.tissue import synthesize_patch
from pcam_lightning.training.loaded_run import LoadedRun
from pcam_lightning.training.run_report import read_temperature
from pcam_lightning.utils.errors import UserError, rank_zero_warn
from pcam_lightning.utils.run_dir import Run

SYNTHETIC_PATCHES = 256  # number of patches to compare on if there is no data


@dataclass(frozen=True)
class ExportSource:
    """A network to export.

    Attributes:
        loaded: run of the network.
        network: network in evaluation mode, on the CPU.
    """

    loaded: LoadedRun
    network: PCamClassifier

    @classmethod
    def read(cls, target: Path | str, tta: str | None) -> "ExportSource":
        """Read the best checkpoint of a run, a checkpoint, or a bundled network.

        Raises:
            UserError: the network cannot be loaded.
        """
        if Path(target).is_dir() and Run(Path(target)).diverged.is_file():
            raise UserError(f"{target}: the loss of this run was NaN or infinite; name one of its checkpoints.")
        loaded = LoadedRun.open(target)
        network = loaded.classifier(tta).eval()
        if not all(bool(value.isfinite().all()) for value in network.net.state_dict().values()):
            raise UserError(f"{loaded.path}: some weights are NaN or infinite.")
        return cls(loaded, network)

    @property
    def made_by(self) -> dict[str, Any]:
        """Step and views, as recorded in report.json."""
        return {"step": self.loaded.step, "tta": self.network.hparams["tta"]}

    def temperature(self) -> float:
        """Return the temperature that evaluate fitted.

        Raises:
            UserError: evaluate has not scored this checkpoint.
        """
        return read_temperature(self.loaded.run, self.made_by)


@dataclass(frozen=True)
class ComparisonPatches:
    """Patches to compare files on.

    Attributes:
        image: patches, uint8, (N, 96, 96, 3).
        label: labels, 0 or 1, (N,).
        origin: description of the patches.
    """

    image: np.ndarray
    label: np.ndarray
    origin: str


def find_patches(sources: Sequence[ExportSource], root: Path | None, sample: int) -> ComparisonPatches:
    """Return validation patches of a run, or synthetic patches with a warning if its data is missing.

    Args:
        sources: networks; the patches come from the run of the first.
        root: data folder, if it has moved since the run.
        sample: maximum number of patches, sampled at random; 0 for all.

    Raises:
        UserError: the data cannot be used.
    """
    source = sources[0].loaded
    options = source.config["data"]
    folder = root or Path(options["root"])
    if not folder.exists() or "train" not in parts(folder, options.get("columns")):
        if not source.bundled:
            rank_zero_warn(
                f"{folder}: contains no labeled patches; files are compared on synthetic patches. Set `root` to the "
                "data folder."
            )
        return synthetic_patches(SYNTHETIC_PATCHES)
    # A checkpoint that was moved has no split file.
    split = {"split_file": source.run.split} if source.run.split.is_file() else {"val_fraction": 0.5}
    how = {name: options.get(name) for name in READ_OPTIONS}
    data = PCamDataModule(folder, cache_dir=_cache(options, root), **split, **how)
    data.setup("fit")
    rows = np.flatnonzero(data.val_mask)
    if not len(rows):
        rank_zero_warn(f"{source.run.split}: no patch is held out; files are compared on training patches.")
        rows = np.arange(len(data.table))
    known = source.run.split.is_file() and data.val_mask.any()
    if sample:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:sample])
    table = data.table.iloc[rows]
    image = data.train_store.images[data.train_store.rows(table["id"])]
    origin = f"{len(table):,} {'validation ' if known else ''}patches of {folder.name}"
    origin += ", sampled at random" if sample else ""
    for number, other in enumerate(sources, start=1):
        trained = other.loaded.trained
        network = f"network {number}" if len(sources) > 1 else "the network"
        if overlap := trained.report(table, other.loaded.name):
            origin += f"; {overlap:,} of them trained {network}, so AUROC is optimistic"
        if trained.caution:
            origin += f"; {network} was {trained.caution}, so AUROC may be optimistic"
    return ComparisonPatches(image, table["label"].to_numpy(), origin)


def _cache(options: dict[str, Any], root: Path | None) -> Path | None:
    return Path(options["cache_dir"]) if options.get("cache_dir") and root is None else None


def synthetic_patches(count: int) -> ComparisonPatches:
    """Generate patches of synthetic tissue."""
    rng = np.random.default_rng(0)
    label = np.arange(count) % 2
    patches = [synthesize_patch(rng, sample_slide(rng, "synthetic", 1.0), int(one))[0] for one in label]
    return ComparisonPatches(np.stack(patches), label, f"{count:,} patches of synthetic tissue")


def read_sources(targets: Sequence[Path | str], tta: str | None) -> list[ExportSource]:
    """Read all networks of an export.

    Raises:
        UserError: a network cannot be loaded, or is named twice.
    """
    if not targets:
        raise UserError("export: name a run, a checkpoint, or pcam.")
    sources = [ExportSource.read(target, tta) for target in targets]
    paths = [source.loaded.path.resolve() for source in sources]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise UserError(f"{twice}: named twice.")
    return sources


def exported_checkpoint(source: ExportSource, temperature: float) -> dict[str, Any]:
    """Return the checkpoint of a source with the changes of the export.

    The last layer is divided by the temperature, the views are those of the export, and local paths are shortened to
    their last part.
    """
    checkpoint, tta = source.loaded.checkpoint, source.network.hparams["tta"]
    pcam, head = checkpoint["pcam"], f"net.{head_of(source.network.net)}."
    model = _cut(pcam["config"]["model"]) | {"tta": tta}
    return {
        **checkpoint,
        "state_dict": {
            name: value / temperature if name.startswith(head) else value
            for name, value in checkpoint["state_dict"].items()
        },
        "hyper_parameters": {**checkpoint["hyper_parameters"], "tta": tta},
        "init_weights": _last_part(checkpoint["init_weights"]),
        "pcam": {
            **pcam,
            "config": {**pcam["config"], "data": _cut(pcam["config"]["data"]), "model": model},
            "data": _cut(pcam["data"]),
            "temperature": temperature,
        },
    }


def _cut(options: dict[str, Any]) -> dict[str, Any]:
    names = ("root", "cache_dir", "split_file", "slides", "extra_train", "weights")
    return {name: _last_part(value) if name in names else value for name, value in options.items()}


def _last_part(value: Any) -> Any:
    return PurePath(value).name if isinstance(value, str) else value
