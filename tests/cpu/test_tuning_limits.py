"""The machine's limits within a training: measured where it can pay for that, and booked as time of tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layered_recipe import RECIPE

from simulated_clock import spend
from upshift import train
from upshift.core.cache import TuningCache
from upshift.core.environment import describe, fingerprint
from upshift.core.limits import Limits

pytestmark = pytest.mark.usefixtures("simulated_clock", "one_thread")

MEASURING_SECONDS = 5.0
SHORT, TIGHT, LONG = 0.015, 1.0, 1.5
"""Seconds of a step, unless its convolutions are channels_last: of trainings of 460 steps, or of 1,380."""


class Machine:
    """One that multiplies faster in bf16, and where measuring that takes its time; counts how often it was measured."""

    def __init__(self) -> None:
        self.num_measured = 0

    def __call__(self, device: torch.device, **where: Any) -> Limits:
        self.num_measured += 1
        spend(MEASURING_SECONDS)
        return Limits(
            device="cpu",
            matmul_flops={"fp32": 2e11, "bf16": 8e11},
            convolution_flops={"fp32": 4e11},
            memory_bytes_per_second=4e10,
            cache_bytes_per_second=2e11,
            cache_bytes=2**25,
            launch_seconds=1e-6,
            num_threads=1,
            was_busy=False,
            num_measurements=1,
            seconds=MEASURING_SECONDS,
        )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Nothing is known of it but that compiling takes hours, so that nothing is compiled."""
    monkeypatch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path / "cache"))
    slow = [{"compile": scope, "build_seconds": 1e5, "num_operators": 10} for scope in ("whole", "regional", "step")]
    TuningCache().add_trials(fingerprint(describe()), slow)
    monkeypatch.setattr("upshift.workflows.live_tuning.num_usable_cores", lambda: 1)
    machine = Machine()
    monkeypatch.setattr("upshift.workflows.live_tuning.limits", machine)
    return machine


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, machine: Machine) -> Run:
    def run_for(seconds: float, *, epochs: int = 20) -> dict[str, Any]:
        settings = (f"model_args.seconds={seconds}", f"epochs={epochs}")
        return train(RECIPE, overrides=settings, out=tmp_path / f"{seconds}-{epochs}").result

    return run_for


def names(result: dict[str, Any]) -> list[str]:
    return [trial["name"] for trial in result["plan"]["trials"]]


def test_a_long_training_measures_the_machine_before_the_race(machine: Machine, run: Run) -> None:
    result = run(LONG, epochs=60)
    assert machine.num_measured == 1 and result["tuning"]["seconds"] > 0.9 * MEASURING_SECONDS
    assert result["tuning"]["limit"] is not None
    assert names(result).index("bf16") < names(result).index("channels_last"), "the most promising first"


def test_one_that_cannot_pay_for_it_at_first_measures_the_machine_once_it_has_won_the_time(
    machine: Machine, run: Run
) -> None:
    result = run(TIGHT)
    assert machine.num_measured == 1 and result["tuning"]["seconds"] > 0.9 * MEASURING_SECONDS
    assert result["plan"]["memory_format"] == "channels_last"
    assert names(result).index("channels_last") < names(result).index("bf16")


def test_a_short_one_does_not_measure_it(machine: Machine, run: Run) -> None:
    result = run(SHORT)
    assert machine.num_measured == 0 and result["tuning"]["limit"] is None
    assert result["plan"]["memory_format"] == "channels_last" and "bf16" not in names(result)


def test_a_machine_that_cannot_be_measured_costs_no_training(
    machine: Machine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*of: Any, **where: Any) -> Limits:
        raise MemoryError("no room for buffers")

    monkeypatch.setattr("upshift.workflows.live_tuning.limits", fail)
    result = run(TIGHT)
    assert result["steps"] == 460 and result["plan"]["memory_format"] == "channels_last"
    (note,) = [note for note in result["notes"] if "could not be measured" in note]
    assert "no room for buffers" in note
