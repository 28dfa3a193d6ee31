"""predict_onnx: the patches of test/ by an exported network, without torch in the loop."""

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
    """Predict the patches of test/, or of a folder that holds patches alone, by an exported network: submission.csv.

    Args:
        model: model.onnx of an export, or its folder.
        root: data folder.
        batch_size: patches a batch.
        cache_dir: folder for the packed images; by default .pcam_cache in the data folder.
        columns: of a CSV of patches: what its columns path, label, id, slide, patient, center and split are called,
            where that is none of the usual names.
        resize: take images of another size, or JPEG: crop cuts 96 x 96 pixels at the center, scale resamples the 93 um
            at the center to 96 x 96 pixels. Needs `mpp`.
        mpp: um per pixel of the images that are resized, such as 0.5 of a scan at 20x.
        output: folder to write submission.csv into; null writes none.
        overwrite: replace a submission that is there and differs.

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
    """Warn of patches that trained the network, by the checkpoints beside the file."""
    trained = TrainingPatches()
    for file in sorted(folder.glob("pcam_lightning*.safetensors")):
        try:
            trained |= TrainingPatches.of_checkpoint(safe_load(file))
        except ValueError as error:
            rank_zero_warn(
                f"{file}: cannot be read ({error}), so that patches which trained the network are not found."
            )
    trained.report(table, folder)
