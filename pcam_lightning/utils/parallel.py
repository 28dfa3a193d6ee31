"""A map over independent tasks on all cores, with results in order."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from signal import SIG_DFL, SIG_IGN, SIGINT, SIGTERM, signal
from typing import Any


@contextmanager
def process_map(most: int, chunksize: int = 1) -> Iterator[Callable[..., Iterator[Any]]]:
    """Start a process for each core and hand out a `map` that runs on them; none is left when the block ends.

    Args:
        most: processes that are of use; with 1, or one core, the tasks run in this process.
        chunksize: tasks handed to a process at a time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if min(cores, most) <= 1:
        yield map
        return
    with ProcessPoolExecutor(min(cores, most), initializer=_start) as pool:
        try:
            yield partial(pool.map, chunksize=chunksize)
        finally:
            pool.shutdown(cancel_futures=True)


def _start() -> None:
    """Leave signals to the parent process, and end when it ends."""
    signal(SIGINT, SIG_IGN)
    signal(SIGTERM, SIG_DFL)
    if parent := multiprocessing.parent_process():
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
