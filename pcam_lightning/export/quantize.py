"""model_int8.onnx: weights and activations of 8 bits, for CPUs."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pcam_lightning.export.proof import Comparison, Difference, onnx_logits
from pcam_lightning.utils.errors import UserError, rank_zero_warn

INT8 = "model_int8.onnx"
MOST_LOST = 0.002  # of AUROC
_CALIBRATED_ON = 256  # training patches
_BATCH = 32


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out training patches."""

    def __init__(self, image: np.ndarray) -> None:
        self._batches: Iterator[np.ndarray] = iter(
            image[start : start + _BATCH] for start in range(0, len(image), _BATCH)
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return a batch; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": np.ascontiguousarray(batch)}


def quantize(
    folder: Path, comparison: Comparison, expected: np.ndarray, training: np.ndarray | None
) -> list[Difference]:
    """Write model_int8.onnx beside model.onnx, calibrated on training patches, where it costs little.

    Args:
        folder: of model.onnx.
        comparison: patches to compare on, of both classes.
        expected: logits of the checkpoint.
        training: patches that trained the network.

    Returns:
        How it differs from the checkpoint; empty where it loses 0.002 of AUROC or more, which a warning says.

    Raises:
        UserError: there are no training patches.
    """
    if training is None:
        raise UserError("`int8`: is calibrated on training patches, which are not at hand; `root` names the data.")
    path, prepared = folder / INT8, folder / "prepared.onnx"
    if len(np.unique(comparison.label)) < 2:
        raise UserError("`int8`: the patches to compare on are of one class, of which there is no AUROC.")
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # its notes are about its own options
    quant_pre_process(folder / "model.onnx", prepared, skip_symbolic_shape=True)  # fails in some versions
    quantize_static(
        prepared,
        path,
        _Reader(training[:_CALIBRATED_ON]),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    prepared.unlink()
    logging.getLogger().setLevel(level)
    found = comparison.compare(INT8, "checkpoint", comparison.run(onnx_logits(path)), expected)
    lost = found.checkpoint_auroc - found.auroc
    if not lost < MOST_LOST:
        path.unlink()
        rank_zero_warn(f"{INT8}: not written, since it loses {lost:.4f} of AUROC, {MOST_LOST} or more.")
        return []
    return [found]
