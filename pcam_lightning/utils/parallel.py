"""A map over independent tasks on all cores, with results in order."""

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
_POLL = 0.1  # seconds between looks for a signal while a result is waited for


@contextmanager
def process_map(most: int, chunksize: int = 1) -> Iterator[Callable[..., Iterator[Any]]]:
    """Start a process for each core and hand out a `map` that runs on them; none is left when the block ends.

    The processes are joblib's: none is forked from this one, whose libraries may have threads that a fork does not
    copy, and none imports `__main__` again, which runs a script that has no guard a second time. They take a second to
    start.

    Args:
        most: processes that are of use. With 1, on one core, and in a daemon, such as a process of
            `multiprocessing.Pool`, which may start none, the tasks run in this process.
        chunksize: tasks handed to a process at a time.

    Raises:
        UserError: from the map, a process was killed.
    """
    if most <= 1 or current_process().daemon:
        yield _map_here
        return
    from joblib.externals.loky import ProcessPoolExecutor, cpu_count

    workers = min(cpu_count(), most)
    if workers <= 1:
        yield _map_here
        return
    reader, writer = Pipe(duplex=False)  # closed at the other end when this process ends, whatever ends it
    with reader, writer:
        pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(reader,))
        try:
            with _ctrl_c_blocked():
                pool.submit(os.getpid)  # starts all of them
            yield partial(_map_on, pool, workers, chunksize)
        finally:
            pool.shutdown(kill_workers=True)


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Map on an executor, in order, with at most so many results that nothing has asked for yet.

    Raises:
        KeyboardInterrupt: a signal has arrived, see `catch_signals`.
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
            "a worker process was killed, perhaps by the system because memory is short; run it again."
        ) from None


def _run(function: Callable[..., Any], tasks: list[tuple[Any, ...]]) -> list[Any]:
    return [function(*task) for task in tasks]


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Block Ctrl-C for processes that start here: the terminal sends it to them too, before `_start` has run."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # whose start unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(parent: connection.Connection) -> None:
    """Leave signals to the parent process, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=lambda: (connection.wait([parent]), os._exit(1)), daemon=True).start()
