"""SlideOptions: options of slide prediction."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pcam_lightning.slides.patch_grid import CENTER
from pcam_lightning.utils.errors import UserError, check_number
from pcam_lightning.utils.system import supported_precision

if TYPE_CHECKING:
    import lightning as L


@dataclass(frozen=True)
class SlideOptions:
    """Options of slide prediction.

    Args:
        mpp: um per pixel of the slide's finest level, or a CSV with slide,mpp; by default the scale stated by the file.
            A number that differs from the file is an error; a row of the CSV overrides the file.
        stride: distance between patches in pixels of 0.972 um, a multiple of 32; more than 32 leaves gaps.
        tissue: predict only tissue (auto), or the whole slide (none).
        regions: regions of interest of a slide, GeoJSON or ASAP's XML, or a folder of files named after the slides;
            only squares with centers inside are predicted.
        tta: test-time augmentation, none or d4; by default that of the run.
        threshold: lowest probability of a tumor square, for outlines, lesions and areas.
        prior: expected share of tumor in the tissue, to correct the probabilities.
        calibration: calibration.json of `evaluate_slides`, to correct the probabilities instead.
        batch_size: patches per forward pass.
        num_workers: number of threads per device that read ahead.
        accelerator: argument of Lightning's Trainer.
        devices: argument of Lightning's Trainer.
        num_nodes: argument of Lightning's Trainer; all nodes need the same output folder.
        precision: argument of Lightning's Trainer.

    Raises:
        UserError: a value is out of range.
    """

    mpp: float | Path | None = None
    stride: int = CENTER
    tissue: Literal["auto", "none"] = "auto"
    regions: Path | None = None
    tta: Literal["none", "d4"] | None = None
    threshold: float = 0.5
    prior: float | None = None
    calibration: Path | None = None
    batch_size: int = 256
    num_workers: int = 2
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    precision: str = "16-mixed"

    def __post_init__(self) -> None:
        """Check values."""
        if self.stride < CENTER or self.stride % CENTER:
            raise UserError(f"`stride` {self.stride}: should be a multiple of {CENTER}, the side of a patch center.")
        for name in ("threshold", "prior"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UserError(f"`{name}` {value}: should be more than 0 and less than 1.")
        if self.prior is not None and self.calibration is not None:
            raise UserError("`prior`, `calibration`: only one of them can be set.")
        for name in ("calibration", "regions"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(path).expanduser().absolute())
        check_number("batch_size", self.batch_size, 1, whole=True)
        check_number("num_workers", self.num_workers, 0, whole=True)

    def build_trainer(self, callback: "L.Callback") -> "L.Trainer":
        """Build the trainer for prediction.

        Raises:
            UserError: this machine does not support the options.
        """
        import lightning as L  # deferred: the command line reads the options without it
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        try:
            return L.Trainer(
                accelerator=self.accelerator,
                devices=self.devices,
                num_nodes=self.num_nodes,
                precision=supported_precision(self.accelerator, self.precision),
                callbacks=[callback],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,  # SlideDataModule distributes the regions
            )
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"`accelerator`, `devices`, `num_nodes`, `precision`: {error}") from error
