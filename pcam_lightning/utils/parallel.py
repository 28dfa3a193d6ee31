"""Parallel maps over independent tasks, with ordered results."""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, wait
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import Pipe, connection, current_process, resource_tracker
from typing import Any, TypeVar

from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.signals import stop_if_asked

Item = TypeVar("Item")
Result = TypeVar("Result")
_POLL = 0.1  # seconds between signal checks while waiting for a result


@contextmanager
def process_map(most: int, chunksize: int = 1) -> Iterator[Callable[..., Iterator[Any]]]:
    """Start one process per core and yield a `map` that runs on them; the processes end with the block.

    Uses joblib's processes, which take a second to start. They are not forked, because a fork does not copy the threads
    of libraries. They do not import `__main__`, which would run scripts without a guard again.

    Args:
        most: maximum number of processes. Tasks run in this process if `most` is 1, on a single core, and in daemons,
            which cannot start processes.
        chunksize: number of tasks sent to a process at once.

    Raises:
        UserError: a process was killed (raised by the map).
    """
    if most <= 1 or current_process().daemon:
        yield _map_here
        return
    from joblib.externals.loky import ProcessPoolExecutor, cpu_count

    workers = min(cpu_count(), most)
    if workers <= 1:
        yield _map_here
        return
    reader, writer = Pipe(duplex=False)  # the other end closes when this process ends for any reason
    with reader, writer:
        pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(reader,))
        try:
            with _ctrl_c_blocked():
                pool.submit(os.getpid)  # starts all processes
            yield partial(_map_on, pool, workers, chunksize)
        finally:
            pool.shutdown(kill_workers=True)


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Map on an executor in order, with at most `ahead` pending results.

    Raises:
        KeyboardInterrupt: a signal was received, see `catch_signals`.
    """
    pending: deque[Any] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    finally:
        for future in pending:
            future.cancel()


def _result(future: Any) -> Any:
    while not wait([future], _POLL).done:
        stop_if_asked()
    stop_if_asked()
    return future.result()


def _map_here(function: Callable[..., Any], *iterables: Iterable[Any]) -> Iterator[Any]:
    for result in map(function, *iterables):
        stop_if_asked()
        yield result


def _map_on(
    pool: Executor, workers: int, chunksize: int, function: Callable[..., Any], *iterables: Iterable[Any]
) -> Iterator[Any]:
    tasks = zip(*iterables, strict=False)
    chunks = iter(lambda: list(islice(tasks, chunksize)), [])
    try:
        for results in map_ahead(pool, partial(_run, function), chunks, 2 * workers):
            yield from results
    except BrokenExecutor:
        raise UserError(
            "a worker process was killed, possibly because the system ran out of memory; run the command again."
        ) from None


def _run(function: Callable[..., Any], tasks: list[tuple[Any, ...]]) -> list[Any]:
    return [function(*task) for task in tasks]


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Block Ctrl-C in processes started here, because the terminal can send it before `_start` has run."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # starting it unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(parent: connection.Connection) -> None:
    """Ignore signals, which the parent handles, and end with the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=lambda: (connection.wait([parent]), os._exit(1)), daemon=True).start()
