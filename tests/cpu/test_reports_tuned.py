"""What a run says of its tuning: where the time of a step went, and what was changed of the algorithm."""

from __future__ import annotations

from typing import Any

import pytest

from upshift.reports.profile_facts import ceilings
from upshift.reports.tuned import PLAIN_SETTINGS, algorithm_fact, split_sentence, step_fact, tuning_fact
from upshift.training.config import TrainingConfig
from upshift.tuning.batch_size import ChangedAlgorithm, changed_algorithm
from upshift.tuning.breakdown import estimate_breakdown
from upshift.tuning.plan import BASELINE, Plan

SPLIT = estimate_breakdown(
    0.002, 0.008, batch_size=64, overhead_share=0.25, loader_samples_per_second=32_000.0
).to_json()


def changed_batch(rates: dict[int, float]) -> ChangedAlgorithm:
    return changed_algorithm(
        TrainingConfig(batch_size=64), {size: [1 / rate] * 12 for size, rate in rates.items()}, 1.0
    )


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u00a0", " ")


def test_the_split_names_what_binds_the_parts_and_the_ceilings() -> None:
    said = plain(split_sentence({"split": SPLIT | {"looked_into": True}}))
    assert said.startswith("bound by compute (computing 60")
    assert "overhead 20" in said and "waiting for data 20" in said and "reading" not in said
    assert "without waiting 8,000 samples/s" in said and "the loader alone 32,000 samples/s" in said


def test_the_split_by_the_final_plan_is_told_beside_that_by_the_first() -> None:
    last = estimate_breakdown(0.003, 0.001, batch_size=64).to_json() | {"looked_into": True}
    said = plain(split_sentence({"split": SPLIT | {"looked_into": True}, "last_split": last}, "last_split"))
    assert said.startswith("bound by data (computing 25") and split_sentence({"split": SPLIT}, "last_split") == ""


def test_what_nobody_looked_into_is_not_called_computing() -> None:
    said = plain(split_sentence({"split": SPLIT | {"looked_into": False}}))
    assert said.startswith("the step itself (not looked into) 80 %, waiting for data 20 %") and "computing" not in said


def test_a_run_shows_its_step_beside_its_plan() -> None:
    fact = step_fact({"tuning": {"split": SPLIT | {"looked_into": True}}})
    assert fact is not None and fact[0] == "step" and plain(fact[1]) == "10 ms"
    assert fact[2].startswith("bound by compute")
    assert step_fact({"tuning": None}) is None and step_fact({"tuning": {"split": None}}) is None


def test_a_tuned_run_shows_the_step_of_the_plan_that_trained() -> None:
    split = SPLIT | {"looked_into": True}
    last = estimate_breakdown(0.0, 0.004, batch_size=64, overhead_share=0.25).to_json() | {"looked_into": True}
    plan = {"trials": [{"name": "2 threads", "tier": "A", "verdict": "adopted"}]}
    fact = step_fact({"tuning": {"split": split, "last_split": last}, "plan": plan})
    assert fact is not None and plain(fact[1]) == "4.0 ms" and plain(fact[2]).endswith("; 10 ms before tuning")
    assert "computing 75 %" in plain(fact[2])
    only_before = step_fact({"tuning": {"split": split, "last_split": None}, "plan": plan})
    assert only_before is not None and only_before[2].startswith("before tuning: bound by")


def test_a_ceiling_that_is_no_higher_than_what_was_reached_is_not_told() -> None:
    last = estimate_breakdown(0.0001, 0.008, batch_size=64, overhead_share=0.25).to_json() | {"looked_into": True}
    assert "without waiting" not in split_sentence({"last_split": last}, "last_split")


def test_a_profile_says_in_words_that_a_ceiling_is_within_noise() -> None:
    def said(speed: float) -> str:
        return plain(dict(ceilings({"samples_per_second": 100.0, "loader_samples_per_second": speed}))["loader alone"])

    assert said(250.0) == "250 samples/s, 2.5× the training's speed"
    assert said(96.0) == said(104.0) == "as fast as the training, within noise"
    assert said(50.0).startswith("unknown")


@pytest.mark.parametrize(
    ("saved", "told"),
    [(0.0, "nothing was saved"), (55.3, "steps of trials that were faster saved about 55 s meanwhile")],
)
def test_what_tuning_cost_is_told_though_nothing_was_adopted(saved: float, told: str) -> None:
    refused = {"name": "compiled", "tier": "A", "verdict": "refused", "seconds": 79.2}
    tuning = {"seconds": 79.2, "saved_seconds": saved, "net_seconds": saved - 79.2, "first_step_seconds": 0.5}
    fact = tuning_fact({"tuning": tuning, "plan": {"trials": [refused]}})
    assert fact is not None and fact[:2] == ("plan", "plain")
    said = plain(fact[2])
    assert said.startswith("1 candidate tried, none proven faster. 1 min 19 s went into checks")
    assert told in said and not said.endswith(".")


def test_tuning_that_cost_nothing_is_not_said_to_have_cost() -> None:
    fact = tuning_fact({"tuning": {"seconds": 0.001, "saved_seconds": 0.0, "net_seconds": -0.001}, "plan": {}})
    assert fact == ("plan", "plain", "no other plan was tried")


def test_a_changed_algorithm_is_reported_as_what_it_is() -> None:
    changed = changed_batch({64: 1000.0, 128: 1900.0, 256: 1950.0})
    fact = algorithm_fact({"algorithm": changed.to_json()})
    assert fact is not None and fact[:2] == ("algorithm", "changed")
    said = plain(fact[2])
    assert "128 in place of 64" in said and "1,000 samples/s → 1,900 samples/s" in said
    assert "0.01 → 0.02 (linear rule)" in said and "no longer the recipe's" in said
    assert "1.9×, interval 1.9–1.9×" in said.replace("1.90", "1.9")
    kept = changed_batch({64: 1000.0, 128: 1001.0})
    fact = algorithm_fact({"algorithm": kept.to_json()})
    assert fact is not None and fact[1] == "as it was" and "stays at 64" in fact[2]
    assert algorithm_fact({"algorithm": None}) is None and algorithm_fact({}) is None


def test_a_larger_batch_is_no_part_of_what_the_plan_gained() -> None:
    changed = changed_batch({64: 1000.0, 128: 1900.0})
    result = {"tuning": {"seconds": 0.1, "net_seconds": -0.1}, "plan": {"trials": [changed.trial().to_json()]}}
    fact = tuning_fact(result)
    assert fact is not None and fact[1] == "plain"


@pytest.mark.parametrize("value", [None, 3, "x", [], {"rates": 3}, {"rates": {"64": "x"}, "batch_size": "64"}])
def test_nonsense_says_nothing(value: Any) -> None:
    assert algorithm_fact({"algorithm": value}) is None
    assert step_fact({"tuning": {"split": value}}) is None


def test_a_plan_that_was_given_is_named_by_what_it_changes() -> None:
    given = Plan(memory_format="channels_last", num_threads=2)
    fact = tuning_fact({"tuning": None, "plan": given.to_json()})
    assert fact == ("plan", "given", "memory_format=channels_last, num_threads=2")
    assert tuning_fact({"tuning": None, "plan": BASELINE.to_json()}) is None
    assert {name: getattr(BASELINE, name) for name in PLAIN_SETTINGS} == PLAIN_SETTINGS
