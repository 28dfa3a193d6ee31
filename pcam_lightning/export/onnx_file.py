"""model.onnx: write and check it, and run it with ONNX Runtime."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from pcam_lightning.export.export_module import ExportNetwork, FromBytes
from pcam_lightning.utils.errors import UserError

OPSET = 20  # requires ONNX Runtime 1.17 or later
_FEWEST = 2  # batch size of the example: the exporter treats 1 as a constant


def write_onnx(path: Path, network: ExportNetwork, metadata: Mapping[str, str]) -> None:
    """Write a network as ONNX, and check the file.

    Its input is `image`, uint8 (N, 96, 96, 3); its outputs are `prob` and `logit`, float32 (N,).

    Args:
        path: path of the file.
        network: network to write.
        metadata: metadata of the file, text by name.

    Raises:
        UserError: ONNX lacks an operation of the network.
    """
    example = torch.zeros(_FEWEST, 96, 96, 3, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                FromBytes(network).eval(),
                (example,),
                dynamo=True,
                input_names=["image"],
                output_names=["prob", "logit"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None
        program.save(path, external_data=False)
        _tidy(path, metadata)
        onnx.checker.check_model(path, full_check=True)
    except (torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model.onnx: the network cannot be written as ONNX ({reason}).") from None


def _tidy(path: Path, metadata: Mapping[str, str]) -> None:
    """Replace the exporter's notes, which contain local paths, with our metadata."""
    model = onnx.load(path)
    graph = model.graph
    for one in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del one.metadata_props[:]
        one.ClearField("doc_string")
    for function in model.functions:
        for one in (function, *function.node, *function.value_info):
            del one.metadata_props[:]
            one.ClearField("doc_string")
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about its internals."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


class OnnxNetwork:
    """A network written by `write_onnx`, run with ONNX Runtime on a GPU if available, else on all cores.

    Args:
        path: path of the file.

    Attributes:
        metadata: metadata of the file, text by name.

    Raises:
        UserError: the file is missing or damaged, or was not written by `write_onnx`.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file; run export to write a model.onnx.")
        try:
            self._session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
        except Exception as error:  # the runtime raises errors of many types
            raise UserError(f"{path}: cannot be read as ONNX ({str(error).splitlines()[0]}).") from None
        given = [(one.name, one.type, one.shape[1:]) for one in self._session.get_inputs()]
        made = [one.name for one in self._session.get_outputs()]
        if given != [("image", "tensor(uint8)", [96, 96, 3])] or made != ["prob", "logit"]:
            raise UserError(f"{path}: not a model.onnx written by export.")
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Map patches, uint8 (B, 96, 96, 3), to logits, float32 (B,)."""
        logit: np.ndarray = self._session.run(["logit"], {"image": np.ascontiguousarray(image)})[0]
        return logit
