"""predict_onnx: predict the patches of test/ with an exported network, without torch in the loop."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.training_patches import TrainingPatches
from pcam_lightning.export.onnx_file import OnnxNetwork
from pcam_lightning.training.predictions import join_predictions, write_submission
from pcam_lightning.utils.errors import check_number, rank_zero_warn
from pcam_lightning.utils.run_dir import check_output
from pcam_lightning.utils.safe_load import safe_load


def predict_onnx(
    model: Path | str,
    root: Path | str = Path("data"),
    batch_size: int = 64,
    cache_dir: Path | str | None = None,
    columns: dict[str, str] | None = None,
    resize: Literal["crop", "scale"] | None = None,
    mpp: float | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Predict the patches of test/, or of a folder of unlabeled patches, with an exported network: submission.csv.

    Args:
        model: model.onnx of an export, or its folder.
        root: data folder.
        batch_size: patches per batch.
        cache_dir: folder of the packed images; by default .pcam_cache in the data folder.
        columns: names of the columns path, label, id, slide, patient, center and split of a CSV of patches, if they
            are not the usual names.
        resize: accept images of another size, or JPEG: crop cuts the center 96 x 96 pixels, scale resamples the center
            93 um to 96 x 96 pixels. Needs `mpp`.
        mpp: um per pixel of images to resize, such as 0.5 for a scan at 20x.
        output: folder to write submission.csv to; null writes none.
        overwrite: replace an existing submission that differs.

    Returns:
        Columns `id`, in the order of the submission, `logit` (float32) and `prob` (float64).

    Raises:
        UserError: the file or the data cannot be used, or the folder cannot be written.
    """
    check_number("batch_size", batch_size, 1, whole=True)
    if output is not None:
        check_output(Path(output))
    file = Path(model).expanduser()
    file = file / "model.onnx" if file.is_dir() else file
    network = OnnxNetwork(file)
    data = PCamDataModule(root, cache_dir=cache_dir, columns=columns, resize=resize, mpp=mpp)
    data.setup("predict")
    table, store = data.test_table, data.test_store
    _report_overlap(file.parent, table)
    rows, logits = store.rows(table["id"]), []
    with tqdm(total=len(rows), desc="predicting", unit=" patches", unit_scale=True) as bar:
        for start in range(0, len(rows), batch_size):
            logits.append(network.logits(np.take(store.images, rows[start : start + batch_size], axis=0)))
            bar.update(len(logits[-1]))
    predictions = join_predictions(table["id"], pd.Series(np.concatenate(logits), index=table["id"]))
    if output is not None:
        write_submission(Path(output) / "submission.csv", predictions, overwrite=overwrite)
    return predictions


def _report_overlap(folder: Path, table: pd.DataFrame) -> None:
    """Warn about patches that trained the network, according to the checkpoints in its folder."""
    trained = TrainingPatches()
    for file in sorted(folder.glob("pcam_lightning*.safetensors")):
        try:
            trained |= TrainingPatches.of_checkpoint(safe_load(file))
        except ValueError as error:
            rank_zero_warn(f"{file}: cannot be read ({error}); patches that trained the network are not detected.")
    trained.report(table, folder)
