"""Whether steps are still as fast as when their plan was chosen."""

from __future__ import annotations

import statistics

SLOWER = 1.5
"""A window this many times slower than expected is a slow one: well beyond what a shared machine's clock drifts."""
WINDOW_STEPS = 50
WINDOW_SECONDS = 1.0
SLOW_WINDOWS = 3
MOST_ALARMS = 2


class Watch:
    """Raises an alarm when several windows of steps in a row were much slower than expected; a few times at most.

    Args:
        expected_seconds: Of a step.
        of_single_steps: Whether each step has a time of its own; else, as on an accelerator, which makes them later
            than they are asked for, only many together have.
    """

    def __init__(self, expected_seconds: float, *, of_single_steps: bool = True) -> None:
        self.expected_seconds: float | None = expected_seconds
        self._average = statistics.median if of_single_steps else statistics.fmean
        self._window: list[float] = []
        self._total = 0.0
        self._slow: list[float] = []
        self._num_alarms = 0

    def expect_anew(self) -> None:
        """Expect of the following steps what the first window of them takes: they are others than those before."""
        self.expected_seconds = None
        self._window, self._total, self._slow = [], 0.0, []

    def slowdown(self, step_seconds: float) -> float | None:
        """Note a step; how many times slower steps have become where that is an alarm, else None."""
        self._window.append(step_seconds)
        self._total += step_seconds
        if len(self._window) < WINDOW_STEPS or self._total < WINDOW_SECONDS:
            return None
        typical = self._average(self._window)
        self._window, self._total = [], 0.0
        if self.expected_seconds is None:
            self.expected_seconds = typical
        slower = typical / self.expected_seconds
        self._slow = [*self._slow, slower] if slower > SLOWER else []
        if len(self._slow) < SLOW_WINDOWS or self._num_alarms == MOST_ALARMS:
            return None
        found, self._slow = statistics.median(self._slow), []
        self._num_alarms += 1
        return found
