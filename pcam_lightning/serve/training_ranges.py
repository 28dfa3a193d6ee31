"""Ranges of the properties of training patches, and what lies outside them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pcam_lightning.utils.errors import UserError

# Share of a range's width by which a patch may lie beyond its ends. The ends are percentiles of a sample, so that a
# few of the training patches themselves lie beyond them.
MARGIN = 0.1
_NAMES = {
    "brightness": "brightness",
    "spread": "contrast",
    "sharpness": "sharpness",
    "red": "red over green",
    "blue": "blue over green",
}


@dataclass(frozen=True)
class TrainingRanges:
    """What training_patches.json holds.

    Attributes:
        share: of the training patches that lie within each range, in percent.
        ranges: lowest and highest value by property, see `data.quality.patch_properties`.
    """

    share: float
    ranges: Mapping[str, tuple[float, float]]

    @classmethod
    def read(cls, path: Path) -> "TrainingRanges":
        """Read the file that `export` writes.

        Raises:
            UserError: it is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            low, high = map(float, content["percentiles"])
            ranges = {name: (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: cannot be read; export the network again.") from None
        return cls(high - low, {name: ranges[name] for name in _NAMES if name in ranges})

    def warning(self, properties: Mapping[str, float]) -> str | None:
        """Return a sentence on the properties of a patch that lie outside their ranges by more than the margin."""
        found = []
        for name, (low, high) in self.ranges.items():
            margin = MARGIN * (high - low)
            if not low - margin <= properties[name] <= high + margin:
                found.append(f"{_NAMES[name]} {properties[name]:.3g} (theirs: {low:.3g} to {high:.3g})")
        return f"Unlike {self.share:.4g} % of the training patches: {', '.join(found)}." if found else None
