"""Two ways of doing the same work, compared round by round until one is proven faster."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upshift.core.looks import plan_looks
from upshift.core.stats import Interval, walsh_interval
from upshift.core.units import factor, factor_range, percent, plain
from upshift.core.warmup import is_duration
from upshift.errors import ConfigError

Verdict = Literal["undecided", "faster", "not faster"]
Side = Literal["incumbent", "challenger"]

_MAX_RESTARTS = 2
_UNKNOWN = Interval(1.0, 0.0, math.inf)


@dataclass(frozen=True, kw_only=True)
class DuelConfig:
    """When a duel is decided.

    Attributes:
        confidence: Of the interval of the speed ratio, at all looks together; the challenger is declared faster
            without being so in at most half of the rest (2.5 % of duels at 0.95).
        min_gain: The smallest gain that is worth having, as a share: 0.02 is 2 %. A challenger that is proven to
            gain less is not faster. It is declared faster once any gain is proven and this much is not excluded.
        max_rounds: The duel ends here, with "not faster" unless a gain is proven. Forgotten rounds are among them.
        looks: Numbers of rounds after which the duel is judged; by default spaced widely, see `plan_looks`.
    """

    confidence: float = 0.95
    min_gain: float = 0.0
    max_rounds: int = 60
    looks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1.0:
            raise ConfigError(
                "confidence must be at least 0.5 and below 1", received=self.confidence, hint="0.95 is usual"
            )
        if not 0.0 <= self.min_gain < math.inf:
            raise ConfigError("min_gain must be a share of at least 0", received=self.min_gain, hint="0.02 is 2 %")
        plan_looks(self.max_rounds, self.confidence, self.looks)


class Duel:
    """A sequential paired comparison of a challenger with an incumbent.

    In each round both do the same amount of work, in an order drawn anew by `order`; only their times in the same
    round are compared. When both are equally fast, it is the coin alone that says which of a round's two times is
    whose: their log-ratio has a fair sign whatever the machine did, be it drift, bursts, heavy tails or noise that
    lasts over many rounds, and independently of all rounds before. That is all that Wilcoxon's signed-rank test
    asks, so its error is exact here, and `plan_looks` keeps it over the looks; a slower challenger wins more seldom
    still. The interval inverts that test; it rests in addition on the gain being the same factor in all rounds.
    A noisy machine widens it, and costs rounds, not truth: with a spread (standard deviation of a round's log-ratio) of
    8 %, 60 rounds find a gain of 5 % in 97 % of duels, with 10 % in 88 %, and with 3 % it takes 10 rounds.

    A challenger that is proven slower while it is still getting faster (the newest third of its rounds is better than
    all of the oldest) has its rounds forgotten and starts anew, up to twice: caches, allocators and clocks warm up. As
    this is only asked of those proven slower, it adds less than 0.1 % to the false wins at 95 %.

    A round with a time that no clock should give (zero, negative, infinite, NaN) is ignored and counted.

    Attributes:
        num_ignored: Rounds with an impossible time.
        num_forgotten: Rounds of a warm-up that was noticed late.
        reason: Why the verdict is what it is; empty while undecided.
    """

    def __init__(self, config: DuelConfig | None = None) -> None:
        self.config = config or DuelConfig()
        self.num_ignored = self.num_forgotten = 0
        self.reason = ""
        self._num_outside = plan_looks(self.config.max_rounds, self.config.confidence, self.config.looks)
        self._log_ratios: list[float] = []
        self._num_restarts = 0
        self._interval = _UNKNOWN
        self._verdict: Verdict = "undecided"

    @property
    def num_rounds(self) -> int:
        """Rounds that count."""
        return len(self._log_ratios)

    @property
    def verdict(self) -> Verdict:
        """Final as soon as it is not "undecided"."""
        return self._verdict

    @property
    def interval(self) -> Interval:
        """How many times faster the challenger is, as of the last look: (1, 0 to infinity) before the first."""
        return self._interval

    def order(self, rng: random.Random) -> tuple[Side, Side]:
        """Who goes first in the next round: a fair coin, on which the verdict's error rests."""
        return ("incumbent", "challenger") if rng.random() < 0.5 else ("challenger", "incumbent")

    def add(self, incumbent_seconds: float, challenger_seconds: float) -> None:
        """One round: the seconds that each took for the same work. After the verdict, it changes nothing."""
        if self._verdict != "undecided":
            return
        if not (is_duration(incumbent_seconds) and is_duration(challenger_seconds)):
            self.num_ignored += 1
            if self.num_ignored > self.config.max_rounds:
                self._decide("not faster", f"{self.num_ignored} rounds had times that no clock should give")
            return
        self._log_ratios.append(math.log(incumbent_seconds) - math.log(challenger_seconds))
        if self.num_rounds in self._num_outside:
            self._look()
        if self._verdict == "undecided" and self.num_rounds + self.num_forgotten >= self.config.max_rounds:
            self._decide("not faster", f"no gain is proven in {self.num_rounds} rounds")

    def _look(self) -> None:
        log_ratios = walsh_interval(np.asarray(self._log_ratios), self._num_outside[self.num_rounds])
        found = self._interval = log_ratios.exp()
        if found.high < 1.0:
            if self._is_still_warming_up():
                self._start_anew()
            else:
                self._decide("not faster", "slower")
        elif found.high <= 1.0 + self.config.min_gain:
            self._decide("not faster", f"no gain above {percent(self.config.min_gain)} is possible")
        elif found.low > 1.0:
            self._decide("faster", "a proven gain")

    def _is_still_warming_up(self) -> bool:
        third = math.ceil(self.num_rounds / 3)
        oldest, newest = self._log_ratios[:third], self._log_ratios[-third:]
        return self._num_restarts < _MAX_RESTARTS and min(newest) > max(oldest)

    def _start_anew(self) -> None:
        self._num_restarts += 1
        self.num_forgotten += self.num_rounds
        self._log_ratios.clear()
        self._interval = _UNKNOWN

    def _decide(self, verdict: Verdict, why: str) -> None:
        low, high = self._interval.low, self._interval.high
        found = f"{factor(self._interval.estimate, (low, high))}, interval {factor_range(low, high)}"
        self._verdict, self.reason = verdict, plain(f"{why} ({found})" if self.num_rounds else why)
