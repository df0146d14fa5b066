"""The batch size at the knee of the throughput, and the learning rate that goes with it: laws, and a real training."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from upshift import train, tune
from upshift.errors import ConfigError, UnknownNameError
from upshift.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from upshift.tuning.batch_size import (
    KNEE_SHARE,
    batch_sizes,
    changed_algorithm,
    checked_allowed,
    knee,
    scaled,
    scaling_rule,
    speedups,
)

RATES = st.dictionaries(
    st.sampled_from([2**power for power in range(16)]), st.floats(1e-3, 1e9), min_size=1, max_size=10
)


def rounds_of(rates: Mapping[int, float], num_rounds: int = 12) -> dict[int, list[float]]:
    """Seconds a sample at these rates, without noise."""
    return {size: [1 / rate] * num_rounds for size, rate in rates.items()}


def noisy_rounds(rates: Mapping[int, float], order: random.Random, num_rounds: int = 12) -> dict[int, list[float]]:
    """The same on a machine that drifts, with bursts in one turn of twenty."""
    times: dict[int, list[float]] = {size: [] for size in rates}
    for _ in range(num_rounds):
        drift = math.exp(order.gauss(0, 0.2))
        for size, rate in rates.items():
            burst = 3.0 if order.random() < 0.05 else 1.0
            times[size].append(drift * burst * math.exp(order.gauss(0, 0.05)) / rate)
    return times


# The rules


@given(RATES)
def test_the_knee_is_the_smallest_batch_near_the_best_rate(rates: dict[int, float]) -> None:
    found, best = knee(rates), max(rates.values())
    assert rates[found] >= KNEE_SHARE * best
    assert all(rate < KNEE_SHARE * best for size, rate in rates.items() if size < found)


@given(RATES, st.floats(1e-3, 1e3))
def test_a_faster_machine_has_the_same_knee(rates: dict[int, float], speed: float) -> None:
    bent = knee(rates)
    again = {size: rate * speed for size, rate in rates.items()}
    assert knee(again) == bent or math.isclose(rates[bent], KNEE_SHARE * max(rates.values()), rel_tol=1e-9)


@given(st.integers(1, 5000), st.integers(1, 10**7))
def test_batches_double_and_leave_ten_steps_an_epoch(batch_size: int, num_samples: int) -> None:
    sizes = batch_sizes(batch_size, num_samples)
    assert sizes[0] == batch_size and all(after == 2 * before for before, after in itertools.pairwise(sizes))
    assert all(size <= 32 * batch_size and 10 * size <= num_samples for size in sizes[1:])


@given(st.floats(1e-6, 10.0), st.floats(1.0, 32.0), st.floats(1.0, 32.0))
def test_growing_twice_is_growing_once_by_both(rate: float, one: float, other: float) -> None:
    for rule in ("linear", "square root"):
        assert scaled(scaled(rate, one, rule), other, rule) == pytest.approx(scaled(rate, one * other, rule))
        assert scaled(rate, one, rule) >= rate
    assert scaled(rate, one, "linear") == pytest.approx(rate * one)
    assert scaled(rate, one, "square root") ** 2 == pytest.approx(rate**2 * one)


@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [("sgd", "linear"), ("adam", "square root"), ("adamw", "square root"), ("muon", "square root")],
)
def test_the_rule_is_that_of_the_optimizer(optimizer: str, rule: str) -> None:
    assert scaling_rule(optimizer) == rule


@given(RATES, st.sampled_from(["sgd", "adamw"]), st.floats(1e-5, 1.0))
def test_a_change_is_all_or_nothing(rates: dict[int, float], optimizer: str, rate: float) -> None:
    first = min(rates)
    config = TrainingConfig(batch_size=first, optimizer=OptimizerConfig(name=optimizer, lr=rate), max_steps=1000)
    found = changed_algorithm(config, rounds_of(rates), 1.0)
    faster = {size: value for size, value in rates.items() if value > rates[first] * (1 + 1e-9)} | {first: rates[first]}
    assert found.new_batch_size == knee(faster) or math.isclose(
        rates[found.new_batch_size], KNEE_SHARE * max(rates.values()), rel_tol=1e-9
    )
    assert found.adopted == bool(found.settings) == (found.new_learning_rate != rate)
    assert found.trial().tier == "C" and json.loads(json.dumps(found.to_json()))["adopted"] is found.adopted
    if found.adopted:
        named = dict(setting.split("=") for setting in found.settings)
        assert int(named["batch_size"]) == found.new_batch_size
        assert float(named["optimizer.lr"]) == found.new_learning_rate
        assert int(named["max_steps"]) * found.new_batch_size >= 1000 * first, "as many samples"


def test_what_counts_in_steps_follows_the_batch() -> None:
    config = TrainingConfig(
        batch_size=64,
        optimizer=OptimizerConfig(name="muon", lr=0.02, adamw_lr=0.001),
        ema_decay=0.99,
        max_steps=401,
    )
    found = changed_algorithm(config, rounds_of({64: 100.0, 128: 190.0, 256: 380.0, 512: 390.0}), 1.0)
    assert found.settings == (
        "batch_size=256",
        "optimizer.lr=0.04",
        "optimizer.adamw_lr=0.002",
        "schedule.warmup_fraction=0.05",
        f"ema_decay={0.99**4!r}",
        "max_steps=101",
    )


@pytest.mark.parametrize(
    "schedule", [ScheduleConfig(name="one_cycle"), ScheduleConfig(name="cosine", warmup_fraction=0.1)]
)
def test_a_warm_up_of_the_recipe_is_kept(schedule: ScheduleConfig) -> None:
    found = changed_algorithm(TrainingConfig(batch_size=64, schedule=schedule), rounds_of({64: 1.0, 128: 2.0}), 1.0)
    assert found.warmup_fraction is None and not any("warmup" in setting for setting in found.settings)


def test_batches_that_are_equally_fast_are_not_taken_for_their_luck() -> None:
    order, config = random.Random(0), TrainingConfig(batch_size=64)
    equal = dict.fromkeys((64, 128, 256, 512, 1024, 2048), 1000.0)
    num_wrong = proven = 0
    for _ in range(1000):
        times = noisy_rounds(equal, order)
        proven += any(found.low > 1.0 for found in speedups(times, 64).values())
        num_wrong += changed_algorithm(config, times, 1.0).adopted
    assert num_wrong <= proven <= 50, "5 % for all sizes together"


def test_a_batch_that_is_much_faster_is_found_through_the_noise() -> None:
    order, config = random.Random(0), TrainingConfig(batch_size=64)
    rates = {64: 1000.0, 128: 1500.0, 256: 1900.0, 512: 1910.0}
    taken = [changed_algorithm(config, noisy_rounds(rates, order), 1.0).new_batch_size for _ in range(200)]
    assert sum(size > 128 for size in taken) >= 190


def test_too_few_rounds_prove_nothing() -> None:
    found = changed_algorithm(TrainingConfig(batch_size=64), rounds_of({64: 1.0, 128: 2.0}, 5), 1.0)
    assert not found.adopted and "no larger batch is proven faster" in found.reason
    assert found.to_json()["speedups"]["128"] == [pytest.approx(2.0), 0.0, None]
    assert found.trial().speedup_interval is None


def test_what_was_measured_is_evidence_with_its_interval() -> None:
    times = noisy_rounds({64: 1000.0, 128: 1500.0}, random.Random(0))
    found = changed_algorithm(TrainingConfig(batch_size=64), times, 1.0, note="256 samples did not fit into memory")
    interval = found.speedups[128]
    assert found.adopted and 1.0 < interval.low < interval.estimate < interval.high
    trial = found.trial()
    assert trial.speedup_interval == (interval.low, interval.high) and trial.num_rounds == found.num_rounds == 12
    assert "proven faster" in found.reason and found.reason.endswith("256 samples did not fit into memory")


# What is allowed


def test_nothing_else_can_be_allowed() -> None:
    assert checked_allowed(()) is False and checked_allowed(["algorithm"]) is True
    with pytest.raises(UnknownNameError, match="did you mean 'algorithm'"):
        checked_allowed(["algoritm"])


@pytest.mark.parametrize("verb", ["train", "run", "tune"])
def test_the_command_refuses_what_it_does_not_know(verb: str, upshift_cli: Any) -> None:
    answer = upshift_cli(verb, "digits", "--allow", "everything")
    assert answer.code == 2 and "'everything'" in answer.err and "--allow algorithm" in answer.err


def test_a_loop_of_ones_own_has_a_batch_size_of_its_own() -> None:
    with pytest.raises(ConfigError, match="your loader's"):
        tune(model=nn.Linear(4, 2), data=[(torch.randn(8, 4), torch.zeros(8).long())], allow=("algorithm",))


# A real training on the digits: whatever batch this machine is fastest with


def test_a_run_that_may_change_the_batch_says_what_it_changed_and_can_be_made_again(tmp_path: Path) -> None:
    few = ["epochs=1", "batch_size=8", "log_every=1"]
    result = train("digits", overrides=few, out=tmp_path / "run", plan="baseline", allow=("algorithm",)).result
    changed = result["algorithm"]
    assert changed["batch_size"] == 8 and changed["rule"] == "square root"
    proven = {8: 1.0} | {int(size): ratio for size, (ratio, low, _) in changed["speedups"].items() if low > 1.0}
    assert changed["new_batch_size"] == knee(proven)
    factor = changed["new_batch_size"] / 8
    assert changed["new_learning_rate"] == pytest.approx(changed["learning_rate"] * math.sqrt(factor))
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    assert recipe["batch_size"] == changed["new_batch_size"]
    assert recipe["optimizer"]["lr"] == pytest.approx(changed["new_learning_rate"])
    assert result["steps"] == math.ceil(1437 / changed["new_batch_size"]), "as many epochs"

    again = train("digits", overrides=[*few, *changed["settings"]], out=tmp_path / "set", plan="baseline").result
    assert again["algorithm"] is None, "nothing else is tried"
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "set")
    ]
    assert losses[0] == losses[1], "choosing has left weights and random numbers alone"
