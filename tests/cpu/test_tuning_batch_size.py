"""The batch size at the knee of the throughput, and the learning rate that goes with it: laws, and a real training."""

from __future__ import annotations

import itertools
import json
import math
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
)

RATES = st.dictionaries(
    st.sampled_from([2**power for power in range(16)]), st.floats(1e-3, 1e9), min_size=1, max_size=10
)

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
    found = changed_algorithm(config, rates, 1.0)
    assert found.new_batch_size == knee(rates) >= first
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
    found = changed_algorithm(config, {64: 100.0, 128: 190.0, 256: 380.0, 512: 390.0}, 1.0)
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
    found = changed_algorithm(TrainingConfig(batch_size=64, schedule=schedule), {64: 1.0, 128: 2.0}, 1.0)
    assert found.warmup_fraction is None and not any("warmup" in setting for setting in found.settings)


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
    assert changed["new_batch_size"] == knee({int(size): rate for size, rate in changed["rates"].items()})
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
