"""Parity of exported files: compare their logits with the checkpoint, as each reader computes them."""

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
    """Limit of the difference between logits.

    Attributes:
        measure: field of `Difference`: largest or mean.
        value: maximum value.
        text: description for messages.
        required: raise an error if a file exceeds the limit; otherwise, leave the file out.
    """

    measure: str
    value: float
    text: str
    required: bool = False


EXACT = Limit("largest", 1e-3, "0.001 for every patch", required=True)
ROUNDED = Limit("mean", 0.1, "0.1 on average")  # for a reader that rounds pixels when it scales


class Difference(NamedTuple):
    """Difference between the logits of an exported file and those of the checkpoint.

    Attributes:
        file: name of the file.
        reader: program whose preprocessing is used.
        compared_with: views and pixels of the checkpoint's logits.
        limit: limit of the difference.
        mean: mean absolute difference.
        largest: largest absolute difference.
        auroc: AUROC of the file; NaN if all patches have one class.
        checkpoint_auroc: AUROC of the checkpoint.
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
        """Whether the difference is within the limit; false if it is NaN."""
        return bool(getattr(self, self.limit.measure) <= self.limit.value)


def weights_names(count: int) -> list[str]:
    """Return the names of the files for this package, one per network."""
    several = (f"pcam_lightning_{number}.safetensors" for number in range(1, count + 1))
    return ["pcam_lightning.safetensors"] if count == 1 else list(several)


class Comparison:
    """Patches, and the expected logits of exported files.

    Args:
        networks: networks of the checkpoints before the export.
        temperature: divisor of the mean logit.
        image: patches, uint8 (N, 96, 96, 3).
        label: labels, 0 or 1, (N,).

    Attributes:
        logit: expected logits, float32 (N,).
    """

    def __init__(
        self, networks: Sequence[PCamClassifier], temperature: float, image: np.ndarray, label: np.ndarray
    ) -> None:
        self._networks, self._temperature, self._image, self._label = networks, temperature, image, label
        self._each = [self._run(checkpoint_logits([network], temperature)) for network in networks]
        self.logit: np.ndarray = mean_logit([torch.from_numpy(one) for one in self._each]).numpy()

    def files(self, folder: Path) -> list[Difference]:
        """Compare all network files of a folder, each with the preprocessing of its reader."""
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
        """Compare model.safetensors with one view of the checkpoint.

        timm scales with Pillow, which rounds to 8 bits. Its logits must equal those of pixels that are scaled and
        rounded, and be close to those of pixels that are not rounded.
        """
        (network,), logit = self._networks, self._run(timm_logits(file))
        one_view = self._run(one_view_logits(network, self._temperature))
        one_view_name = "checkpoint, one view"
        if network.preprocess.side == network.preprocess.crop:
            yield self._compare(file.name, "timm", one_view_name, EXACT, logit, one_view)
            return
        rounded = self._run(one_view_logits(network, self._temperature, rounded=True))
        yield self._compare(file.name, "timm", f"{one_view_name}, pixels rounded", EXACT, logit, rounded)
        yield self._compare(file.name, "timm", one_view_name, ROUNDED, logit, one_view)

    def _run(self, logits: Logits) -> np.ndarray:
        starts = range(0, len(self._image), _BATCH)
        return np.concatenate([logits(self._image[start : start + _BATCH]) for start in starts])

    def _compare(
        self, file: str, reader: str, compared_with: str, limit: Limit, logit: np.ndarray, expected: np.ndarray
    ) -> Difference:
        error = np.abs(logit - expected)
        scores = [auroc(self._label, one) if len(np.unique(self._label)) > 1 else np.nan for one in (logit, expected)]
        return Difference(file, reader, compared_with, limit, float(error.mean()), float(error.max()), *scores)


def checkpoint_logits(networks: Sequence[PCamClassifier], temperature: float) -> Logits:
    """Return a function that maps patches to logits like `predict`, in float32."""

    @torch.inference_mode()
    def logits(image: np.ndarray) -> np.ndarray:
        patches = torch.from_numpy(np.ascontiguousarray(image))
        mean = mean_logit([network.predict_logits(patches) for network in networks])
        found: np.ndarray = mean.numpy() / np.float32(temperature)
        return found

    return logits


def one_view_logits(network: PCamClassifier, temperature: float, *, rounded: bool = False) -> Logits:
    """Return a function that maps patches to logits with one view of a network.

    Args:
        network: network without stain normalization.
        temperature: divisor of the logits.
        rounded: scale the patches with Pillow, which rounds to whole gray levels, without a crop.
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
