import math
import random
import time

import pytest

from upshift.core.knockout import Knockout
from upshift.core.timing import (
    MIN_ROUNDS,
    TimingConfig,
    TimingResult,
    measure_interleaved,
    speedup,
    timed_calls,
    unsteady_range,
)
from upshift.errors import BackendError


class Machine:
    """A machine in simulated time whose speed drifts, with bursts of work by others."""

    def __init__(self, seed, *, drift=0.0, burst_rate=0.0, noise=0.03):
        self.random = random.Random(seed)
        self.now, self.drift, self.burst_rate, self.noise = 0.0, drift, burst_rate, noise
        self.burst_until = 0.0
        self.running = []

    def subject(self, name, seconds):
        def measure(calls):
            self.running.append(name)
            return [self._call(seconds) for _ in range(calls)]

        return measure

    def _call(self, seconds):
        if self.random.random() < self.burst_rate:
            self.burst_until = self.now + self.random.expovariate(1 / 0.05)
        slow = 3.0 if self.now < self.burst_until else 1.0
        took = seconds * slow * (1.0 + self.drift * self.now) * math.exp(self.random.gauss(0, self.noise))
        self.now += took
        return took


def measured(machine, speeds, seed=0, **config):
    subjects = {name: machine.subject(name, seconds) for name, seconds in speeds.items()}
    return measure_interleaved(
        subjects, config=TimingConfig(num_rounds=20, seed=seed, **config), clock=lambda: machine.now
    )


CONDITIONS = {
    "calm": {},
    "drift": {"drift": 0.3},
    "bursts": {"burst_rate": 0.01},
    "both": {"drift": 0.3, "burst_rate": 0.01, "noise": 0.1},
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_equal_candidates_seldom_seem_faster(condition):
    trials, winners = 150, 0
    for seed in range(trials):
        results = measured(Machine(seed, **CONDITIONS[condition]), {"eager": 0.004, "other": 0.004}, seed)
        winners += speedup(results["eager"], results["other"]).low > 1.0
    assert winners <= trials * 0.05


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_tenth_faster_is_found_and_rightly_sized(condition):
    found = 0
    for seed in range(30):
        results = measured(Machine(seed, **CONDITIONS[condition]), {"eager": 0.0044, "other": 0.004}, seed)
        interval = speedup(results["eager"], results["other"])
        found += interval.low > 1.0
        assert 0.8 < interval.estimate < 1.5
    assert found >= (28 if condition == "calm" else 20)


def test_the_same_seed_and_clock_give_the_same_result():
    once, again = (measured(Machine(5, burst_rate=0.02), {"a": 0.001, "b": 0.002}, seed=3) for _ in range(2))
    assert {name: result.rounds for name, result in once.items()} == {
        name: result.rounds for name, result in again.items()
    }


def test_turns_are_interleaved_in_changing_order():
    machine = Machine(0)
    measured(machine, {"a": 0.01, "b": 0.01, "c": 0.01})
    turns = machine.running[-60:]
    rounds = [tuple(turns[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) > 3


def test_calls_fill_a_round_whatever_their_length():
    results = measured(Machine(0), {"quick": 1e-4, "slow": 0.5})
    assert all(0.015 < sum(calls) < 0.03 for calls in results["quick"].rounds)
    assert all(len(calls) == 1 for calls in results["slow"].rounds)


def test_a_subject_that_fails_midway_leaves_the_others_in_the_race():
    machine = Machine(0)
    good = machine.subject("good", 0.004)
    turns = iter(range(1000))

    def bad(calls):
        if next(turns) > 8:
            raise BackendError("it crashed")
        return good(calls)

    results = measure_interleaved({"good": good, "bad": bad}, config=TimingConfig(num_rounds=20), clock=lambda: 0.0)
    assert results["bad"].failure == "it crashed"
    assert len(results["bad"].rounds) < 20 == len(results["good"].rounds)


def test_a_subject_that_fails_in_the_warm_up_has_no_rounds():
    def bad(calls):
        raise BackendError("at once")

    machine = Machine(0)
    results = measure_interleaved(
        {"bad": bad, "good": machine.subject("good", 0.01)}, config=TimingConfig(num_rounds=8), clock=lambda: 0.0
    )
    assert (results["bad"].failure, results["bad"].rounds) == ("at once", [])


def test_a_budget_ends_the_rounds_but_not_before_an_interval_exists():
    results = measured(Machine(0), {"a": 0.05, "b": 0.05}, budget_seconds=0.001)
    assert len(results["a"].rounds) == MIN_ROUNDS
    assert math.isfinite(speedup(results["a"], results["b"]).low)


def test_warm_up_outlasts_slow_first_calls():
    calls_made = []

    def warming(calls):
        seconds = [max(0.001, 0.2 / (len(calls_made) + index + 1)) for index in range(calls)]
        calls_made.extend(seconds)
        return seconds

    results = measure_interleaved({"a": warming}, config=TimingConfig(num_rounds=8), clock=lambda: 0.0)
    assert results["a"].latency_seconds(0.5) == pytest.approx(0.001, rel=0.2)


def test_quantiles_are_of_single_calls():
    results = measured(Machine(0, noise=0.2), {"a": 0.001})
    assert results["a"].latency_seconds(0.5) < results["a"].latency_seconds(0.9) < results["a"].latency_seconds(0.99)


@pytest.mark.parametrize("time", [0.0, -1.0, math.nan, math.inf])
def test_a_jump_of_the_clock_voids_the_round_for_all(time):
    machine, turns = Machine(0), iter(range(10_000))
    good = machine.subject("good", 0.05)

    def jumpy(calls):
        index = next(turns)
        return [time if index in (10, 13) else seconds for seconds in good(calls)]

    results = measure_interleaved({"good": good, "jumpy": jumpy}, config=TimingConfig(num_rounds=20), clock=lambda: 0.0)
    assert [len(results[name].rounds) for name in ("good", "jumpy")] == [18, 18]
    assert (results["jumpy"].num_ignored, results["jumpy"].failure) == (2, None)
    assert math.isfinite(speedup(results["good"], results["jumpy"]).high)


def test_a_jump_within_a_turn_costs_that_call_only():
    machine = Machine(0)
    good = machine.subject("good", 0.002)

    def jumpy(calls):
        return [*good(calls)[1:], -5.0] if calls > 1 else good(1)

    results = measure_interleaved({"jumpy": jumpy}, config=TimingConfig(num_rounds=20, settle_seconds=0.0))
    assert len(results["jumpy"].rounds) == results["jumpy"].num_ignored == 20
    assert results["jumpy"].latency_seconds(0.01) > 0.0015


def test_a_subject_whose_clock_stops_in_the_rounds_leaves_the_others_in_the_race():
    machine, turns = Machine(0), iter(range(10_000))
    good = machine.subject("good", 0.05)

    def stopped(calls):
        return [0.0] * calls if next(turns) > 9 else good(calls)

    results = measure_interleaved({"good": good, "bad": stopped}, config=TimingConfig(num_rounds=20))
    assert "its clock gave no possible time" in results["bad"].failure
    assert len(results["good"].rounds) == 18


@pytest.mark.parametrize("time", [0.0, math.nan])
def test_a_subject_whose_clock_never_runs_fails_in_the_warm_up(time):
    results = measure_interleaved({"bad": lambda calls: [time] * calls}, config=TimingConfig(num_rounds=20))
    assert "its clock gave no possible time" in results["bad"].failure
    assert speedup(results["bad"], results["bad"]).high == math.inf


def test_those_knocked_out_are_not_timed_further_and_say_why():
    machine, speeds = Machine(0), {"eager": 0.01, "fast": 0.002, "slow": 0.04}
    results = measure_interleaved(
        {name: machine.subject(name, seconds) for name, seconds in speeds.items()},
        config=TimingConfig(num_rounds=30),
        clock=lambda: machine.now,
        knockout=Knockout(speeds, max_rounds=30, keep=("eager",)),
    )
    assert [len(results[name].rounds) for name in speeds] == [30, 30, 8]
    assert results["slow"].eliminated.startswith("slower than fast by at least 19×")
    assert results["slow"].failure is None and results["fast"].eliminated is None


def test_the_rounds_end_when_one_is_left():
    machine, speeds = Machine(0), {"fast": 0.002, "slow": 0.04}
    results = measure_interleaved(
        {name: machine.subject(name, seconds) for name, seconds in speeds.items()},
        config=TimingConfig(num_rounds=30),
        clock=lambda: machine.now,
        knockout=Knockout(speeds, max_rounds=30),
    )
    assert [len(results[name].rounds) for name in speeds] == [7, 7]


def test_the_device_has_finished_whenever_the_clock_is_read():
    events = []
    measure = timed_calls(
        lambda: events.append("call"),
        synchronize=lambda: events.append("wait"),
        clock=lambda: float(len(events) + (events.append("clock") or 0)),
    )
    assert len(measure(2)) == 2
    assert events == ["wait", "clock", "call", "wait", "clock", "clock", "call", "wait", "clock"]


def test_calls_on_the_real_clock_take_as_long_as_they_take():
    results = measure_interleaved(
        {"sleep": timed_calls(lambda: time.sleep(0.004))}, config=TimingConfig(num_rounds=8, round_seconds=0.01)
    )
    assert [len(calls) for calls in results["sleep"].rounds] == [len(results["sleep"].rounds[0])] * 8
    assert results["sleep"].latency_seconds(0.0) >= 0.004


def rounds(seconds):
    return TimingResult([[value] for value in seconds])


def test_a_machine_with_two_speeds_gives_a_range_in_place_of_one_figure():
    fast, slow = rounds([0.25] * 12 + [400.0] * 18), rounds([0.03] * 30)
    found = speedup(fast, slow)
    assert found.high > 2 * found.low
    assert unsteady_range(fast, slow, found) == pytest.approx((0.25 / 0.03, 400 / 0.03))
    # A few rounds of the second speed leave the interval narrow, and are too many for bursts.
    few = rounds([0.25] * 4 + [400.0] * 26)
    found = speedup(few, slow)
    assert found.high <= 2 * found.low
    assert unsteady_range(few, slow, found) == pytest.approx((0.25 / 0.03, 400 / 0.03))


@pytest.mark.parametrize("condition", ["calm", "drift"])
def test_rounds_that_agree_are_steady_whatever_their_own_times(condition):
    results = measured(Machine(3, **CONDITIONS[condition]), {"eager": 0.004, "other": 0.001}, 3)
    assert unsteady_range(results["eager"], results["other"], speedup(results["eager"], results["other"])) is None


def test_single_bursts_do_not_make_timing_unsteady():
    results = rounds([4.0] * 28 + [40.0] * 2), rounds([1.0] * 30)
    assert unsteady_range(*results, speedup(*results)) is None


def test_too_few_rounds_for_an_interval_are_unsteady():
    results = rounds([4.0] * 4), rounds([1.0] * 4)
    assert unsteady_range(*results, speedup(*results)) == pytest.approx((4.0, 4.0))
