"""Many contenders, one after another, against the best so far, within a budget."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from upshift.core.duel import Duel, DuelConfig
from upshift.core.looks import least_rounds
from upshift.core.stats import Interval
from upshift.core.units import duration, plain
from upshift.errors import ConfigError

Verdict = Literal["faster", "not faster", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to try.

    Attributes:
        name: Its own in the race.
        expected_gain: As a share: 0.3 if it is expected to be 1.3 times faster.
        expected_cost_seconds: To build it and to time it, beyond the useful work that is done meanwhile.
    """

    name: str
    expected_gain: float
    expected_cost_seconds: float

    def __post_init__(self) -> None:
        for rule, value in (("gain", self.expected_gain), ("cost in seconds", self.expected_cost_seconds)):
            if not 0.0 <= value < math.inf:
                raise ConfigError(
                    f"the expected {rule} of {self.name} must be a number of at least 0",
                    received=value,
                    hint="leave out what is expected to be slower",
                )

    @property
    def promise(self) -> float:
        """Expected gain a second of cost."""
        return self.expected_gain / max(self.expected_cost_seconds, 1e-3)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a contender.

    Attributes:
        verdict: "faster": it is the best from then on; "not faster"; "failed": it crashed, hung or was found
            wrong; "skipped": it was not tried.
        reason: In words.
        against: The best so far that it met, or would have met.
        interval: How many times faster than that it is; None if nothing was timed.
        num_rounds: That the interval rests on.
        num_ignored: Rounds with an impossible time.
        seconds: From `next` to the verdict.
    """

    name: str
    verdict: Verdict
    reason: str
    against: str
    interval: Interval | None = None
    num_rounds: int = 0
    num_ignored: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RaceConfig:
    """How a race is run.

    Attributes:
        confidence: That no contender of the whole race is declared faster without being so.
        duel: Of each contender; its confidence is replaced by what the race leaves to it.
        budget_seconds: For the whole race; None is no limit.
        seed: Of the order within the rounds.
    """

    confidence: float = 0.95
    duel: DuelConfig = field(default_factory=DuelConfig)
    budget_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.75 <= self.confidence < 1.0:
            raise ConfigError(
                "the confidence of a race must be at least 0.75 and below 1",
                received=self.confidence,
                hint="0.95 is usual",
            )
        if self.budget_seconds is not None and not self.budget_seconds >= 0.0:
            raise ConfigError(
                "budget_seconds must be a number of at least 0", received=self.budget_seconds, hint="None is no limit"
            )


class Race:
    """A search for the fastest, that has an answer at any moment: `best`.

    The contenders come in the order of their promise (expected gain a second of cost). Each meets the best so far in a
    `Duel`, becomes the best if it is proven faster, and is gone otherwise. Nothing runs in here: the caller builds,
    runs, times and kills, and says what came of it:

        while (contender := race.next()) is not None:
            try:
                trial = build(contender, race.seconds_left())
                while race.is_on:
                    seconds = {name: trial.run(name) for name in race.order()}
                    race.add(seconds[race.best], seconds[contender.name])
            except UpshiftError as error:  # it crashed, hung, or computes something else
                race.fail(str(error))

    The more contenders, the likelier it is that luck makes one of equals seem faster. So the error of the race,
    1 − confidence, is divided among them: the k-th gets the share 1/(k(k + 1)), the most promising the most, and one
    that wins passes on its share to the next. The sum never exceeds the whole, however many enter (fallback
    procedure: Wiens and Dmitrienko 2005; online: Tian and Ramdas, arXiv 1910.04900).

    The race is deterministic, given what it is told, its clock and its seed.

    Attributes:
        best: Name of the best so far; the incumbent until another is proven faster.
        outcomes: Of all contenders that were dealt with, in that order.
        duel: Of the current contender; None between two.
    """

    def __init__(
        self,
        incumbent: str,
        contenders: Iterable[Contender] = (),
        *,
        config: RaceConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config or RaceConfig()
        self.best, self.outcomes = incumbent, list[Outcome]()
        self.duel: Duel | None = None
        self._current: Contender | None = None
        self._clock, self._start = clock, clock()
        self._rng = random.Random(self.config.seed)
        self._names, self._waiting = {incumbent}, list[Contender]()
        self._num_spent, self._share, self._passed_on, self._begun = 0, 0.0, 0.0, self._start
        self.enter(*contenders)

    @property
    def is_on(self) -> bool:
        """Whether the current contender is still undecided."""
        return self.duel is not None

    def enter(self, *contenders: Contender) -> None:
        """Add contenders, at any time.

        Raises:
            ConfigError: A name that was in the race before.
        """
        for contender in contenders:
            if contender.name in self._names:
                raise ConfigError(
                    "every contender must have a name of its own", received=contender.name, hint="name each but once"
                )
            self._names.add(contender.name)
            self._waiting.append(contender)
        self._waiting.sort(key=lambda contender: -contender.promise)

    def seconds_left(self) -> float:
        """Of the budget: infinite without one, 0 when it is used up."""
        budget = self.config.budget_seconds
        return math.inf if budget is None else max(0.0, budget - self._spent())

    def next(self) -> Contender | None:
        """The next one to try; None when there is none left. What the budget cannot pay for is skipped.

        Raises:
            ValueError: The one before is still on.
        """
        if self._current is not None:
            raise ValueError(f"{self._current.name} is still on")
        while self._waiting:
            contender = self._waiting.pop(0)
            left = self.seconds_left()
            if left <= 0.0:
                self._skip(contender, "the budget is used up")
            elif contender.expected_cost_seconds > left:
                cost = duration(contender.expected_cost_seconds)
                self._skip(contender, f"it is expected to cost {cost}, more than the {duration(left)} left")
            elif not self._begin(contender):
                self._skip(contender, "in a race with so many it could not be told from luck in max_rounds")
            else:
                return contender
        return None

    def order(self) -> tuple[str, str]:
        """The names of the two in the order in which they run in the next round: a fair coin."""
        duel, contender = self._running()
        first, _ = duel.order(self._rng)
        return (self.best, contender.name) if first == "incumbent" else (contender.name, self.best)

    def add(self, best_seconds: float, contender_seconds: float) -> None:
        """One round: the seconds that the best so far and the current contender took for the same work."""
        duel, _ = self._running()
        duel.add(best_seconds, contender_seconds)
        if duel.verdict != "undecided":
            self._end(duel.verdict, duel.reason)
        elif self.seconds_left() <= 0.0:
            self._end("not faster", "the budget was used up before a gain was proven")

    def fail(self, reason: str) -> None:
        """The current contender crashed, hung or was found wrong."""
        self._running()
        self._end("failed", reason)

    def skip(self, reason: str) -> None:
        """The current contender will not be tried after all."""
        self._running()
        self._end("skipped", reason)

    def _running(self) -> tuple[Duel, Contender]:
        if self.duel is None or self._current is None:
            raise ValueError("no contender is on: call next() first")
        return self.duel, self._current

    def _spent(self) -> float:
        return self._clock() - self._start

    def _begin(self, contender: Contender) -> bool:
        """Start its duel, at the confidence that the race leaves to it; False if that needs too many rounds."""
        k = self._num_spent + 1
        share = 1.0 / (k * (k + 1)) + self._passed_on
        # A duel's confidence is two-sided, and half of its error is on the side of a false win.
        confidence = 1.0 - 2.0 * share * (1.0 - self.config.confidence)
        if self.config.duel.max_rounds < least_rounds(confidence):
            return False
        self.duel = Duel(replace(self.config.duel, confidence=confidence))
        self._current, self._share, self._begun = contender, share, self._clock()
        return True

    def _end(self, verdict: Verdict, reason: str) -> None:
        duel, contender = self._running()
        if duel.num_rounds + duel.num_forgotten > 0:  # else nothing was looked at, and no error spent
            self._num_spent += 1
            self._passed_on = self._share if verdict == "faster" else 0.0
        self.outcomes.append(
            Outcome(
                name=contender.name,
                verdict=verdict,
                reason=reason,
                against=self.best,
                interval=duel.interval if duel.num_rounds else None,
                num_rounds=duel.num_rounds,
                num_ignored=duel.num_ignored,
                seconds=self._clock() - self._begun,
            )
        )
        if verdict == "faster":
            self.best = contender.name
        self.duel = self._current = None

    def _skip(self, contender: Contender, reason: str) -> None:
        outcome = Outcome(name=contender.name, verdict="skipped", reason=plain(reason), against=self.best)
        self.outcomes.append(outcome)
