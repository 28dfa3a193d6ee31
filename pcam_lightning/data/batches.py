"""Packed patches -> uint8 batches, in an order that follows from (seed, epoch), for one of several processes."""

from collections.abc import Iterator
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from pcam_lightning.data.packed_store import PackedStore


class Batch(TypedDict):
    """What every loader yields.

    `image` uint8 (B, 96, 96, 3), `row` int64 (B,) of `PCamDataModule.ids`, where labels are known `label` float32 (B,),
    and of training patches with weights `weight` float32 (B,).
    """

    image: torch.Tensor
    row: torch.Tensor
    label: torch.Tensor
    weight: NotRequired[torch.Tensor]


class Patches(Dataset[Batch]):
    """Patches of a packed store; an index is a whole batch of them.

    Args:
        store: the packed images. They stay mapped even if another process replaces them.
        rows: row of the store for each patch, shape (N,).
        labels: label of each patch, shape (N,); None where unknown.
        first_row: row of the store's first id in `PCamDataModule.ids`.
        weights: factor of the training loss of each patch, shape (N,); None for 1 of all.
    """

    def __init__(
        self,
        store: PackedStore,
        rows: np.ndarray,
        labels: np.ndarray | None,
        first_row: int,
        weights: np.ndarray | None = None,
    ) -> None:
        self.store = store
        self.rows = rows
        self.labels = labels
        self.first_row = first_row
        self.weights = weights

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.rows)

    def __getitem__(self, batch: np.ndarray) -> Batch:
        """Gather the patches at the given indices, int64 (B,), in one sweep over the memory map."""
        rows = self.rows[batch]
        gathered: Batch = {  # type: ignore[typeddict-item]
            "image": torch.from_numpy(np.take(self.store.images, rows, axis=0)),
            "row": torch.from_numpy(rows + self.first_row),
        }
        if self.labels is not None:
            gathered["label"] = torch.from_numpy(self.labels[batch])
        if self.weights is not None:
            gathered["weight"] = torch.from_numpy(self.weights[batch])
        return gathered

    def ids(self, batch: np.ndarray) -> np.ndarray:
        """Return the ids of the patches at the given indices, text, shape (B,)."""
        ids: np.ndarray = self.store.ids[self.rows[batch]]
        return ids


class JoinedPatches(Dataset[Batch]):
    """Patches of several packed stores, one after another; an index is a whole batch of them.

    Args:
        parts: labeled patches of each store.
    """

    def __init__(self, parts: "list[Patches | JoinedPatches]") -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        """Return the number of patches."""
        return int(self.ends[-1])

    def _split(self, batch: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for each part the positions in a batch that are of it, and their indices within it."""
        number = np.searchsorted(self.ends, batch, side="right")
        starts = [0, *self.ends[:-1]]
        positions = [np.flatnonzero(number == one) for one in range(len(self.parts))]
        return [(position, batch[position] - start) for position, start in zip(positions, starts, strict=True)]

    def __getitem__(self, batch: np.ndarray) -> Batch:
        """Gather the patches at the given indices, int64 (B,), in their order; this copies a batch once more."""
        split = self._split(batch)
        gathered = [part[index] for part, (_, index) in zip(self.parts, split, strict=True)]
        order = torch.from_numpy(np.argsort(np.concatenate([position for position, _ in split])))
        joined: Batch = {
            "image": torch.cat([one["image"] for one in gathered])[order],
            "row": torch.cat([one["row"] for one in gathered])[order],
            "label": torch.cat([one["label"] for one in gathered])[order],
        }
        if any("weight" in one for one in gathered):
            weights = [one.get("weight", torch.ones(len(one["row"]))) for one in gathered]
            joined["weight"] = torch.cat(weights)[order]
        return joined

    def ids(self, batch: np.ndarray) -> np.ndarray:
        """Return the ids of the patches at the given indices, text, shape (B,)."""
        split = self._split(batch)
        ids = np.concatenate([part.ids(index) for part, (_, index) in zip(self.parts, split, strict=True)])
        ordered: np.ndarray = ids[np.argsort(np.concatenate([position for position, _ in split]))]
        return ordered


class BatchSampler(Sampler[np.ndarray]):
    """Yields the indices of one batch after another, for this process among several.

    Args:
        count: number of patches.
        batch_size: patches a batch.
        seed: of the shuffle, which follows from (seed, epoch) alone; None for no shuffle.
        rank: of this process.
        world_size: number of processes. With a shuffle, all get the same number of whole batches, for which a few
            patches stand twice; without, each patch is seen by exactly one, and the last batch may be smaller.
    """

    def __init__(self, count: int, batch_size: int, seed: int | None, rank: int = 0, world_size: int = 1) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; Lightning calls this before each."""
        self.epoch = epoch

    def _share(self) -> np.ndarray:
        if self.seed is None:
            return np.arange(self.count)[self.rank :: self.world_size]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        # A last batch of another shape would cost a compiled network another compilation; one patch alone could not
        # be normalized by its batch at all. Fewer patches than a batch stay as few.
        whole = self.world_size * min(self.batch_size, -(-self.count // self.world_size))
        return np.resize(order, -(-self.count // whole) * whole)[self.rank :: self.world_size]

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._share()) // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield int64 arrays of indices."""
        share = self._share()
        for start in range(0, len(share), self.batch_size):
            yield share[start : start + self.batch_size]
