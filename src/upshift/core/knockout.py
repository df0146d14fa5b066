"""Who of many that are timed in the same rounds cannot win any more."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from statistics import median

import numpy as np

from upshift.core.looks import least_rounds, plan_looks
from upshift.core.stats import Interval, walsh_interval
from upshift.core.units import counted, factor, percent, plain

_FACTOR_FROM = 2.0


class Knockout:
    """Drops contenders from interleaved rounds as soon as they are proven slower than the leader.

    After certain rounds (see `plan_looks`) each contender is compared with whoever leads then, by the signed-rank
    interval of the log-ratios of all rounds. One that is as fast as the fastest can be dropped by mistake only if one
    of the others seems faster than it; the error is divided among those, so that it stays to the end with the stated
    confidence, however many looks and contenders there are.

    Attributes:
        out: Why each contender that was dropped cannot win.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        max_rounds: int,
        keep: Collection[str] = (),
        may_win: Collection[str] | None = None,
        confidence: float = 0.95,
    ) -> None:
        """Make one for a series of rounds.

        Args:
            names: All that are timed, at least one.
            max_rounds: The last round.
            keep: Those that stay whatever their speed: the reference that others are compared with.
            may_win: Those that a slower one gives way to; all by default. One that is timed for information
                only drops nobody.
            confidence: That one that is as fast as the fastest of those that may win stays.
        """
        each = 1.0 - 2.0 * (1.0 - confidence) / max(1, len(names) - 1)
        self._num_outside = plan_looks(max_rounds, each) if max_rounds >= least_rounds(each) else {}
        self._keep, self._may_win = frozenset(keep), frozenset(names if may_win is None else may_win)
        self._logs: dict[str, list[float]] = {name: [] for name in names}
        self._logs_of_dropped: dict[str, list[float]] = {}
        self.out: dict[str, str] = {}

    def add(self, seconds: Mapping[str, float]) -> list[str]:
        """One round: the seconds of all that are still in it; returns who is out now.

        A contender that has no time in a round (it crashed) is taken out of the comparison.
        """
        self._logs = {name: [*logs, math.log(seconds[name])] for name, logs in self._logs.items() if name in seconds}
        num_rounds = max((len(logs) for logs in self._logs.values()), default=0)
        rivals = [name for name in self._logs if name in self._may_win]
        if num_rounds not in self._num_outside or not rivals:
            return []
        leader = min(rivals, key=lambda name: median(self._logs[name]))
        dropped = [name for name in self._logs if name not in self._keep and self._is_beaten(name, leader, num_rounds)]
        for name in dropped:
            self._logs_of_dropped[name] = self._logs.pop(name)
        return dropped

    def speedup(self, name: str, reference: str) -> Interval:
        """How many times faster than `reference` one that was dropped is, by the rounds until then.

        How many rounds these are depends on what they showed, for which the interval of one look would be too narrow:
        like the comparisons themselves it holds at all looks together, at a two-sided 2 · confidence − 1 or more.

        Args:
            name: One of `out`.
            reference: One that is still in, as those that are kept.
        """
        logs = np.asarray(self._logs_of_dropped[name])
        ratios = np.asarray(self._logs[reference][: logs.size]) - logs
        return walsh_interval(ratios, self._num_outside[logs.size]).exp()

    def _is_beaten(self, name: str, leader: str, num_rounds: int) -> bool:
        if name == leader:
            return False
        ratios = np.asarray(self._logs[name]) - np.asarray(self._logs[leader])
        behind = walsh_interval(ratios, self._num_outside[num_rounds])
        if behind.low <= 0.0:
            return False
        least = behind.exp().low
        by = factor(least) if least >= _FACTOR_FROM else percent(least - 1.0)
        self.out[name] = plain(f"slower than {leader} by at least {by} after {counted(num_rounds, 'round')}")
        return True
