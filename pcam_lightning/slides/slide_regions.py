"""Regions of a slide, as batches for the network."""

import threading
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import Dataset

from pcam_lightning.data.loader import ThreadedLoader
from pcam_lightning.slides.patch_grid import PATCH, PatchGrid, Region
from pcam_lightning.slides.slide_reader import SlideReader
from pcam_lightning.utils.errors import UserError

RegionBatch = dict[str, Any]


class SlideRegions(Dataset[RegionBatch]):
    """The regions of a slide; each thread that reads them opens the slide itself.

    Args:
        path: of the slide.
        grid: of its patches.
        regions: what to read.
        squares: which are predicted, bool, (rows, columns) of the grid.
    """

    def __init__(self, path: Path, grid: PatchGrid, regions: list[Region], squares: np.ndarray) -> None:
        self.path, self.grid, self.regions, self.squares = path, grid, regions, squares
        self._opened = threading.local()

    def __getstate__(self) -> dict[str, object]:
        """Return what another process needs: it opens the slide itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what another process has sent."""
        self.__dict__.update(state, _opened=threading.local())

    def __len__(self) -> int:
        """Return their number."""
        return len(self.regions)

    def __getitem__(self, index: int) -> RegionBatch:
        """Read a region.

        Returns:
            `image`, uint8 (H, W, 3); `row` and `column`, int64 (N,), of its squares within the region; `square`, int64
            (N,), of the same squares within the grid, row by row; and `damaged`, int64 (M,), of squares that cannot be
            read. Only `error`, a text, where the slide cannot be opened: all processes that predict it learn of it.
        """
        region = self.regions[index]
        row, column = np.nonzero(self.squares[region.slice])
        try:
            slide = getattr(self._opened, "slide", None) or SlideReader(self.path, self.grid.slide_mpp)
            self._opened.slide = slide
            slide.damaged.clear()  # of an earlier region, whose blocks may reach into this one
            pixels = self.grid.read(slide, region)
        except UserError as error:
            return {"error": str(error)}
        square = (region.row + row) * self.grid.columns + region.column + column
        lost = self.grid.damaged(slide.damaged, region.row + row, region.column + column)
        arrays = {"row": row[~lost], "column": column[~lost], "square": square[~lost], "damaged": square[lost]}
        return {name: torch.from_numpy(array) for name, array in (arrays | {"image": pixels.copy()}).items()}


class SlideDataModule(L.LightningDataModule):
    """Loads the regions of a slide, each in one of the trainer's processes.

    Args:
        regions: of the slide.
        num_workers: threads that read ahead, for each process of the trainer.
    """

    def __init__(self, regions: SlideRegions, num_workers: int) -> None:
        super().__init__()
        self.regions, self.num_workers = regions, num_workers

    def predict_dataloader(self) -> ThreadedLoader:
        """Return the regions of this process."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return ThreadedLoader(
            self.regions,
            self.num_workers,
            # A process without regions would end the others: it reads the last one once more.
            sampler=range(rank, len(self.regions), world) or range(len(self.regions) - 1, len(self.regions)),
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )


def cut_patches(image: torch.Tensor, row: torch.Tensor, column: torch.Tensor, stride: int) -> torch.Tensor:
    """Cut patches out of a region.

    Args:
        image: uint8, (H, W, 3).
        row: of the patches, int64 (N,).
        column: of the patches, int64 (N,).
        stride: distance of neighboring patches, in pixels.

    Returns:
        uint8, (N, 96, 96, 3), copied from one array in which they overlap.
    """
    views = image.unfold(0, PATCH, stride).unfold(1, PATCH, stride)  # (R, C, 3, 96, 96), no pixel copied
    return views[row, column].permute(0, 2, 3, 1)
