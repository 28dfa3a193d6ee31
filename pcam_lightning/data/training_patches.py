"""Which patches trained a network's weights, and how many of the evaluated patches are among them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pcam_lightning.data.csv_tables import read_csv
from pcam_lightning.utils.errors import rank_zero_info, rank_zero_warn
from pcam_lightning.utils.run_dir import run_of

_HEX = 16  # digits of a SHA-1 that are compared: 64 bits, of a million patches no two alike by chance


def _none() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class TrainingPatches:
    """The patches that trained some weights, those of the runs before included whose weights these started from.

    Attributes:
        ids: hash of each patch's id, int64, sorted.
        pixels: hash of each patch's pixels, int64, sorted.
        known: whether these are all of them; False of weights that do not record it.
        origins: where copies of patches are from that trained them, which neither hash finds again.
    """

    ids: np.ndarray = field(default_factory=_none)
    pixels: np.ndarray = field(default_factory=_none)
    known: bool = True
    origins: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: pd.DataFrame) -> "TrainingPatches":
        """Return those of a table with columns `id` and `pixel_sha1`."""
        return cls(np.unique(_hash_ids(table["id"])), np.unique(_shorten(table["pixel_sha1"])))

    @classmethod
    def of_checkpoint(cls, path: Path, checkpoint: Any) -> "TrainingPatches":
        """Return those that a checkpoint records, or, of version 0.1.0, the split beside it, by id alone.

        Args:
            path: of the checkpoint.
            checkpoint: what the file holds; weights from elsewhere tell nothing.
        """
        if not isinstance(checkpoint, dict) or "pcam" not in checkpoint:
            return cls(known=False)
        if checkpoint.get("trained") is not None:
            return cls.of_record(checkpoint["trained"])
        split = run_of(path).split
        if not split.is_file():
            return cls(known=False)
        rows = read_csv(split, ("id", "split"), keep_suffix=True)
        return cls(np.unique(_hash_ids(rows.loc[rows["split"] == "train", "id"])))

    @classmethod
    def of_record(cls, record: dict[str, Any] | None) -> "TrainingPatches":
        """Return those that `record` returned; None, of a checkpoint of version 0.1.0, tells nothing."""
        if record is None:
            return cls(known=False)
        ids, pixels = (record[name].cpu().numpy() for name in ("ids", "pixels"))
        return cls(ids, pixels, bool(record["known"]), tuple(record.get("origins", ())))

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of them: 16 bytes a patch."""
        hashes = {name: torch.from_numpy(getattr(self, name)) for name in ("ids", "pixels")}
        return {**hashes, "known": self.known, "origins": list(self.origins)}

    def __or__(self, other: "TrainingPatches") -> "TrainingPatches":
        """Return the patches of both."""
        return TrainingPatches(
            np.union1d(self.ids, other.ids),
            np.union1d(self.pixels, other.pixels),
            self.known and other.known,
            tuple(sorted({*self.origins, *other.origins})),
        )

    @property
    def caution(self) -> str:
        """What to say of a score where copies of patches trained the weights; empty where none did."""
        return f"trained on {' and '.join(self.origins)}, and these may be of the same slides" if self.origins else ""

    def count(self, table: pd.DataFrame) -> int:
        """Count the patches of a table, with columns `id` and `pixel_sha1`, that are among them by id or by pixels."""
        if not len(self.ids) and not len(self.pixels):
            return 0
        found = np.isin(_hash_ids(table["id"]), self.ids) | np.isin(_shorten(table["pixel_sha1"]), self.pixels)
        return int(found.sum())

    def report(self, table: pd.DataFrame, network: Path | str) -> int | None:
        """Warn where these patches, or copies of them, trained a network that is scored or compared on a table.

        Args:
            table: with columns `id` and `pixel_sha1`.
            network: that they trained.

        Returns:
            How many patches of the table are among them; None where not all of them are recorded.
        """
        if self.caution:
            rank_zero_warn(f"{network}: {self.caution}: scores may be optimistic.")
        if overlap := self.count(table):
            rank_zero_warn(f"{overlap:,} of these {len(table):,} patches trained the network of {network}.")
        elif not self.known and not self.caution:
            rank_zero_info(f"{network}: does not record all patches that trained it; these may be among them.")
        return overlap if overlap or self.known else None


def _hash_ids(ids: "pd.Series[str]") -> np.ndarray:
    return pd.util.hash_array(ids.to_numpy(dtype=object), categorize=False).view(np.int64)


def _shorten(sha1: "pd.Series[str]") -> np.ndarray:
    digits = "".join(one[:_HEX] for one in sha1)
    return np.frombuffer(bytes.fromhex(digits), dtype=">i8").astype(np.int64)
