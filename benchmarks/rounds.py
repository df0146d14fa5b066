"""Contenders side by side: interleaved rounds in random order, ratios with intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from record import say
from upshift.core.stats import Interval, quantile
from upshift.core.timing import TimingConfig, TimingResult, measure_interleaved, speedup

Turn = Callable[[], float]
"""One turn of a contender: does its work once and returns the seconds that count."""


@dataclass(frozen=True)
class Contest:
    """What came of the rounds.

    Attributes:
        timings: Of each contender, one turn a round.
        first_seconds: Wall time of each contender's first turn, which does not count: it compiles and warms up.
    """

    timings: Mapping[str, TimingResult]
    first_seconds: Mapping[str, float]

    def median(self, name: str) -> float:
        """Median seconds of a turn."""
        return quantile(self.timings[name].medians(), 0.5)

    def times_as_fast(self, name: str, reference: str) -> Interval:
        """How many times the speed of `reference` a contender has, with its 95 % interval."""
        return speedup(self.timings[reference], self.timings[name])

    def raw(self) -> dict[str, Any]:
        """All turns, for the result file."""
        return {
            name: {"seconds": timing.medians(), "first_seconds": self.first_seconds[name]}
            for name, timing in self.timings.items()
        }


def contest(
    contenders: Mapping[str, Turn], *, rounds: int, budget_seconds: float | None = None, seed: int = 0
) -> Contest:
    """Run every contender once a round, in an order drawn anew for each, after a warm-up of each.

    Args:
        contenders: By name.
        rounds: How many rounds; 6 are the fewest that give an interval.
        budget_seconds: No further round is begun after this long, once there are 8; None is no limit.
        seed: Of the order.
    """
    progress = _Progress(len(contenders), rounds)
    measures = {name: progress.watched(name, turn) for name, turn in contenders.items()}
    # A turn is long: one is a round, and none needs to be thrown away to settle.
    config = TimingConfig(
        num_rounds=rounds, round_seconds=1e-6, settle_seconds=0.0, budget_seconds=budget_seconds, seed=seed
    )
    return Contest(measure_interleaved(measures, config=config), progress.first_seconds)


class _Progress:
    """Tells on stderr how far the rounds are."""

    def __init__(self, num_contenders: int, rounds: int) -> None:
        self.first_seconds: dict[str, float] = {}
        self._num_contenders, self._rounds = num_contenders, rounds
        self._num_turns = 0

    def watched(self, name: str, turn: Turn) -> Callable[[int], Sequence[float]]:
        def measure(calls: int) -> list[float]:
            start = time.perf_counter()
            seconds = [turn() for _ in range(calls)]
            if name not in self.first_seconds:
                self.first_seconds[name] = time.perf_counter() - start
                say(f"warming up: {name}, {self.first_seconds[name]:.1f} s")
            elif len(self.first_seconds) == self._num_contenders:
                self._count()
            return seconds

        return measure

    def _count(self) -> None:
        self._num_turns += 1
        done, part = divmod(self._num_turns, self._num_contenders)
        if part == 0 and done <= self._rounds:
            say(f"round {done} of {self._rounds}")


def paired(seconds: Sequence[float], reference: Sequence[float]) -> Interval:
    """How many times as fast as a reference, from the seconds of each round: of whole runs, which need no warm-up."""
    subject, other = (TimingResult([[value] for value in values]) for values in (seconds, reference))
    return speedup(other, subject)


def times(interval: Interval) -> str:
    """A ratio as text: "5.10× (4.98–5.22)"; without an interval where the rounds were too few for one."""
    known = f" ({interval.low:.2f}–{interval.high:.2f})" if interval.low > 0 else ""
    return f"{interval.estimate:.2f}×{known}"


def as_list(interval: Interval) -> list[float]:
    """A ratio as JSON: [estimate, low, high]; an endless interval is null there."""
    return [interval.estimate, interval.low, interval.high]
