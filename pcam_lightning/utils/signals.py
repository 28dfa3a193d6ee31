"""Ctrl-C and SIGTERM: recorded on arrival and raised at safe points."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_GRACE = 3.0  # seconds to reach `stop_if_asked` before the command is interrupted anywhere
_received: list[int] = []  # signals received by the current command


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if a signal was received; loops call this between steps.

    Raises:
        KeyboardInterrupt: `catch_signals` has recorded SIGINT or SIGTERM.
    """
    if _received and threading.current_thread() is threading.main_thread():
        _set_timer(0)  # no time limit for cleanup
        raise KeyboardInterrupt


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Record SIGINT and SIGTERM, so that `stop_if_asked` raises KeyboardInterrupt.

    The handler of the first signal does not raise. Python can run it inside a callback or destructor of another
    library, which would drop the exception. KeyboardInterrupt is raised at once by a second signal, or after a few
    seconds without an exception or a call of `stop_if_asked`.

    Yields:
        The received signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []  # only the main thread can set handlers
        return

    def note(number: int, frame: Any) -> None:
        _received.append(number)
        if number not in (signal.SIGINT, signal.SIGTERM) and sys.exc_info()[0] is not None:
            return  # the timer fired during cleanup
        if len(_received) > 1:
            raise KeyboardInterrupt
        _set_timer(_GRACE)

    _received.clear()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        numbers.append(signal.SIGALRM)  # set early, because Lightning restores the handlers it finds
    before: dict[int, Any] = {number: signal.signal(number, note) for number in numbers}
    try:
        yield _received
    finally:
        _set_timer(0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def _set_timer(seconds: float) -> None:
    """Send SIGALRM after a number of seconds; 0 cancels it."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)
