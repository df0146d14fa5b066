"""Where a step's time goes: the parts add up, and the largest names what binds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.tuning.breakdown import Breakdown, StepFacts, bound_by, estimate_breakdown

SECONDS = st.floats(min_value=0, max_value=1e3)


def test_a_loop_that_waits_longer_than_it_computes_is_bound_by_data() -> None:
    assert bound_by([0.03] * 50, [0.01] * 50) == "data"
    assert bound_by([0.003] * 50, [0.01] * 50) == "compute"


def test_waiting_for_a_chunk_of_batches_counts_in_all_of_them() -> None:
    # One batch in ten waits for all ten: the median would see no waiting at all.
    assert bound_by([0.2, *[0.0] * 9] * 5, [0.01] * 50) == "data"


def test_a_burst_on_the_machine_does_not_turn_data_into_compute() -> None:
    assert bound_by([0.02] * 50, [*[0.01] * 49, 60.0]) == "data"


def test_many_operators_on_little_arithmetic_are_overhead() -> None:
    facts: StepFacts = {
        "flops": 1e6,
        "peak_flops_per_second": 1e11,
        "num_operators": 900,
        "seconds_per_operator": 5e-6,
    }
    assert bound_by([0.0] * 50, [0.005] * 50, **facts) == "overhead"
    assert bound_by([0.0] * 50, [0.5] * 50, **facts) == "compute"


def test_without_a_count_of_operators_far_from_the_limit_is_overhead() -> None:
    facts: StepFacts = {"flops": 1e8, "peak_flops_per_second": 1e11}  # 1 ms at the limit
    assert bound_by([0.0] * 50, [0.003] * 50, **facts) == "compute"
    assert bound_by([0.0] * 50, [0.1] * 50, **facts) == "overhead"


def test_more_bytes_than_arithmetic_is_bound_by_memory() -> None:
    facts: StepFacts = {"flops": 1e8, "peak_flops_per_second": 1e11, "peak_bytes_per_second": 1e10}
    assert bound_by([0.0], [0.02], bytes_moved=1e8, **facts) == "memory bandwidth"
    assert bound_by([0.0], [0.005], bytes_moved=1e6, **facts) == "compute"


def test_no_step_yet_is_no_failure() -> None:
    empty = estimate_breakdown([], [])
    assert empty.seconds == 0 and empty.samples_per_second == 0 and empty.num_steps == 0


@given(
    st.lists(SECONDS, min_size=1, max_size=60),
    st.lists(SECONDS, min_size=1, max_size=60),
    st.floats(0, 1e15),
    st.floats(0, 1e15),
    st.none() | st.integers(0, 100_000),
)
def test_parts_are_never_negative_and_add_up(
    data: list[float], step: list[float], flops: float, moved: float, num_operators: int | None
) -> None:
    found = estimate_breakdown(
        data,
        step,
        batch_size=64,
        flops=flops,
        bytes_moved=moved,
        peak_flops_per_second=1e11,
        peak_bytes_per_second=1e10,
        num_operators=num_operators,
        seconds_per_operator=5e-6,
    )
    assert all(seconds >= 0 for seconds in found.parts.values())
    waited = sum(data) / len(data)
    middle = sorted(step)
    median = (middle[(len(step) - 1) // 2] + middle[len(step) // 2]) / 2
    assert found.seconds == pytest.approx(waited + median, rel=1e-9, abs=1e-12)


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
