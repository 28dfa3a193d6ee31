"""Train and evaluate a classifier for PatchCamelyon, Kaggle's Histopathologic Cancer Detection.

The names below are loaded when they are first used: a process that only packs images loads neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcam_lightning.data.datamodule import PCamDataModule
    from pcam_lightning.evaluation.ablate import ablate
    from pcam_lightning.evaluation.compare import compare
    from pcam_lightning.evaluation.crossval import crossval
    from pcam_lightning.evaluation.evaluate import evaluate
    from pcam_lightning.export.export_network import export_network
    from pcam_lightning.models.classifier import PCamClassifier
    from pcam_lightning.slides.hard_negatives import mine_negatives
    from pcam_lightning.slides.many_slides import heatmap
    from pcam_lightning.slides.predict_slide import predict_slide
    from pcam_lightning.slides.score_slides import evaluate_slides
    from pcam_lightning.training.best_and_last import BestAndLastCheckpoint
    from pcam_lightning.training.fit import fit
    from pcam_lightning.training.loaded_run import load_pretrained
    from pcam_lightning.training.options import Config
    from pcam_lightning.training.predict import predict, test, validate
    from pcam_lightning.training.probe import probe
    from pcam_lightning.transforms.augment import Augmentation
    from pcam_lightning.utils.errors import UserError

__version__ = "0.3.0.dev0"
__all__ = [
    "Augmentation",
    "BestAndLastCheckpoint",
    "Config",
    "PCamClassifier",
    "PCamDataModule",
    "UserError",
    "ablate",
    "compare",
    "crossval",
    "evaluate",
    "evaluate_slides",
    "export_network",
    "fit",
    "heatmap",
    "load_pretrained",
    "mine_negatives",
    "predict",
    "predict_slide",
    "probe",
    "test",
    "validate",
]

_MODULES = {
    "Augmentation": "transforms.augment",
    "BestAndLastCheckpoint": "training.best_and_last",
    "Config": "training.options",
    "PCamClassifier": "models.classifier",
    "PCamDataModule": "data.datamodule",
    "UserError": "utils.errors",
    "ablate": "evaluation.ablate",
    "compare": "evaluation.compare",
    "crossval": "evaluation.crossval",
    "evaluate": "evaluation.evaluate",
    "evaluate_slides": "slides.score_slides",
    "export_network": "export.export_network",
    "fit": "training.fit",
    "heatmap": "slides.many_slides",
    "load_pretrained": "training.loaded_run",
    "mine_negatives": "slides.hard_negatives",
    "predict": "training.predict",
    "predict_slide": "slides.predict_slide",
    "probe": "training.probe",
    "test": "training.predict",
    "validate": "training.predict",
}


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *__all__})
