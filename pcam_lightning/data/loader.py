"""A data loader whose workers are threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pcam_lightning.utils.parallel import map_ahead
from pcam_lightning.utils.signals import stop_if_asked


class ThreadedLoader(DataLoader[Any]):
    """Reads whole batches ahead, in the sampler's order.

    Memory maps and slides are read without Python's lock, so that threads do what PyTorch's worker processes do. They
    start at once, hand batches over without a copy, and fork nothing: a forked process waits forever for locks of
    threads that it does not have, and a spawned one imports torch and the script that called it.

    Args:
        dataset: an item is a batch, a dict; several threads read it at once.
        threads: that read ahead; with 0 a batch is read when it is asked for.
        options: `sampler` and `pin_memory` of DataLoader.
    """

    def __init__(self, dataset: Dataset[Any], threads: int = 0, **options: Any) -> None:
        super().__init__(dataset, **{**options, "batch_size": None})
        self.threads = threads

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield batches; a signal ends the loop between two of them.

        Nothing is read before the first is asked for: Lightning makes the iterator before it sets the sampler's epoch.
        """
        if not self.threads:
            for index in self.sampler:
                stop_if_asked()
                yield self._read(index)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            yield from map_ahead(pool, self._read, self.sampler, 2 * self.threads)

    def _read(self, index: Any) -> Any:
        batch = self.dataset[index]
        if not self.pin_memory:
            return batch
        return {name: value.pin_memory() if torch.is_tensor(value) else value for name, value in batch.items()}
