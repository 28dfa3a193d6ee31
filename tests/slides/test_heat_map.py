"""What the logits of a slide say of it."""

import numpy as np
import pytest

from pcam_lightning.slides.heat_map import HeatMap
from pcam_lightning.slides.patch_grid import PatchGrid


def test_beyond_the_border_of_a_slide_there_is_no_tumor() -> None:
    logit = np.full((9, 9), -9.0, dtype=np.float32)
    logit[0, 0] = 9.0
    heat_map = HeatMap(PatchGrid(9 * 128, 9 * 128, 0.243), logit)
    assert heat_map.score == pytest.approx(1 / 9, abs=1e-3)
