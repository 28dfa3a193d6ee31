"""Detections of a slide hit the lesions that lie there."""

from pathlib import Path

import pandas as pd

from pcam_lightning.cli.main import main


def test_detections_hit_a_lesion_that_has_grown_by_half_of_75_um(slide: Path) -> None:
    """The lesion spans 512 to 768 across and 384 to 640 down, and 154 pixels of 0.243 um around them."""
    assert main(["heatmap", str(slide), "--ckpt_path=pcam-small", "--accelerator=cpu", "--output=heatmaps"]) == 0
    file = Path("heatmaps", slide.stem, "lesions.csv")
    # The first one would miss it if row and column were swapped; the second one would hit it if it had grown by 75 um.
    detections = pd.DataFrame({"confidence": 0.9, "x": [880, 1000], "y": [400, 500], "area_mm2": 0.1})
    detections.to_csv(file, index=False)
    assert main(["evaluate-slides", "heatmaps", "--annotations", str(slide.parent), "--bootstrap_samples=5"]) == 0
    assert pd.read_csv("heatmaps/slide_scores.csv")["false"].tolist() == [1]
