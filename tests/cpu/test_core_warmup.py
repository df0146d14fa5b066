"""When calls are steady enough to be timed."""

from __future__ import annotations

import math
import random

import pytest

from upshift.core.warmup import WarmUp


def test_a_subject_of_constant_speed_is_steady_after_three_turns() -> None:
    warm_up = WarmUp(min_seconds=0.0, max_seconds=100.0)
    for num_turns in range(3):
        assert not warm_up.is_over, num_turns
        warm_up.add([0.01, 0.01])
    assert warm_up.is_over and warm_up.is_steady and warm_up.seconds_per_call == 0.01


def test_it_lasts_as_long_as_calls_get_faster() -> None:
    warm_up, turns = WarmUp(min_seconds=0.0, max_seconds=100.0), 0
    while not warm_up.is_over:
        warm_up.add([max(0.001, 0.1 * 0.7**turns)])
        turns += 1
    assert warm_up.is_steady and turns == 16
    assert warm_up.seconds_per_call == 0.001


def test_one_lucky_turn_or_one_disturbed_turn_does_not_end_it() -> None:
    warm_up = WarmUp(min_seconds=0.0, max_seconds=100.0)
    for seconds in (1.0, 0.5, 2.0, 0.3):
        warm_up.add([seconds])
        assert not warm_up.is_over


def test_a_few_quick_calls_are_not_enough() -> None:
    warm_up, turns = WarmUp(min_seconds=0.08, max_seconds=100.0), 0
    while not warm_up.is_over:
        warm_up.add([0.001] * 10)
        turns += 1
    assert turns == 8


def test_a_subject_that_never_settles_is_given_up_at_the_limit_of_time() -> None:
    warm_up, seconds = WarmUp(min_seconds=0.0, max_seconds=50.0), 10.0
    while not warm_up.is_over:
        warm_up.add([seconds])
        seconds *= 0.9
    assert not warm_up.is_steady and warm_up.seconds_per_call < 6.6


@pytest.mark.parametrize("time", [0.0, -1.0, math.nan, math.inf])
def test_a_clock_that_never_works_ends_it_with_nothing_known(time: float) -> None:
    warm_up, turns = WarmUp(min_seconds=0.08, max_seconds=5.0), 0
    while not warm_up.is_over:
        warm_up.add([time] if turns % 2 else [])
        turns += 1
    assert not warm_up.is_steady and math.isnan(warm_up.seconds_per_call) and turns <= 1000


def test_impossible_times_among_good_ones_are_passed_over() -> None:
    warm_up = WarmUp(min_seconds=0.0, max_seconds=5.0)
    for _ in range(3):
        warm_up.add([math.nan, 0.01, -5.0, 0.01, math.inf])
    assert warm_up.is_steady and warm_up.seconds_per_call == 0.01


def test_noise_ends_it_soon_after_the_subject_has_settled() -> None:
    for seed in range(200):
        warm_up, rng, turns = WarmUp(min_seconds=0.0, max_seconds=1e9), random.Random(seed), 0
        while not warm_up.is_over:
            warm_up.add([(10.0 if turns < 3 else 1.0) * math.exp(rng.gauss(0, 0.1)) for _ in range(5)])
            turns += 1
        assert turns <= 20
