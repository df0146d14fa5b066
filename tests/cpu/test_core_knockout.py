"""Those timed together leave when they cannot win, and the fastest stays."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import pytest
from simulated_machine import TROUBLES, slowness

from upshift.core.knockout import Knockout
from upshift.core.stats import Interval

MAX_ROUNDS = 30


def played(
    knockout: Knockout, speeds: Mapping[str, float], slots: list[float], *, seed: int = 0, rounds: int = MAX_ROUNDS
) -> dict[str, int]:
    """In how many rounds each took part, on a machine that is so slow in each slot."""
    took_part, order, now = dict.fromkeys(speeds, 0), random.Random(seed), 0
    alive = set(speeds)
    for _ in range(rounds):
        turns = sorted(alive)
        order.shuffle(turns)
        seconds = {}
        for name in turns:
            seconds[name] = slots[now] / speeds[name]
            took_part[name] += 1
            now += 1
        alive -= set(knockout.add(seconds))
    return took_part


@pytest.mark.parametrize("trouble", TROUBLES)
def test_each_of_equals_stays_in_at_least_95_percent_of_1000_fields(trouble: str) -> None:
    speeds = dict.fromkeys("abcd", 1.0)
    machines = slowness(TROUBLES[trouble], num_runs=1000, num_slots=4 * MAX_ROUNDS, seed=0).tolist()
    num_dropped = dict.fromkeys(speeds, 0)
    for seed, slots in enumerate(machines):
        knockout = Knockout(speeds, max_rounds=MAX_ROUNDS)
        played(knockout, speeds, slots, seed=seed)
        for name in knockout.out:
            num_dropped[name] += 1
    assert max(num_dropped.values()) <= 50


@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_truly_fastest_stays_and_the_slow_leave_early(trouble: str) -> None:
    speeds = {"eager": 1.0, "best": 2.0, "near": 1.95, "half": 0.9, "crawls": 0.1}
    machines = slowness(TROUBLES[trouble], num_runs=200, num_slots=5 * MAX_ROUNDS, seed=1).tolist()
    lost, rounds = 0, []
    for seed, slots in enumerate(machines):
        knockout = Knockout(speeds, max_rounds=MAX_ROUNDS, keep=("eager",))
        rounds.append(played(knockout, speeds, slots, seed=seed))
        lost += "best" in knockout.out
    assert lost <= 200 * 0.05
    assert np.quantile([each["crawls"] for each in rounds], 0.95) <= 13
    assert {each["eager"] for each in rounds} == {MAX_ROUNDS}


CALM = [1.0] * 10_000


def test_the_reason_says_who_is_faster_by_how_much() -> None:
    knockout, speeds = Knockout(("a", "b"), max_rounds=30), {"a": 1.0, "b": 3.0}
    played(knockout, speeds, CALM)
    assert knockout.out == {"a": "slower than b by at least 3.0× after 7 rounds"}


def test_a_small_lag_is_told_in_percent() -> None:
    knockout, speeds = Knockout(("a", "b"), max_rounds=30), {"a": 1.0, "b": 1.125}
    played(knockout, speeds, CALM)
    assert knockout.out == {"a": "slower than b by at least 12.5 % after 7 rounds"}


def test_the_speed_of_one_that_is_out_is_known_beside_those_that_stay() -> None:
    knockout, speeds = Knockout("abc", max_rounds=30, keep="a"), {"a": 1.0, "b": 4.0, "c": 2.0}
    played(knockout, speeds, CALM)
    assert knockout.out.keys() == {"c"}
    assert knockout.speedup("c", "a") == Interval(*[pytest.approx(2.0)] * 3)
    assert knockout.speedup("c", "b").high == pytest.approx(0.5)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_interval_of_those_that_are_out_holds_though_they_left_when_they_looked_slow(trouble: str) -> None:
    speeds = {"eager": 1.0, "best": 1.2, "slow": 1.1}
    machines = slowness(TROUBLES[trouble], num_runs=1000, num_slots=3 * MAX_ROUNDS, seed=2).tolist()
    num_wrong = 0
    for seed, slots in enumerate(machines):
        knockout = Knockout(speeds, max_rounds=MAX_ROUNDS, keep=("eager",), confidence=0.975)
        played(knockout, speeds, slots, seed=seed)
        if "slow" in knockout.out:
            found = knockout.speedup("slow", "eager")
            num_wrong += not found.low <= 1.1 <= found.high
    assert num_wrong <= 50


def test_those_to_be_kept_stay_however_slow() -> None:
    speeds = {"eager": 1.0, "b": 3.0}
    assert played(Knockout(speeds, max_rounds=30, keep=("eager",)), speeds, CALM) == {"eager": 30, "b": 30}


def test_who_may_not_win_drops_nobody_but_may_be_dropped() -> None:
    speeds = {"eager": 1.0, "refused": 9.0, "good": 2.0, "bad": 0.5}
    knockout = Knockout(speeds, max_rounds=30, keep=("eager",), may_win=("eager", "good", "bad"))
    played(knockout, speeds, CALM)
    assert set(knockout.out) == {"bad"}


def test_a_contender_that_crashes_leaves_the_comparison_to_the_others() -> None:
    knockout = Knockout("abc", max_rounds=30)
    for index in range(30):
        seconds = {"a": 1.0, "b": 2.0, "c": 0.5}
        if index >= 4:
            del seconds["c"]
        if knockout.out:
            del seconds["b"]
        knockout.add(seconds)
    assert knockout.out.keys() == {"b"} and knockout.out["b"].startswith("slower than a by at least 2.0×")


def test_all_may_crash() -> None:
    knockout = Knockout("ab", max_rounds=30)
    assert [knockout.add({}) for _ in range(30)] == [[]] * 30


def test_with_too_few_rounds_for_so_many_nobody_is_dropped() -> None:
    names = [f"number {index}" for index in range(40)]
    speeds = {name: 1.0 + index for index, name in enumerate(names)}
    assert set(played(Knockout(names, max_rounds=8), speeds, CALM, rounds=8).values()) == {8}


def test_extreme_times_do_not_overflow() -> None:
    knockout = Knockout("ab", max_rounds=30)
    for _ in range(7):
        knockout.add({"a": 1.7e308, "b": 5e-324})
    assert list(knockout.out) == ["a"]
