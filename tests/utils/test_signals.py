"""A signal is never lost, and nothing is interrupted where it would be."""

import ctypes
import os
import signal
import sys
import weakref

import lightning as L
import pytest

from pcam_lightning.utils import signals
from pcam_lightning.utils.signals import catch_signals, stop_if_asked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


class _Object:
    pass


def _in_a_callback(number: int) -> None:
    ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), number))()


def _in_a_finalizer(number: int) -> None:
    one = _Object()
    reference = weakref.ref(one, lambda _: os.kill(os.getpid(), number))
    del one
    assert reference() is None


@pytest.mark.parametrize("send", [_in_a_callback, _in_a_finalizer])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_callback_is_raised_at_the_next_safe_point(
    send: "object", number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with catch_signals() as received:
        stop_if_asked()
        assert callable(send)
        send(number)
        with pytest.raises(KeyboardInterrupt):
            stop_if_asked()
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0  # what cleans up is not interrupted
        assert received == [number]
    stop_if_asked()
    assert capsys.readouterr().err == ""


def test_a_second_signal_is_raised_at_once() -> None:
    with catch_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGTERM, signal.SIGINT]


def test_a_command_without_safe_points_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_GRACE", 0.01)
    before = signal.getsignal(signal.SIGALRM)
    with catch_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            all(iter(lambda: True, False))  # forever
        assert received[0] == signal.SIGTERM
    assert signal.getsignal(signal.SIGALRM) == before


def test_what_cleans_up_after_an_exception_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_GRACE", 0.01)
    with catch_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            raise ValueError
        except ValueError:
            all(iter(lambda: len(received) < 2, False))  # until the timer has come
        assert received == [signal.SIGTERM, signal.SIGALRM]


def test_a_signal_late_in_a_stage_of_lightning_ends_the_command_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_GRACE", 0.01)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    connector = trainer._signal_connector
    with catch_signals() as received:
        connector.register_signal_handlers()
        os.kill(os.getpid(), signal.SIGINT)
        connector.teardown()  # puts back what it has found
        with pytest.raises(KeyboardInterrupt):
            all(iter(lambda: True, False))  # forever
        assert received[0] == signal.SIGINT
