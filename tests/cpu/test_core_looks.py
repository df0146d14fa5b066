"""Looks at growing data: how often, and at what price each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upshift.core.looks import least_rounds, plan_looks
from upshift.core.stats import signed_rank_quantile
from upshift.errors import ConfigError


@settings(deadline=None, max_examples=40)
@given(st.integers(12, 70), st.sampled_from([0.8, 0.9, 0.95, 0.99, 0.999]))
def test_all_looks_together_spend_no_more_than_the_error_of_a_side(max_rounds: int, confidence: float) -> None:
    spent = 0.0
    for rounds, num_outside in plan_looks(max_rounds, confidence).items():
        below = signed_rank_tail(rounds, num_outside)
        assert below > 0.0
        spent += below
    assert spent <= (1 - confidence) / 2 * (1 + 1e-9)


def signed_rank_tail(n: int, num_outside: int) -> float:
    """P(signed-rank statistic < num_outside), counted anew from subsets of ranks."""
    ways = [1.0] + [0.0] * (n * (n + 1) // 2)
    for rank in range(1, n + 1):
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    return sum(ways[:num_outside]) / 2.0**n


def test_the_last_look_is_at_the_end_and_the_first_where_agreement_is_cheap() -> None:
    looks = plan_looks(60, 0.95)
    assert list(looks) == [8, 12, 17, 24, 34, 48, 60]
    assert looks[8] == 1  # all eight rounds must agree: 1 in 256, a sixth of the 2.5 % of a side


def test_a_single_look_has_all_of_the_error() -> None:
    assert plan_looks(30, 0.95, (30,))[30] == signed_rank_quantile(30, 0.025).num_outside


def test_looks_that_can_prove_nothing_are_left_out() -> None:
    assert list(plan_looks(60, 0.95, (2, 4, 30, 60))) == [30, 60]


@pytest.mark.parametrize(("confidence", "fewest"), [(0.5, 2), (0.9, 5), (0.95, 6), (0.99, 8)])
def test_the_fewest_rounds_are_those_whose_agreement_is_significant(confidence: float, fewest: int) -> None:
    assert least_rounds(confidence) == fewest
    assert list(plan_looks(fewest, confidence)) == [fewest]
    with pytest.raises(ConfigError, match=f"at least {fewest}"):
        plan_looks(fewest - 1, confidence)


@pytest.mark.parametrize("looks", [(30, 20, 60), (20, 20, 60), (0, 60), (20, 40), (20, 61)])
def test_looks_that_do_not_ascend_to_the_last_round_are_refused(looks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="ascending"):
        plan_looks(60, 0.95, looks)


@pytest.mark.parametrize("max_rounds", [10, 60, 135])
def test_fair_signs_cross_a_bound_at_some_look_less_often_than_stated(max_rounds: int) -> None:
    """The law that a duel of equals follows, whatever the sizes of the differences: here, all alike in rank order."""
    generator, num_runs = np.random.default_rng(0), 20_000
    signs = generator.random((num_runs, max_rounds)) < 0.5
    for sizes in (np.arange(max_rounds), -np.arange(max_rounds), generator.permutation(max_rounds)):
        crossed = np.zeros(num_runs, dtype=bool)
        for rounds, num_outside in plan_looks(max_rounds, 0.95).items():
            ranks = sizes[:rounds].argsort().argsort() + 1
            crossed |= signs[:, :rounds] @ ranks < num_outside
        assert crossed.mean() <= 0.025 + 3 * np.sqrt(0.025 / num_runs)
