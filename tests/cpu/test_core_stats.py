import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.core.stats import quantile, signed_rank_interval, wilson_interval

finite = st.floats(-1e6, 1e6)


def test_signed_rank_interval_agrees_with_the_published_table_for_ten_values():
    # Hollander, Wolfe & Chicken, table A.4: n = 10, two-sided 0.0488 at the 9th smallest and largest average.
    values = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
    averages = sorted((a + b) / 2 for i, a in enumerate(values) for b in values[i:])
    interval = signed_rank_interval(values)
    assert (interval.low, interval.high) == (averages[8], averages[-9])


def test_five_values_cannot_claim_95_percent():
    interval = signed_rank_interval([1.0, 1.1, 1.2, 1.3, 1.4])
    assert interval.low == -math.inf and interval.high == math.inf


def test_six_values_claim_no_more_than_their_range():
    interval = signed_rank_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    assert (interval.low, interval.high) == (1.0, 6.0)


@given(st.lists(finite, min_size=6, max_size=40), st.floats(-100, 100))
def test_a_shift_of_the_values_shifts_the_interval(values, shift):
    before, after = signed_rank_interval(values), signed_rank_interval([value + shift for value in values])
    assert after.low == pytest.approx(before.low + shift, rel=1e-9, abs=1e-6)
    assert after.high == pytest.approx(before.high + shift, rel=1e-9, abs=1e-6)


@given(st.lists(finite, min_size=6, max_size=40))
def test_the_sign_turns_the_interval_round(values):
    there, back = signed_rank_interval(values), signed_rank_interval([-value for value in values])
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    assert there.low <= there.estimate <= there.high


def test_one_wild_value_hardly_moves_the_interval():
    calm = [random.Random(0).gauss(0, 1) for _ in range(30)]
    assert abs(signed_rank_interval([*calm[:-1], 1e9]).estimate - signed_rank_interval(calm).estimate) < 0.5


@pytest.mark.parametrize("count", [8, 30, 100])
def test_the_interval_covers_the_centre_as_often_as_it_says(count):
    generator = np.random.default_rng(count)
    missed = 0
    for _ in range(400):
        interval = signed_rank_interval(list(generator.laplace(0.3, 1.0, count)))
        missed += not interval.low <= 0.3 <= interval.high
    assert missed <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_quantile_of_a_single_value_is_that_value():
    assert quantile([7.0], 0.99) == 7.0


def test_wilson_interval_is_that_of_the_literature():
    # 81 of 263: 25.5 % to 36.6 % (Newcombe 1998, table I, method 3).
    interval = wilson_interval(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


@given(st.integers(1, 10**6))
def test_all_and_none_are_ends_of_their_own_interval(num_samples):
    assert wilson_interval(num_samples, num_samples).high == 1.0
    assert wilson_interval(0, num_samples).low == 0.0
    assert 0 < wilson_interval(num_samples, num_samples).low < 1
