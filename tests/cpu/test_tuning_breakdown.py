"""Where a step's time goes: the parts add up, and the largest names what binds."""

from __future__ import annotations

import json
from typing import Unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.tuning.breakdown import Bound, Breakdown, StepFacts, estimate_breakdown, loader_ceiling

SECONDS = st.floats(min_value=0, max_value=1e3)


def bound_by(data_seconds: float, step_seconds: float, **facts: Unpack[StepFacts]) -> Bound:
    return estimate_breakdown(data_seconds, step_seconds, **facts).bound_by


def test_a_loop_that_waits_longer_than_it_computes_is_bound_by_data() -> None:
    assert bound_by(0.03, 0.01) == "data"
    assert bound_by(0.003, 0.01) == "compute"


def test_many_operators_on_little_arithmetic_are_overhead() -> None:
    facts: StepFacts = {"flops": 1e6, "peak_flops_per_second": 1e11, "overhead_share": 0.9}
    assert bound_by(0.0, 0.005, **facts) == "overhead"
    facts["overhead_share"] = 0.01
    assert bound_by(0.0, 0.5, **facts) == "compute"


def test_values_that_are_read_back_are_synchronization() -> None:
    found = estimate_breakdown(0.0, 0.01, overhead_share=0.5, synchronization_share=0.7)
    assert found.bound_by == "synchronization" and found.host_overhead == pytest.approx(0.003)


def test_without_a_count_of_operators_far_from_the_limit_is_overhead() -> None:
    facts: StepFacts = {"flops": 1e8, "peak_flops_per_second": 1e11}  # 1 ms at the limit
    assert bound_by(0.0, 0.003, **facts) == "compute"
    assert bound_by(0.0, 0.1, **facts) == "overhead"


def test_computing_that_the_bandwidth_explains_is_bound_by_memory() -> None:
    facts: StepFacts = {"flops": 1e8, "peak_flops_per_second": 1e11, "peak_bytes_per_second": 1e10}
    assert bound_by(0.0, 0.015, bytes_moved=1e8, **facts) == "memory bandwidth"  # 10 ms at the full bandwidth
    assert bound_by(0.0, 0.03, bytes_moved=1e8, **facts) == "compute"
    assert bound_by(0.0, 0.005, bytes_moved=1e6, **facts) == "compute"


def test_no_step_yet_is_no_failure() -> None:
    empty = estimate_breakdown(0.0, 0.0)
    assert empty.seconds == 0 and empty.samples_per_second == 0 and empty.num_steps == 0
    assert empty.synthetic_samples_per_second is None


@given(SECONDS, SECONDS, st.floats(0, 1e15), st.floats(0, 1e15), st.none() | st.floats(0, 1), st.floats(0, 2))
def test_parts_are_never_negative_and_add_up(
    data: float, step: float, flops: float, moved: float, overhead: float | None, synchronization: float
) -> None:
    found = estimate_breakdown(
        data,
        step,
        batch_size=64,
        flops=flops,
        bytes_moved=moved,
        peak_flops_per_second=1e11,
        peak_bytes_per_second=1e10,
        overhead_share=overhead,
        synchronization_share=synchronization,
    )
    assert all(seconds >= 0 for seconds in found.parts.values())
    assert found.seconds == pytest.approx(data + step, rel=1e-9, abs=1e-12)


# Ceilings


def test_the_ceiling_of_synthetic_data_is_the_step_without_its_wait() -> None:
    found = estimate_breakdown(0.03, 0.01, batch_size=64)
    assert found.synthetic_samples_per_second == pytest.approx(6400)
    assert found.samples_per_second == pytest.approx(1600)


def test_a_loader_between_the_steps_is_as_fast_as_its_wait_is_short() -> None:
    assert loader_ceiling(64, 0.01, 1.0, works_ahead=False, at_best=None) == pytest.approx(6400)
    assert loader_ceiling(64, 0.0, 1.0, works_ahead=False, at_best=9e5) == 9e5


def test_a_loader_that_works_ahead_is_as_fast_as_the_loop_that_waits_for_it() -> None:
    assert loader_ceiling(64, 0.03, 0.01, works_ahead=True, at_best=9e5) == pytest.approx(1600)
    assert loader_ceiling(64, 1e-5, 0.01, works_ahead=True, at_best=None) is None, "it may be any faster"


def test_the_largest_part_names_the_bound_and_the_record_says_so() -> None:
    parts = {"data_wait": 0.1, "host_overhead": 0.2, "device_compute": 0.3, "synchronization": 0.05}
    found = Breakdown(batch_size=8, num_steps=50, memory_share=0.7, **parts)
    assert found.bound_by == "memory bandwidth"
    record = json.loads(json.dumps(found.to_json()))
    assert record["bound_by"] == "memory bandwidth"
    assert record["seconds"] == pytest.approx(0.65)
    assert record["samples_per_second"] == pytest.approx(8 / 0.65)
    for name, bound in (("host_overhead", "overhead"), ("synchronization", "synchronization")):
        assert Breakdown(batch_size=8, num_steps=50, **parts | {name: 1.0}).bound_by == bound
