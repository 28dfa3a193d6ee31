"""model_int8.onnx: weights and activations of 8 bits, for CPUs."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pcam_lightning.export.parity import INT8, ONNX

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


def quantize(folder: Path, training: np.ndarray) -> None:
    """Write model_int8.onnx beside model.onnx.

    Args:
        folder: of model.onnx.
        training: patches that trained the network, to calibrate on, uint8 (N, 96, 96, 3).
    """
    prepared = folder / "prepared.onnx"
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # its notes are about its own options
    quant_pre_process(folder / ONNX, prepared, skip_symbolic_shape=True)  # fails in some versions
    quantize_static(
        prepared,
        folder / INT8,
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
