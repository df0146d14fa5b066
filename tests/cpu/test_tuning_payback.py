"""What a candidate must promise before it is tried: laws that hold for all figures."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upshift.tuning.payback import (
    COST_SPREAD,
    PRIOR_COMPILE_SECONDS,
    Account,
    compile_seconds,
    cost_spread,
    least_gain,
)
from upshift.tuning.trials import UNDECIDED

SECONDS = st.floats(0.0, 1e6, allow_nan=False)
GAIN = st.floats(0.0, 1.0)
SHARE = st.floats(0.0, 0.1)
COST = st.floats(0.0, 10.0) | SECONDS
ACCOUNTS = st.builds(Account, SHARE) | st.builds(Account, SHARE, spent=SECONDS, saved=SECONDS)


def refusal(account: Account, gain: float, cost: float, remaining: float, elapsed: float) -> str | None:
    return account.refusal(gain=gain, cost=cost, remaining_seconds=remaining, elapsed_seconds=elapsed)


@given(ACCOUNTS, GAIN, COST, SECONDS, SECONDS)
def test_what_saves_no_more_than_it_costs_is_not_tried(
    account: Account, gain: float, cost: float, remaining: float, elapsed: float
) -> None:
    reason = refusal(account, gain, cost, remaining, elapsed)
    if gain * remaining <= cost:
        assert reason is not None and "expected to save" in reason and " s" in reason


@given(ACCOUNTS, GAIN, COST, SECONDS, SECONDS, GAIN, SECONDS, SECONDS)
def test_what_is_tried_can_be_afforded_or_is_sure_to_pay(
    account: Account,
    gain: float,
    cost: float,
    remaining: float,
    elapsed: float,
    least: float,
    most_cost: float,
    secured: float,
) -> None:
    figures = {"gain": gain, "cost": cost, "remaining_seconds": remaining, "elapsed_seconds": elapsed}
    bounds = {"least_gain": least, "most_cost": most_cost, "secured_seconds": secured}
    if account.refusal(**figures, **bounds) is not None:
        return
    won = account.saved - account.spent + secured
    at_risk = max(cost, most_cost) + max(0.0, -won)
    allowed = account.allowance_share * (elapsed + remaining) + max(0.0, won) / 2
    assert at_risk <= allowed * (1 + 1e-9) or at_risk <= least * remaining * (1 + 1e-9)


@given(ACCOUNTS, GAIN, COST, SECONDS, SECONDS, st.floats(1.0, 10.0), st.sampled_from(["gain", "remaining", "cost"]))
def test_more_gain_more_time_or_less_cost_never_makes_it_worse(
    account: Account, gain: float, cost: float, remaining: float, elapsed: float, factor: float, better: str
) -> None:
    before = refusal(account, gain, cost, remaining, elapsed)
    gain *= factor if better == "gain" else 1.0
    remaining *= factor if better == "remaining" else 1.0
    cost /= factor if better == "cost" else 1.0
    assert before is not None or refusal(account, gain, cost, remaining, elapsed) is None


def test_a_risk_that_cannot_be_afforded_is_told_in_plain_words() -> None:
    account = Account(0.015)
    reason = account.refusal(gain=0.6, cost=5.0, most_cost=140.0, remaining_seconds=27.9, elapsed_seconds=2.1)
    assert reason == (
        "expected to save 17 s of the 28 s that remain; but if it gained nothing, tuning would have cost up to "
        "2 min 20 s for nothing, and no more than 0.45 s may be lost here"
    )


SHARES = st.floats(0.0, 1.0)
CANDIDATES = st.lists(st.tuples(GAIN, st.floats(0.0, 0.2), SHARES, SHARES, SHARES), max_size=30)
"""(expected gain, most cost as a share of the training, what is expected of it, true cost and gain within bounds)."""


@given(st.floats(0.001, 0.02), st.floats(1.0, 1e6), CANDIDATES, st.sampled_from([0.0, 0.5]))
def test_whatever_candidates_gain_and_cost_within_their_bounds_the_net_is_within_the_allowance(
    share: float, total: float, candidates: list[tuple[float, float, float, float, float]], certainty: float
) -> None:
    account, elapsed, steps_left, speed = Account(share), 0.0, 1.0, 1.0
    for gain, cost_share, expected_cost, true_cost, true_gain in candidates:
        remaining = steps_left * total / speed
        least, most = certainty * gain, cost_share * total
        if account.refusal(
            gain=gain,
            cost=expected_cost * most,
            most_cost=most,
            least_gain=least,
            remaining_seconds=remaining,
            elapsed_seconds=elapsed,
            secured_seconds=remaining * (speed - 1.0),
        ):
            continue
        account.add(-true_cost * most)
        elapsed += true_cost * most
        speed /= 1.0 - (least + true_gain * (0.99 - least) if least or true_gain > 0.5 else 0.0)
        made = 0.05 * steps_left  # until the next candidate
        account.add(made * total * (1.0 - 1.0 / speed))
        steps_left, elapsed = steps_left - made, elapsed + made * total / speed
    account.add(steps_left * total * (1.0 - 1.0 / speed))
    assert account.net >= -share * total * (1 + 1e-9)


def trial(share: float, **changes: Any) -> dict[str, Any]:
    """A trial that came to a share of its expected gain of 0.4."""
    fields = {"changes": {"compile": "whole"}, "verdict": "adopted", "expected_gain": 0.4, "num_rounds": 8}
    return fields | {"speedup": 1.0 / (1.0 - 0.4 * share)} | changes


def test_a_gain_is_counted_on_after_nine_trials_and_then_by_the_worst_in_ten() -> None:
    wins = [trial(share) for share in (0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 1.0)]
    assert least_gain({"compile": "whole"}, 0.4, wins) == 0.0
    assert least_gain({"compile": "whole"}, 0.4, [*wins, trial(0.4)]) == pytest.approx(0.4 * 0.4)
    assert least_gain({"compile": "regional"}, 0.4, [*wins, trial(0.4)]) == 0.0, "of others nothing follows"
    assert least_gain({"compile": "whole"}, 0.4, [*wins, trial(0.9, verdict="refused")]) == 0.0, "one gained nothing"
    for none in (trial(0.9, reason=UNDECIDED), trial(0.9, num_rounds=0), trial(0.9, speedup="fast"), {}):
        assert least_gain({"compile": "whole"}, 0.4, [*wins, none]) == 0.0, "no trial that counts"


def test_costs_are_bounded_by_experience_once_there_is_some() -> None:
    history = [{"compile": "whole", "build_seconds": seconds, "num_operators": 10} for seconds in (10, 20, 30)]
    assert cost_spread("whole", history[:2]) == cost_spread("regional", history) == COST_SPREAD
    assert cost_spread("whole", history) == pytest.approx(1.5)


@given(SECONDS, SECONDS, SECONDS, st.floats(-1.0, 1.0))
def test_savings_that_did_not_come_true_are_taken_back_and_measured_ones_stay(
    spent: float, measured: float, thought: float, share: float
) -> None:
    account = Account(0.015, spent=spent)
    account.add(measured)
    account.add(thought, by_speedup=True)
    account.restate(share)
    assert account.net == pytest.approx(measured + share * thought - spent, abs=1e-6)
    assert min(account.saved, account.spent) >= 0.0


@given(SHARE, st.lists(st.floats(-1e6, 1e6)))
def test_the_account_keeps_what_was_won_and_lost_apart(share: float, amounts: list[float]) -> None:
    account = Account(share)
    for amount in amounts:
        spent, saved = account.spent, account.saved
        account.add(amount)
        assert account.spent >= spent and account.saved >= saved
    assert account.net == account.saved - account.spent
    assert account.net == pytest.approx(math.fsum(amounts), abs=1e-3)


@given(SHARE, SECONDS, SECONDS, SECONDS)
def test_half_of_what_was_won_may_be_risked_again(share: float, spent: float, saved: float, total: float) -> None:
    account = Account(share, spent=spent, saved=saved)
    assert account.allowance(total) == pytest.approx(share * total + max(0.0, saved - spent) / 2)


# Compiling


@pytest.mark.parametrize("scope", PRIOR_COMPILE_SECONDS)
def test_without_experience_compiling_is_expected_to_take_the_prior(scope: str) -> None:
    at_least, each = PRIOR_COMPILE_SECONDS[scope]
    assert compile_seconds(scope, 0, ()) == at_least
    assert compile_seconds(scope, 1000, ()) == pytest.approx(at_least + 1000 * each)


def test_experience_on_this_machine_counts_by_operator_and_scope() -> None:
    history = [
        {"compile": "whole", "build_seconds": 20.0, "num_operators": 1000},
        {"compile": "whole", "build_seconds": 30.0, "num_operators": 1000},
        {"compile": "whole", "build_seconds": 900.0, "num_operators": 1000},
        {"compile": "regional", "build_seconds": 1.0, "num_operators": 1000},
    ]
    assert compile_seconds("whole", 500, history) == pytest.approx(15.0)
    assert compile_seconds("regional", 10, history) == 1.0, "at least a second"


JSON = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)
RECORDS = st.dictionaries(st.sampled_from(["compile", "build_seconds", "num_operators"]), JSON | st.just("whole"))


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text of a new checkout has to list all characters
@given(st.lists(RECORDS, max_size=5), st.integers(0, 10**6))
def test_a_history_of_nonsense_is_left_out(history: list[dict[str, Any]], num_operators: int) -> None:
    seconds = compile_seconds("whole", num_operators, history)
    assert math.isfinite(seconds) and seconds >= 1.0


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 10**400, "3", None, [], {}])
@pytest.mark.parametrize("name", ["build_seconds", "num_operators"])
def test_an_impossible_record_does_not_count(name: str, value: Any) -> None:
    record = {"compile": "whole", "build_seconds": 20.0, "num_operators": 1000}
    assert compile_seconds("whole", 100, [record | {name: value}]) == compile_seconds("whole", 100, ())
