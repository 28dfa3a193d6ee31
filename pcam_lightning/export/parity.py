"""Comparison of exported files with the checkpoint, patch by patch, each through its reader's own way."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pcam_lightning.export.readers import Logits, onnx_logits, own_logits, timm_logits, wsinfer_logits
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.patch_network import mean_logit
from pcam_lightning.transforms.augment import to_float

ONNX, TORCHSCRIPT, TIMM = "model.onnx", "torchscript_model.pt", "model.safetensors"
_BATCH = 64


class Limit(NamedTuple):
    """What the logits of a file must keep.

    Attributes:
        measure: of `Difference`: largest or mean.
        value: that it may have at most.
        text: of both.
        required: whether a file that exceeds it is an error; else it is left out of the export.
    """

    measure: str
    value: float
    text: str
    required: bool = False


EXACT = Limit("largest", 1e-3, "0.001 for every patch", required=True)
ROUNDED = Limit("mean", 0.1, "0.1 in the mean")  # of a reader that rounds the pixels that it scales


class Difference(NamedTuple):
    """How the logits of an exported file differ from those of the checkpoint.

    Attributes:
        file: its name.
        reader: whose steps lead from the patches to the logits.
        compared_with: what of the checkpoint.
        limit: of the difference.
        mean: of the absolute differences.
        largest: of them.
        auroc: of the file; NaN where the patches are of one class.
        checkpoint_auroc: of the checkpoint.
    """

    file: str
    reader: str
    compared_with: str
    limit: Limit
    mean: float
    largest: float
    auroc: float
    checkpoint_auroc: float

    @property
    def is_within(self) -> bool:
        """Whether the limit is kept; not where the difference is NaN."""
        return bool(getattr(self, self.limit.measure) <= self.limit.value)


def weights_names(count: int) -> list[str]:
    """Return the names of the files that this package reads, one a network."""
    several = (f"pcam_lightning_{number}.safetensors" for number in range(1, count + 1))
    return ["pcam_lightning.safetensors"] if count == 1 else list(several)


class Comparison:
    """Patches, and the logits that exported files must give.

    Args:
        networks: of the checkpoints, as they were before the export.
        temperature: that the mean of their logits is divided by.
        image: patches, uint8 (N, 96, 96, 3).
        label: of them, 0 or 1, (N,).

    Attributes:
        logit: that is expected, float32 (N,).
    """

    def __init__(
        self, networks: Sequence[PCamClassifier], temperature: float, image: np.ndarray, label: np.ndarray
    ) -> None:
        self._networks, self._temperature, self._image, self._label = networks, temperature, image, label
        self._each = [self._run(checkpoint_logits([network], temperature)) for network in networks]
        self.logit: np.ndarray = mean_logit([torch.from_numpy(one) for one in self._each]).numpy()

    def files(self, folder: Path) -> list[Difference]:
        """Compare all files of a folder that hold a network, each through its reader's own way."""
        rows = [
            (ONNX, "ONNX Runtime", onnx_logits, self.logit, EXACT),
            (TORCHSCRIPT, "WSInfer", wsinfer_logits, self.logit, EXACT),
            *(
                (name, "pcam_lightning", own_logits, logit, EXACT)
                for name, logit in zip(weights_names(len(self._each)), self._each, strict=True)
            ),
        ]
        found = [
            self._compare(file, reader, "checkpoint", limit, self._run(logits(folder / file)), expected)
            for file, reader, logits, expected, limit in rows
            if (folder / file).is_file()
        ]
        return [*found, *(self._timm(folder / TIMM) if (folder / TIMM).is_file() else ())]

    def _timm(self, file: Path) -> Iterator[Difference]:
        """Compare the network alone, which timm gives one view.

        timm lets Pillow scale, which rounds to 8 bits: its logits must be those of pixels that are scaled and rounded,
        and near those of pixels that are not.
        """
        (network,), logit = self._networks, self._run(timm_logits(file))
        one_view = self._run(one_view_logits(network, self._temperature))
        what = "checkpoint, one view"
        if network.preprocess.side == network.preprocess.crop:
            yield self._compare(file.name, "timm", what, EXACT, logit, one_view)
            return
        rounded = self._run(one_view_logits(network, self._temperature, rounded=True))
        yield self._compare(file.name, "timm", f"{what}, pixels rounded", EXACT, logit, rounded)
        yield self._compare(file.name, "timm", what, ROUNDED, logit, one_view)

    def _run(self, logits: Logits) -> np.ndarray:
        starts = range(0, len(self._image), _BATCH)
        return np.concatenate([logits(self._image[start : start + _BATCH]) for start in starts])

    def _compare(
        self, file: str, reader: str, what: str, limit: Limit, logit: np.ndarray, expected: np.ndarray
    ) -> Difference:
        difference = np.abs(logit - expected)
        scores = [auroc(self._label, one) if len(np.unique(self._label)) > 1 else np.nan for one in (logit, expected)]
        return Difference(file, reader, what, limit, float(difference.mean()), float(difference.max()), *scores)


def checkpoint_logits(networks: Sequence[PCamClassifier], temperature: float) -> Logits:
    """Return what maps patches to logits as `predict` does, in float32."""

    @torch.inference_mode()
    def logits(image: np.ndarray) -> np.ndarray:
        patches = torch.from_numpy(np.ascontiguousarray(image))
        mean = mean_logit([network.predict_logits(patches) for network in networks])
        found: np.ndarray = mean.numpy() / np.float32(temperature)
        return found

    return logits


def one_view_logits(network: PCamClassifier, temperature: float, *, rounded: bool = False) -> Logits:
    """Return what maps patches to logits by one view of a network.

    Args:
        network: without stain normalization.
        temperature: that logits are divided by.
        rounded: let Pillow scale the patches, to whole gray levels; they are not cropped.
    """
    preprocess = network.preprocess
    size = (preprocess.side,) * 2

    @torch.inference_mode()
    def logits(image: np.ndarray) -> np.ndarray:
        if rounded:
            scaled = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR)) for one in image]
            seen = preprocess.standardize(to_float(torch.from_numpy(np.stack(scaled))))
        else:
            seen = preprocess(torch.from_numpy(np.ascontiguousarray(image)))
        found: np.ndarray = network(seen).numpy() / np.float32(temperature)
        return found

    return logits
