"""When something that is called again and again has reached its steady speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

_STILL_GAINS = 0.97
_NUM_LEVEL_TURNS = 2


def is_duration(seconds: float) -> bool:
    """Whether a clock may give this for something that was done: positive, finite and a number."""
    return 0.0 < seconds < math.inf


class WarmUp:
    """Follows the first calls of a subject until they no longer get faster.

    A first call compiles, allocates, reads from disk and fills caches; some subjects settle at once, others
    over seconds. Calls come in turns of any length. The warm-up is over when two turns in a row have not beaten the
    fastest turn before by 3 %, and `min_seconds` were spent; or, steady or not, after `max_seconds` or
    `max_turns`. What is decided from warm-up calls alone cannot favour anyone in the rounds that follow.

    Attributes:
        seconds_per_call: Median of the last turn; NaN while no turn had a possible time.
        is_steady: Whether the subject settled, rather than the limit ending it.
    """

    def __init__(self, *, min_seconds: float, max_seconds: float, max_turns: int = 200) -> None:
        self._min_seconds, self._max_seconds, self._max_turns = min_seconds, max_seconds, max_turns
        self._spent, self._best = 0.0, math.inf
        self._num_turns = self._num_level = 0
        self.seconds_per_call = math.nan

    @property
    def is_steady(self) -> bool:
        """Whether the subject no longer gets faster."""
        return self._num_level >= _NUM_LEVEL_TURNS and self._spent >= self._min_seconds

    @property
    def is_over(self) -> bool:
        """Whether the rounds may begin."""
        return self.is_steady or self._spent >= self._max_seconds or self._num_turns >= self._max_turns

    def add(self, seconds: Sequence[float]) -> None:
        """The seconds of each call of a turn; impossible times are passed over."""
        self._num_turns += 1
        possible = [value for value in seconds if is_duration(value)]
        if not possible:
            return
        self._spent += sum(possible)
        self.seconds_per_call = median(possible)
        self._num_level = 0 if self.seconds_per_call <= _STILL_GAINS * self._best else self._num_level + 1
        self._best = min(self._best, self.seconds_per_call)
