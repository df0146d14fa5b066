"""A duel stops early, and is right: on simulated machines with every trouble, 1,000 duels each."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_machine import TROUBLES, slowness

from upshift.core.duel import Duel, DuelConfig
from upshift.errors import ConfigError

NUM_DUELS = 1000
MAX_ROUNDS = 60


def fought(trouble: str, gain: float, *, num_duels: int = NUM_DUELS, seed: int = 0) -> list[Duel]:
    """Duels in which the challenger is truly `gain` times faster, each to its verdict."""
    second_turn = math.exp(TROUBLES[trouble].second_turn)
    machines = slowness(TROUBLES[trouble], num_runs=num_duels, num_slots=2 * MAX_ROUNDS, seed=seed)
    duels = []
    for index, slots in enumerate(machines.tolist()):
        duel, rng = Duel(DuelConfig(max_rounds=MAX_ROUNDS)), random.Random(index)
        for first, second in zip(slots[::2], slots[1::2], strict=True):
            turns = dict(zip(duel.order(rng), (first, second * second_turn), strict=True))
            duel.add(turns["incumbent"] * gain, turns["challenger"])
        duels.append(duel)
    return duels


def share(duels: list[Duel], verdict: str) -> float:
    return sum(duel.verdict == verdict for duel in duels) / len(duels)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_of_1000_duels_of_equals_at_most_five_percent_have_a_winner(trouble: str) -> None:
    duels = fought(trouble, 1.0)
    assert share(duels, "faster") <= 0.05
    assert share(duels, "undecided") == 0.0


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_gain_of_five_percent_is_found_within_60_rounds_in_at_least_95_percent(trouble: str) -> None:
    """In all of these the spread of a round's log-ratio, bursts aside, is at most 8 %."""
    assert share(fought(trouble, 1.05), "faster") >= 0.95


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_loss_of_two_percent_never_wins_in_practice(trouble: str) -> None:
    assert share(fought(trouble, 0.98, num_duels=300), "faster") <= 0.01


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize(("gain", "verdict"), [(2.0, "faster"), (0.5, "not faster")])
def test_twice_or_half_the_speed_is_decided_in_a_handful_of_rounds(trouble: str, gain: float, verdict: str) -> None:
    duels = fought(trouble, gain, num_duels=300)
    assert share(duels, verdict) == 1.0
    rounds = [duel.num_rounds + duel.num_forgotten for duel in duels]
    assert np.median(rounds) == 8
    assert np.quantile(rounds, 0.9) <= 12


@pytest.mark.parametrize("gain", [0.9, 1.0, 1.03, 1.3])
def test_the_interval_at_the_verdict_covers_the_true_ratio(gain: float) -> None:
    duels = [duel for trouble in TROUBLES for duel in fought(trouble, gain, num_duels=150, seed=1)]
    assert np.mean([duel.interval.low <= gain <= duel.interval.high for duel in duels]) >= 0.95
    assert np.median([duel.interval.estimate for duel in duels]) == pytest.approx(gain, rel=0.02)


def test_a_noisier_machine_widens_the_interval_and_takes_more_rounds() -> None:
    calm, noisy = fought("calm", 1.05, num_duels=100), fought("all at once", 1.05, num_duels=100)
    assert np.mean([duel.num_rounds for duel in noisy]) > 1.5 * np.mean([duel.num_rounds for duel in calm])
    assert math.isfinite(np.mean([duel.interval.high for duel in noisy]))


def test_a_gain_below_the_least_worth_having_is_given_up_early() -> None:
    config, rng = DuelConfig(min_gain=0.05, max_rounds=200), random.Random(0)
    duel = Duel(config)
    while duel.verdict == "undecided":
        duel.add(math.exp(rng.gauss(0.0, 0.03)), 1.0)
    assert duel.verdict == "not faster" and duel.num_rounds < 60
    assert "no gain above 5.0 % is possible" in duel.reason


def test_before_the_first_look_nothing_is_claimed() -> None:
    duel = Duel()
    for _ in range(7):
        duel.add(2.0, 1.0)
        assert (duel.verdict, duel.interval.low, duel.interval.high) == ("undecided", 0.0, math.inf)
    duel.add(2.0, 1.0)
    assert (duel.verdict, duel.interval.low, duel.interval.high) == ("faster", 2.0, 2.0)


def test_a_verdict_stands() -> None:
    duel = Duel()
    for _ in range(8):
        duel.add(2.0, 1.0)
    reason = duel.reason
    for _ in range(100):
        duel.add(1.0, 9.0)
    assert (duel.verdict, duel.num_rounds, duel.reason) == ("faster", 8, reason)


def test_a_tie_to_the_tick_is_no_gain() -> None:
    duel = Duel()
    for _ in range(60):
        duel.add(0.016, 0.016)
    assert duel.verdict == "not faster" and duel.num_rounds == 8


def test_a_coarse_clock_costs_rounds_not_truth() -> None:
    verdicts = {1.0: 0, 1.05: 0}
    for gain, seed in itertools.product(verdicts, range(200)):
        duel, rng = Duel(), random.Random(seed)
        for _ in range(60):
            ticks = [round(50 * speed * math.exp(rng.gauss(0.0, 0.03))) for speed in (gain, 1.0)]
            duel.add(ticks[0] * 0.016, ticks[1] * 0.016)
        verdicts[gain] += duel.verdict == "faster"
    assert verdicts[1.0] <= 10 and verdicts[1.05] >= 190


@pytest.mark.parametrize("time", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_rounds_with_impossible_times_are_ignored_and_counted(time: float) -> None:
    duel = Duel()
    for index in range(7):
        duel.add(2.0, 1.0)
        duel.add(*((time, 1.0) if index % 2 else (1.0, time)))
    assert (duel.num_rounds, duel.num_ignored, duel.verdict) == (7, 7, "undecided")
    duel.add(2.0, 1.0)
    assert duel.verdict == "faster"


def test_a_clock_that_never_works_ends_the_duel() -> None:
    duel = Duel(DuelConfig(max_rounds=10))
    for _ in range(11):
        duel.add(math.nan, 1.0)
    assert (duel.verdict, duel.num_rounds) == ("not faster", 0)
    assert "no clock" in duel.reason


def test_the_largest_and_smallest_times_do_not_overflow() -> None:
    duel = Duel()
    for _ in range(8):
        duel.add(1.7e308, 5e-324)
    assert duel.verdict == "faster" and duel.interval.estimate == math.inf


@pytest.mark.parametrize("num_slow", [6, 8, 11])
def test_a_challenger_that_still_gets_faster_is_not_dropped_for_its_slow_start(num_slow: int) -> None:
    found = 0
    for seed in range(50):
        duel, rng = Duel(), random.Random(seed)
        for index in range(100):
            warming = 3.0 * max(0.0, 1.0 - index / num_slow)
            duel.add(1.2 * math.exp(rng.gauss(0, 0.02)), (1.0 + warming) * math.exp(rng.gauss(0, 0.02)))
        found += duel.verdict == "faster"
    assert found == 50


def test_five_slow_rounds_do_not_hide_a_gain() -> None:
    for seed in range(50):
        duel, rng = Duel(), random.Random(seed)
        for index in range(60):
            duel.add(1.2 * math.exp(rng.gauss(0, 0.03)), 5.0 if index < 5 else 1.0)
        assert duel.verdict == "faster"


def test_a_challenger_that_gets_faster_for_ever_is_dropped_in_the_end() -> None:
    duel = Duel()
    for index in range(1000):
        duel.add(1.0, 1e6 / (index + 1))
    assert duel.verdict == "not faster"
    assert duel.num_forgotten == 16 and duel.num_rounds == 8


def test_the_order_is_a_fair_coin() -> None:
    duel, rng = Duel(), random.Random(0)
    orders = [duel.order(rng) for _ in range(2000)]
    assert set(orders) == {("incumbent", "challenger"), ("challenger", "incumbent")}
    first = [order[0] == "incumbent" for order in orders]
    assert 900 <= sum(first) <= 1100
    assert 900 <= sum(a == b for a, b in itertools.pairwise(first)) <= 1100


times = st.floats(0.01, 100.0)
rounds = st.lists(st.tuples(times, times), min_size=1, max_size=70)


@given(rounds, st.integers(-20, 20))
def test_the_unit_of_time_does_not_matter(given_rounds: list[tuple[float, float]], power: int) -> None:
    seconds, others = Duel(), Duel()
    for incumbent, challenger in given_rounds:
        seconds.add(incumbent, challenger)
        others.add(incumbent * 2.0**power, challenger * 2.0**power)
    assert seconds.num_rounds == others.num_rounds
    assert seconds.interval.low == pytest.approx(others.interval.low, rel=1e-9)
    assert seconds.interval.high == pytest.approx(others.interval.high, rel=1e-9)


@given(rounds)
def test_a_verdict_follows_from_the_interval(given_rounds: list[tuple[float, float]]) -> None:
    duel = Duel(DuelConfig(max_rounds=20, min_gain=0.1))
    for incumbent, challenger in given_rounds:
        duel.add(incumbent, challenger)
    assert duel.interval.low <= duel.interval.estimate <= duel.interval.high
    assert (duel.verdict == "undecided") == (duel.reason == "")
    if duel.verdict == "faster":
        assert duel.interval.low > 1.0 and duel.interval.high > 1.1
    if duel.verdict == "not faster":
        assert duel.interval.low <= 1.0 or duel.interval.high <= 1.1
    assert duel.num_rounds <= 20


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": math.nan}, "confidence"),
        ({"confidence": 0.1}, "confidence"),
        ({"min_gain": -0.1}, "min_gain"),
        ({"min_gain": math.nan}, "min_gain"),
        ({"max_rounds": 5}, "max_rounds must be at least 6"),
        ({"looks": (10, 20)}, "looks"),
    ],
)
def test_a_duel_that_could_never_be_decided_is_refused(config: dict[str, float], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        DuelConfig(**config)
