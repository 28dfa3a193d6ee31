"""HeatMap: the logits of a slide's squares, and what they say about it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.special import expit

from pcam_lightning.slides.patch_grid import PatchGrid

# Share of out-of-distribution tissue from which a score should not be used. About 1 % of PCam's patches are out of
# distribution by definition, and nine tenths or more of tissue that is blurred, gray or of another organ; edges, folds
# and pen marks put a good slide in between. From one half on, the score is more about these than about the rest.
OOD_LIMIT = 0.5


def ood_warning(fraction: float | None) -> str | None:
    """Return a sentence about a score where `OOD_LIMIT` of the tissue or more is out of distribution, else None.

    Args:
        fraction: of `HeatMap.ood_fraction`, also as a table has it, NaN for None.
    """
    if fraction is None or not fraction >= OOD_LIMIT:
        return None
    return f"{100 * fraction:.0f} % of the tissue is out of distribution: do not use this score."


@dataclass(frozen=True)
class HeatMap:
    """The logits of a slide.

    Args:
        grid: of its patches.
        logit: float32, (rows, columns) of the grid, NaN where nothing was predicted.
        scale: of the logits, 1 unless they are calibrated.
        shift: added to the scaled logits, as `correction.prior_shift` computes it.
        ood_distance: from the training patches, as `logit`; None where it is not known.
        most: distance above which a square is out of distribution.
    """

    grid: PatchGrid
    logit: np.ndarray
    scale: float = 1.0
    shift: float = 0.0
    ood_distance: np.ndarray | None = None
    most: float = np.inf

    @property
    def prob(self) -> np.ndarray:
        """Probabilities of tumor, float64, NaN where nothing was predicted."""
        probabilities: np.ndarray = expit(self.scale * self.logit.astype(np.float64) + self.shift)
        return probabilities

    @property
    def ood(self) -> np.ndarray | None:
        """Which squares are out of distribution, bool, (rows, columns); None where it is not known."""
        return None if self.ood_distance is None else self.ood_distance > self.most

    @property
    def ood_fraction(self) -> float | None:
        """Share of the predicted squares that are out of distribution; None where distances are not known."""
        return None if self.ood is None else float(self.ood.sum() / (~np.isnan(self.logit)).sum())

    @property
    def score(self) -> float:
        """Of the slide: the highest mean probability of 3 x 3 squares; one that was not predicted counts as 0.

        A whole slide has so many squares that the highest probability of a single one says little.
        """
        total = ndimage.convolve(np.nan_to_num(self.prob), np.ones((3, 3)), mode="constant")
        return float(total.max() / 9)

    def patches(self) -> pd.DataFrame:
        """Return a row for each patch, as WSInfer does: minx,miny,width,height in pixels of level 0, and prob_tumor.

        Where distances are known, `ood_distance` from the training patches and `ood`, 0 or 1.
        """
        row, column = np.nonzero(~np.isnan(self.logit))
        x, y = self.grid.corners(row, column)
        side, prob = self.grid.patch, self.prob[row, column]
        table = pd.DataFrame({"minx": x, "miny": y, "width": side, "height": side, "prob_tumor": prob})
        if self.ood_distance is None or self.ood is None:
            return table
        return table.assign(ood_distance=self.ood_distance[row, column], ood=self.ood[row, column].astype(int))

    def lesions(self, threshold: float) -> pd.DataFrame:
        """Return a row for each group of adjacent squares at or above a threshold, the most confident first.

        Returns:
            confidence, the group's highest probability, x and y of the center of that square in pixels of level 0, as
            CAMELYON16 asks for; and area_mm2 of the group.
        """
        prob, rows = self.prob, []
        label, _ = ndimage.label(prob >= threshold, np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(label), start=1):
            inside = np.where(label[box] == number, prob[box], -1.0)
            row, column = np.unravel_index(inside.argmax(), inside.shape)
            x, y = (
                min(int((index + span.start + 0.5) * self.grid.square), side - 1)  # the last square may reach beyond
                for index, span, side in zip((column, row), box[::-1], (self.grid.width, self.grid.height), strict=True)
            )
            rows.append((float(inside.max()), x, y, int((inside >= 0).sum()) * self.grid.square_mm2))
        table = pd.DataFrame(rows, columns=["confidence", "x", "y", "area_mm2"])
        return table.sort_values(["confidence", "area_mm2"], ascending=False, kind="stable", ignore_index=True)
