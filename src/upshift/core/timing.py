"""Honest timing: interleaved rounds in random order, compared round by round.

A machine's speed drifts (clock, heat, neighbours), so that two things measured one after the other are
compared across that drift. Here every round measures every subject once, in an order drawn anew, and
only times of the same round are compared. What is timed is handed in, so that this file knows nothing
of models: inference candidates in processes of their own and training steps go through it alike.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from upshift.core.knockout import Knockout
from upshift.core.stats import Interval, quantile, signed_rank_interval
from upshift.core.warmup import WarmUp, is_duration
from upshift.errors import UpshiftError

Measure = Callable[[int], Sequence[float]]
"""Make this many calls and return the seconds that each took."""

MIN_ROUNDS = 8
UNSTEADY_FACTOR, UNSTEADY_SHARE = 2.0, 0.1
_MAX_VOID_ROUNDS = 3
_NO_TIME = "its clock gave no possible time (zero, negative, infinite or NaN)"


@dataclass(frozen=True, kw_only=True)
class TimingConfig:
    """How long to time.

    Attributes:
        num_rounds: Rounds; each gives one ratio to the reference. Where these ratios spread by 7 %, 30 rounds find a
            gain of 5 % in 95 % of measurements; by 8 %, 40 do.
        round_seconds: A subject's share of a round: calls are repeated to fill it.
        settle_seconds: Calls at the start of each turn that do not count: they bring the subject's
            memory back into the caches and outlast the threads that the one before left spinning.
        max_warmup_seconds: Longest warm-up of a subject before the first round.
        budget_seconds: Rounds stop when this is used up (after `MIN_ROUNDS`); None is no limit.
        seed: Of the order of turns.
    """

    num_rounds: int = 30
    round_seconds: float = 0.02
    settle_seconds: float = 0.005
    max_warmup_seconds: float = 5.0
    budget_seconds: float | None = None
    seed: int = 0


@dataclass
class TimingResult:
    """The seconds of each call: one list a round.

    Attributes:
        rounds: The rounds of all subjects belong together in their order.
        failure: Why the subject could not be timed to the end.
        eliminated: Why it was not timed to the end, though it could have been: it cannot win.
        num_ignored: Calls with an impossible time (zero, negative, infinite, NaN: a clock that jumps).
    """

    rounds: list[list[float]] = field(default_factory=list)
    failure: str | None = None
    eliminated: str | None = None
    num_ignored: int = 0

    def medians(self) -> list[float]:
        """The median seconds of a call, one value a round."""
        return [median(calls) for calls in self.rounds]

    def latency_seconds(self, share: float) -> float:
        """A quantile of the single calls of all rounds."""
        return quantile([seconds for calls in self.rounds for seconds in calls], share)


def speedup(reference: TimingResult, subject: TimingResult, *, confidence: float = 0.95) -> Interval:
    """How many times faster `subject` is than `reference`, from their rounds in common.

    The Hodges–Lehmann estimate and Wilcoxon signed-rank interval of the log-ratios of the rounds' medians. For subjects
    of equal speed it is the drawn order alone that tells them apart, so that whatever the machine does (drift,
    bursts, heavy tails, noise that lasts over many rounds) each ratio is as likely as its inverse, and 1 is in
    the interval as often as is stated. It is for one look at rounds whose number does not depend on it;
    whoever looks while rounds come in takes `duel.Duel`.
    """
    pairs = list(zip(reference.medians(), subject.medians(), strict=False))
    if not pairs:
        return Interval(1.0, 0.0, math.inf)
    return signed_rank_interval([math.log(a) - math.log(b) for a, b in pairs], confidence=confidence).exp()


def unsteady_range(reference: TimingResult, subject: TimingResult, found: Interval) -> tuple[float, float] | None:
    """The smallest and largest speedup of single rounds, where they lie too far apart for one figure; else None.

    That is where the interval's ends are more than a factor of 2 apart, or where more than a tenth of the rounds are
    further than that from the estimate: a machine that has two speeds, as when threads of other programs hold the
    cores that a call waits for, gives rounds of either kind, and their middle is the speed of neither.

    Args:
        reference: As `speedup` takes it.
        subject: Likewise.
        found: Their speedup.
    """
    pairs = zip(reference.medians(), subject.medians(), strict=False)
    logs = sorted(math.log(a) - math.log(b) for a, b in pairs)
    if not logs:
        return None
    middle, far = math.log(found.estimate), math.log(UNSTEADY_FACTOR)
    num_far = sum(abs(value - middle) > far for value in logs)
    if found.high <= UNSTEADY_FACTOR * found.low and num_far <= UNSTEADY_SHARE * len(logs):
        return None
    return math.exp(logs[0]), math.exp(logs[-1])


def timed_calls(
    call: Callable[[], object],
    *,
    synchronize: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measure:
    """A `Measure` of something in this process.

    Args:
        call: What to time.
        synchronize: Waits until the device has done all it was given (`torch.accelerator.synchronize`): a device
            works on after a call has returned, and the clock must not be read before it is done. None on a CPU.
        clock: Seconds.
    """
    wait = synchronize or (lambda: None)

    def measure(calls: int) -> list[float]:
        seconds = []
        wait()
        for _ in range(calls):
            start = clock()
            call()
            wait()
            seconds.append(clock() - start)
        return seconds

    return measure


def measure_interleaved(
    subjects: Mapping[str, Measure],
    *,
    config: TimingConfig,
    clock: Callable[[], float] = time.monotonic,
    knockout: Knockout | None = None,
) -> dict[str, TimingResult]:
    """Time subjects side by side.

    Only one subject runs at a time. One that raises an `UpshiftError` (its process died, it exceeded its
    time limit) keeps the rounds that it finished, gets the reason in `failure` and is left out of
    further rounds. A round in which a subject has no possible time at all is void for all; a subject to which that
    happens three times has failed.

    Args:
        subjects: What to measure, by name.
        config: How long.
        clock: Seconds, for the budget.
        knockout: Told of each round; those that it drops are left out of further rounds. When one subject is
            left, the rounds end.
    """
    return _Rounds(subjects, config, clock, knockout).run()


class _Rounds:
    """The state of `measure_interleaved`."""

    def __init__(
        self,
        subjects: Mapping[str, Measure],
        config: TimingConfig,
        clock: Callable[[], float],
        knockout: Knockout | None,
    ) -> None:
        self.subjects, self.config, self.clock, self.knockout = subjects, config, clock, knockout
        self.order = random.Random(config.seed)
        self.results = {name: TimingResult() for name in subjects}
        self.plan: dict[str, tuple[int, int]] = {}
        self.num_void = dict.fromkeys(subjects, 0)

    def run(self) -> dict[str, TimingResult]:
        start = self.clock()
        for name, measure in self.subjects.items():
            try:
                self.plan[name] = _calls_of_a_round(_warm_up(measure, self.config), self.config)
            except UpshiftError as error:
                self.results[name].failure = str(error)
        for index in range(self.config.num_rounds):
            used_up = self.config.budget_seconds is not None and self.clock() - start > self.config.budget_seconds
            if (used_up and index >= MIN_ROUNDS) or (self.knockout and self.knockout.out and len(self.plan) < 2):
                break
            self._round()
        return self.results

    def _round(self) -> None:
        turns = list(self.plan)
        self.order.shuffle(turns)
        times = {name: seconds for name in turns if (seconds := self._turn(name)) is not None}
        if any(not seconds for seconds in times.values()):
            return
        for name, seconds in times.items():
            self.results[name].rounds.append(seconds)
        if self.knockout is not None:
            for name in self.knockout.add({name: median(seconds) for name, seconds in times.items()}):
                del self.plan[name]
                self.results[name].eliminated = self.knockout.out[name]

    def _turn(self, name: str) -> list[float] | None:
        """The possible times of a turn; None if the subject has failed."""
        settle, calls = self.plan[name]
        try:
            seconds = list(self.subjects[name](settle + calls))[settle:]
            possible = [value for value in seconds if is_duration(value)]
            self.results[name].num_ignored += len(seconds) - len(possible)
            self.num_void[name] += not possible
            if self.num_void[name] == _MAX_VOID_ROUNDS:
                raise UpshiftError(_NO_TIME)
        except UpshiftError as error:
            self.results[name].failure = str(error)
            del self.plan[name]
            return None
        return possible


def _warm_up(measure: Measure, config: TimingConfig) -> float:
    """Call until calls no longer get faster; returns the seconds of a call then."""
    warm_up = WarmUp(min_seconds=4 * config.round_seconds, max_seconds=config.max_warmup_seconds)
    calls = 1
    while not warm_up.is_over:
        warm_up.add(measure(calls))
        if is_duration(warm_up.seconds_per_call):
            calls = max(1, min(10_000, math.ceil(config.round_seconds / max(warm_up.seconds_per_call, 1e-7))))
    if not is_duration(warm_up.seconds_per_call):
        raise UpshiftError(_NO_TIME)
    return warm_up.seconds_per_call


def _calls_of_a_round(seconds: float, config: TimingConfig) -> tuple[int, int]:
    """(calls that do not count, calls that count) for a subject whose call takes `seconds`."""
    seconds = max(seconds, 1e-7)
    return math.ceil(config.settle_seconds / seconds), math.ceil(config.round_seconds / seconds)
