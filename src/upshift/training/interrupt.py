"""Ctrl-C and SIGTERM as a request that training answers between two steps, or as its end at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StoppedAtOnce(KeyboardInterrupt):
    """A signal ended what was under way; its text is the signal's name."""


class StopRequest:
    """Set by the first signal; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextlib.contextmanager
def stop_on_signals(*, at_once: bool = False) -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM within this context; outside the main thread signals are left alone.

    Args:
        at_once: Raise `StoppedAtOnce` where the signal comes. The request is set all the same: Python drops what is
            raised while it destroys an object.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_name = signal.Signals(number).name
        if at_once:
            raise StoppedAtOnce(request.signal_name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
