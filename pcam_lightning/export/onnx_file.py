"""model.onnx: written, checked, and run by ONNX Runtime."""

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

OPSET = 20  # of ONNX Runtime 1.17 and later
_FEWEST = 2  # patches of an example: one would be taken for a constant


def write_onnx(path: Path, network: ExportNetwork, metadata: Mapping[str, str]) -> None:
    """Write a network as ONNX, and check the file.

    Its input is `image`, uint8 (N, 96, 96, 3); its outputs are `prob` and `logit`, float32 (N,).

    Args:
        path: of the file.
        network: to write.
        metadata: texts by name that the file carries.

    Raises:
        UserError: the network has an operation that ONNX lacks.
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
    """Replace what the exporter notes about its own steps, paths of this machine among them, by our metadata."""
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
    """Keep the exporter's notes to itself: they are about its own parts."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


class OnnxNetwork:
    """A network that `write_onnx` has written, run by ONNX Runtime on what it finds: a GPU or all cores.

    Args:
        path: of the file.

    Attributes:
        metadata: texts by name that the file carries.

    Raises:
        UserError: it is missing, damaged or of another kind.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file; the export command writes a model.onnx.")
        try:
            self._session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
        except Exception as error:  # whatever the runtime raises over foreign bytes
            raise UserError(f"{path}: cannot be read as ONNX ({str(error).splitlines()[0]}).") from None
        given = [(one.name, one.type, one.shape[1:]) for one in self._session.get_inputs()]
        made = [one.name for one in self._session.get_outputs()]
        if given != [("image", "tensor(uint8)", [96, 96, 3])] or made != ["prob", "logit"]:
            raise UserError(f"{path}: not a model.onnx of the export command.")
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Map patches, uint8 (B, 96, 96, 3), to logits, float32 (B,)."""
        logit: np.ndarray = self._session.run(["logit"], {"image": np.ascontiguousarray(image)})[0]
        return logit
