"""HeatMap: the logits of a slide's squares, and its probabilities, lesions and score."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.special import expit

from pcam_lightning.slides.patch_grid import PatchGrid

# Share of out-of-distribution tissue from which a score should not be used. By definition, about 1 % of PCam's patches
# are out of distribution. Tissue that is blurred, gray or of another organ reaches 90 % or more. Edges, folds and pen
# marks put a good slide in between.
OOD_LIMIT = 0.5


def ood_warning(fraction: float | None) -> str | None:
    """Return a warning if `OOD_LIMIT` of the tissue or more is out of distribution, else None.

    Args:
        fraction: `HeatMap.ood_fraction`; in tables, NaN stands for None.
    """
    if fraction is None or not fraction >= OOD_LIMIT:
        return None
    return f"{100 * fraction:.0f} % of the tissue is out of distribution: do not use this score."


@dataclass(frozen=True)
class HeatMap:
    """The logits of a slide.

    Args:
        grid: patch grid of the slide.
        logit: float32, (rows, columns) of the grid, NaN for squares without a prediction.
        scale: factor of the logits, 1 unless they are calibrated.
        shift: constant added to the scaled logits, see `correction.prior_shift`.
        ood_distance: distance from the training patches, shape of `logit`; None if not measured.
        ood_threshold: distance above which a square is out of distribution.
    """

    grid: PatchGrid
    logit: np.ndarray
    scale: float = 1.0
    shift: float = 0.0
    ood_distance: np.ndarray | None = None
    ood_threshold: float = np.inf

    @property
    def prob(self) -> np.ndarray:
        """Probabilities of tumor, float64, NaN for squares without a prediction."""
        probabilities: np.ndarray = expit(self.scale * self.logit.astype(np.float64) + self.shift)
        return probabilities

    @property
    def ood(self) -> np.ndarray | None:
        """Mask of out-of-distribution squares, bool, (rows, columns); None if distances were not measured."""
        return None if self.ood_distance is None else self.ood_distance > self.ood_threshold

    @property
    def ood_fraction(self) -> float | None:
        """Share of out-of-distribution squares among those predicted; None if distances were not measured."""
        return None if self.ood is None else float(self.ood.sum() / (~np.isnan(self.logit)).sum())

    @property
    def score(self) -> float:
        """Slide score: the highest mean probability of 3 x 3 squares; squares without a prediction count as 0.

        A slide has many squares, so the highest probability of a single square is not informative.
        """
        total = ndimage.convolve(np.nan_to_num(self.prob), np.ones((3, 3)), mode="constant")
        return float(total.max() / 9)

    def patches(self) -> pd.DataFrame:
        """Return one row per patch in WSInfer's format: minx,miny,width,height in level-0 pixels, and prob_tumor.

        If distances were measured, the table also has `ood_distance` and `ood` (0 or 1).
        """
        row, column = np.nonzero(~np.isnan(self.logit))
        x, y = self.grid.corners(row, column)
        side, prob = self.grid.patch, self.prob[row, column]
        table = pd.DataFrame({"minx": x, "miny": y, "width": side, "height": side, "prob_tumor": prob})
        if self.ood_distance is None or self.ood is None:
            return table
        return table.assign(ood_distance=self.ood_distance[row, column], ood=self.ood[row, column].astype(int))

    def lesions(self, threshold: float) -> pd.DataFrame:
        """Return one row per group of adjacent squares at or above a threshold, the most confident first.

        Returns:
            CAMELYON16's columns `confidence`, the group's highest probability, and `x` and `y`, the center of that
            square in level-0 pixels; and `area_mm2`, the area of the group.
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
