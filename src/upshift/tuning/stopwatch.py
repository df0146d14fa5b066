"""Seconds that training steps take, of one meaning whether a device makes them at once or is only given them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from upshift.core import clock


@dataclass(frozen=True)
class Measured:
    """What a step takes.

    Attributes:
        step_seconds: Of the step itself: of several, their median.
        data_seconds: Of the wait for its batch: of several, their mean.
        page_faults: Pages of memory that the system maps anew in it; 0 on accelerators.
        is_estimated: Whether no such step was timed, and this follows from what others took.
    """

    step_seconds: float
    data_seconds: float
    page_faults: float = 0.0
    is_estimated: bool = False

    @property
    def seconds(self) -> float:
        """Of a step with its wait."""
        return self.step_seconds + self.data_seconds

    def slower(self, times: float) -> Measured:
        """A step that takes so many times as long: an estimate."""
        return Measured(self.step_seconds * times, self.data_seconds * times, self.page_faults, is_estimated=True)


class Stopwatch:
    """Adds up what the steps of a loop take, their waits for batches included.

    A CPU has made a step when the call for it returns: its seconds are those of the calls. An accelerator then still
    has it before it, and a call that returned at once says nothing; a later call, or whatever reads a value back, waits
    in its stead. There time runs on from step to step, whoever waits, until the device has done all that it was
    given. What the loop does beside steps (evaluate, save, check a candidate) is left out on both.

    Args:
        is_asynchronous: Whether the device is given steps, and makes them later.
    """

    def __init__(self, *, is_asynchronous: bool) -> None:
        self._is_asynchronous = is_asynchronous
        self._seconds = 0.0
        self._since: float | None = None
        self._is_first = False

    def begin(self) -> None:
        """A step is about to be asked for."""
        if self._is_asynchronous and self._since is None:
            self._since, self._is_first = clock.now(), True

    def add(self, *, step_seconds: float, data_seconds: float) -> None:
        """The call for a step has returned after `step_seconds`, and its batch was waited for before."""
        if not self._is_asynchronous:
            self._seconds += step_seconds + data_seconds
        elif self._is_first:  # the wait was before the time that runs
            self._seconds, self._is_first = self._seconds + data_seconds, False

    def pause(self, wait: Callable[[], object]) -> None:
        """The loop does something else for a while.

        Args:
            wait: Returns when the device has done all that it was given.
        """
        if self._since is not None:
            wait()
            self._seconds += clock.now() - self._since
            self._since = None

    def take(self, wait: Callable[[], object]) -> float:
        """Seconds since the last time that they were taken; see `pause` for `wait`."""
        was_running = self._since is not None
        self.pause(wait)
        if was_running:
            self._since = clock.now()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
