"""Ctrl-C and SIGTERM: noted when they arrive, and raised where nothing is lost."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_GRACE = 3.0  # seconds after which a command that reaches no `stop_if_asked` ends wherever it is
_received: list[int] = []  # signals that the command in progress has received


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if a signal has arrived; loops call this between two steps.

    Raises:
        KeyboardInterrupt: `catch_signals` has noted SIGINT or SIGTERM.
    """
    if _received and threading.current_thread() is threading.main_thread():
        _set_timer(0)  # what cleans up now may take its time
        raise KeyboardInterrupt


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM, for `stop_if_asked` to raise KeyboardInterrupt.

    The first signal raises nothing itself: Python runs a handler between any two instructions, also within a callback
    or a destructor of another library, which prints the exception and drops it. A second signal, or a few seconds
    without a call of `stop_if_asked` or an exception, raises KeyboardInterrupt at once.

    Yields:
        The signals that have arrived.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []  # Python lets the main thread alone set handlers
        return

    def note(number: int, frame: Any) -> None:
        _received.append(number)
        if number not in (signal.SIGINT, signal.SIGTERM) and sys.exc_info()[0] is not None:
            return  # the timer, while an exception is cleaned up after
        if len(_received) > 1:
            raise KeyboardInterrupt
        _set_timer(_GRACE)

    _received.clear()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        numbers.append(signal.SIGALRM)  # from the start: Lightning puts handlers back that it has found
    before: dict[int, Any] = {number: signal.signal(number, note) for number in numbers}
    try:
        yield _received
    finally:
        _set_timer(0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def _set_timer(seconds: float) -> None:
    """Send SIGALRM in so many seconds; with 0, send none."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)
