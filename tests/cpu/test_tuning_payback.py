"""What a candidate must promise before it is tried: laws that hold for all figures."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.tuning.payback import PRIOR_COMPILE_SECONDS, SURE_GAIN, Account, compile_seconds

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


@given(ACCOUNTS, GAIN, COST, SECONDS, SECONDS)
def test_what_is_tried_can_be_afforded_or_is_sure_to_pay(
    account: Account, gain: float, cost: float, remaining: float, elapsed: float
) -> None:
    if refusal(account, gain, cost, remaining, elapsed) is not None:
        return
    at_risk = cost + max(0.0, account.spent - account.saved)
    allowed = account.allowance_share * (elapsed + remaining) + max(0.0, account.saved - account.spent) / 2
    assert at_risk <= allowed * (1 + 1e-9) or gain * remaining >= SURE_GAIN * at_risk * (1 - 1e-9)


@given(ACCOUNTS, GAIN, COST, SECONDS, SECONDS, st.floats(1.0, 10.0), st.sampled_from(["gain", "remaining", "cost"]))
def test_more_gain_more_time_or_less_cost_never_makes_it_worse(
    account: Account, gain: float, cost: float, remaining: float, elapsed: float, factor: float, better: str
) -> None:
    before = refusal(account, gain, cost, remaining, elapsed)
    gain *= factor if better == "gain" else 1.0
    remaining *= factor if better == "remaining" else 1.0
    cost /= factor if better == "cost" else 1.0
    assert before is not None or refusal(account, gain, cost, remaining, elapsed) is None


@given(
    st.floats(0.001, 0.1),
    st.floats(1.0, 1e5),
    st.lists(st.tuples(GAIN, st.floats(0.001, 1.0)), max_size=40),
)
def test_candidates_that_gain_nothing_cost_no_more_than_the_allowance(
    share: float, total: float, tries: list[tuple[float, float]]
) -> None:
    account, elapsed = Account(share), 0.0
    for gain, cost_share in tries:
        cost, remaining = cost_share * share * total, total - elapsed
        at_risk = max(0.0, -account.net) + cost
        if gain * remaining >= SURE_GAIN * at_risk or refusal(account, gain, cost, remaining, elapsed) is not None:
            continue
        account.add(-cost)
        elapsed += min(cost, remaining)
    assert -account.net <= share * total * (1 + 1e-9)


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


@given(st.lists(RECORDS, max_size=5), st.integers(0, 10**6))
def test_a_history_of_nonsense_is_left_out(history: list[dict[str, Any]], num_operators: int) -> None:
    seconds = compile_seconds("whole", num_operators, history)
    assert math.isfinite(seconds) and seconds >= 1.0


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 10**400, "3", None, [], {}])
@pytest.mark.parametrize("name", ["build_seconds", "num_operators"])
def test_an_impossible_record_does_not_count(name: str, value: Any) -> None:
    record = {"compile": "whole", "build_seconds": 20.0, "num_operators": 1000}
    assert compile_seconds("whole", 100, [record | {name: value}]) == compile_seconds("whole", 100, ())
