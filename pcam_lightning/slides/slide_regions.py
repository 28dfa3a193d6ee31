"""Regions of a slide as batches for a network."""

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
    """The regions of a slide; each reading thread opens the slide itself.

    Args:
        path: path of the slide.
        grid: patch grid of the slide.
        regions: regions to read.
        squares: mask of the squares to predict, bool, (rows, columns) of the grid.
    """

    def __init__(self, path: Path, grid: PatchGrid, regions: list[Region], squares: np.ndarray) -> None:
        self.path, self.grid, self.regions, self.squares = path, grid, regions, squares
        self._opened = threading.local()

    def __getstate__(self) -> dict[str, object]:
        """Return the state without open slides, which other processes cannot share."""
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state in another process."""
        self.__dict__.update(state, _opened=threading.local())

    def __len__(self) -> int:
        """Return the number of regions."""
        return len(self.regions)

    def __getitem__(self, index: int) -> RegionBatch:
        """Read a region.

        Returns:
            `image`, uint8 (H, W, 3); `row` and `column`, int64 (N,), position of each square in the region; `square`,
            int64 (N,), index of each square in the grid, row by row; and `damaged`, int64 (M,), indices of unreadable
            squares. If the slide cannot be opened, only `error`, a message for all processes.
        """
        region = self.regions[index]
        row, column = np.nonzero(self.squares[region.slice])
        try:
            slide = getattr(self._opened, "slide", None) or SlideReader(self.path, self.grid.slide_mpp)
            self._opened.slide = slide
            slide.damaged.clear()  # damage of the previous region, which may overlap this one
            pixels = self.grid.read(slide, region)
        except UserError as error:
            return {"error": str(error)}
        square = (region.row + row) * self.grid.columns + region.column + column
        lost = self.grid.damaged(slide.damaged, region.row + row, region.column + column)
        arrays = {"row": row[~lost], "column": column[~lost], "square": square[~lost], "damaged": square[lost]}
        return {name: torch.from_numpy(array) for name, array in (arrays | {"image": pixels.copy()}).items()}


class SlideDataModule(L.LightningDataModule):
    """Distributes the regions of a slide over the processes of a trainer.

    Args:
        regions: regions of the slide.
        num_workers: number of threads per process that read ahead.
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
            # A process without regions would stop the others, so it reads the last region again.
            sampler=range(rank, len(self.regions), world) or range(len(self.regions) - 1, len(self.regions)),
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )


def cut_patches(image: torch.Tensor, row: torch.Tensor, column: torch.Tensor, stride: int) -> torch.Tensor:
    """Cut patches from a region.

    Args:
        image: uint8, (H, W, 3).
        row: rows of the patches, int64 (N,).
        column: columns of the patches, int64 (N,).
        stride: distance between patches, in pixels.

    Returns:
        Patches, uint8, (N, 96, 96, 3), copied from the region.
    """
    views = image.unfold(0, PATCH, stride).unfold(1, PATCH, stride)  # (R, C, 3, 96, 96), a view without a copy
    return views[row, column].permute(0, 2, 3, 1)
