"""What is tried, and in which order, by where the time of a step goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upshift.core.racing import Contender, Race
from upshift.tuning.breakdown import Breakdown
from upshift.tuning.candidates import Candidate, Job, Observed, candidates
from upshift.tuning.memory import StepMemory
from upshift.tuning.operators import OperatorMix
from upshift.tuning.plan import BASELINE, Plan

JOB = Job(
    device=torch.device("cpu"),
    has_convolutions=True,
    couples_samples=False,
    num_blocks=4,
    batch_size=256,
    num_threads=1,
    num_cores=2,
    data_paths=("resident", "mmap"),
    data_path="mmap",
    fast_dtypes=("bf16",),
)
PLAIN = Plan(fused_optimizer=False)
MIB = 2**20


def observed(
    *, data: float = 0.0, overhead: float = 0.0, compute: float = 0.0, looked: bool = True, **facts: Any
) -> Observed:
    step = overhead + compute
    split = Breakdown(batch_size=256, num_steps=50, data_wait=data, host_overhead=overhead, device_compute=compute)
    mix = OperatorMix(100, 0.5 * compute / step, overhead / step, 0.0, 0.0) if looked and step else None
    return Observed(split=split, mix=mix, **facts)


def gains(job: Job = JOB, plan: Plan = PLAIN, **facts: Any) -> dict[str, float]:
    return {candidate.name: candidate.gain for candidate in candidates(job, plan, observed(**facts))}


def found(name: str, job: Job = JOB, plan: Plan = PLAIN, **facts: Any) -> Candidate:
    return next(candidate for candidate in candidates(job, plan, observed(**facts)) if candidate.name == name)


def first_tried(**facts: Any) -> str:
    """The first by gain for its price, as the tuner's race takes them: building it, and a few steps."""
    entered = [
        Contender(
            name=candidate.name, expected_gain=candidate.gain, expected_cost_seconds=0.1 + candidate.build_seconds
        )
        for candidate in candidates(JOB, PLAIN, observed(**facts))
    ]
    chosen = Race("the plan", entered).next()
    assert chosen is not None
    return chosen.name


def test_the_order_follows_from_what_the_step_is_bound_by() -> None:
    assert first_tried(data=0.9, overhead=0.05, compute=0.05) == "data in memory"
    assert first_tried(data=0.0, overhead=0.9, compute=0.1) == "fused optimizer"
    assert first_tried(data=0.0, overhead=0.01, compute=0.99) == "bf16"


def test_what_attacks_a_part_promises_in_proportion_to_it() -> None:
    little, much = gains(overhead=0.9, compute=0.1), gains(overhead=0.1, compute=0.9)
    for name in ("channels_last", "2 threads", "micro-batches of 128", "bf16"):
        assert much[name] == pytest.approx(9 * little[name])
    assert little["fused optimizer"] > much["fused optimizer"]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-6, 1), st.booleans())
def test_no_candidate_promises_more_than_all_of_the_step(
    data: float, overhead: float, compute: float, looked: bool
) -> None:
    for name, gain in gains(data=data, overhead=overhead, compute=compute, looked=looked).items():
        assert 0.0 <= gain <= 1.0, name


def test_where_nobody_looked_a_part_may_be_all_of_the_step() -> None:
    unknown = gains(data=0.5, compute=0.5, looked=False)
    known = gains(data=0.5, overhead=0.5, looked=True)
    assert unknown["fused optimizer"] == known["fused optimizer"]
    assert "compiled" not in unknown and "compiled" in known


def test_a_wait_that_is_the_conversion_itself_is_not_blamed_on_where_data_lie() -> None:
    job = replace(JOB, stored_samples_per_second=256 / 0.3)
    assert gains(job, data=0.3, compute=0.7)["data in memory"] == 0.0
    assert gains(job, data=0.6, compute=0.4)["data in memory"] == pytest.approx(0.4 * 0.3)
    assert gains(data=0.6, compute=0.4)["data in memory"] == pytest.approx(0.4 * 0.6)


# Micro-batches


def test_batches_are_split_only_where_samples_are_independent() -> None:
    assert found("micro-batches of 128", compute=1.0).changes == {"micro_batch_size": 128}
    assert "micro-batches of 128" not in gains(replace(JOB, couples_samples=True), compute=1.0)
    assert "micro-batches of 128" not in gains(replace(JOB, can_split=False), compute=1.0)
    assert "micro-batches of 64" in gains(plan=replace(PLAIN, micro_batch_size=128), compute=1.0)
    assert "micro-batches of 128" not in gains(compute=1.0, memory=HALVED), "they are smaller than that already"


# Memory


ROOM = StepMemory(saved_bytes=100 * MIB, free_bytes=4000 * MIB, total_bytes=8000 * MIB)
TIGHT = StepMemory(saved_bytes=3900 * MIB, free_bytes=4000 * MIB, total_bytes=8000 * MIB)
HALVED = StepMemory(num_parts=8)


def test_activations_are_recomputed_only_where_memory_binds() -> None:
    assert "activation checkpointing" not in gains(compute=1.0)
    assert "activation checkpointing" not in gains(compute=1.0, memory=ROOM)
    tight = found("activation checkpointing", compute=1.0, memory=TIGHT)
    assert tight.changes == {"activation_checkpointing": True} and tight.tier == "A"
    assert "3,900 MiB" in tight.reason and "4,000 MiB" in tight.reason
    assert "8 parts" in found("activation checkpointing", compute=1.0, memory=HALVED).reason


def test_a_model_without_repeated_blocks_has_nothing_to_recompute() -> None:
    assert "activation checkpointing" not in gains(replace(JOB, num_blocks=0), compute=1.0, memory=HALVED)


def test_parts_that_batch_norm_has_seen_stay_as_they_are() -> None:
    coupled = replace(JOB, couples_samples=True)
    assert "activation checkpointing" not in gains(coupled, compute=1.0, memory=HALVED)
    assert "activation checkpointing" in gains(coupled, compute=1.0, memory=TIGHT)


# CUDA


def test_graphs_are_recorded_on_cuda_alone() -> None:
    cuda = replace(JOB, device=torch.device("cuda"))
    graphs = found("CUDA graphs", cuda, overhead=0.8, compute=0.2)
    assert graphs.changes == {"compile": "whole", "compile_mode": "reduce-overhead"}
    assert graphs.gain > found("compiled", cuda, overhead=0.8, compute=0.2).gain and graphs.build_seconds > 0
    compiled = replace(BASELINE, compile="regional")
    assert found("CUDA graphs", cuda, compiled, overhead=1.0).changes["compile"] == "regional"
    assert "CUDA graphs" not in gains(overhead=0.8, compute=0.2)
    assert "CUDA graphs" not in gains(replace(cuda, changes_size=True), overhead=1.0)
    assert "CUDA graphs" not in gains(cuda, replace(compiled, compile_mode="max-autotune"), overhead=1.0)


def test_freed_memory_is_kept_where_a_step_has_much_of_it_mapped_anew() -> None:
    assert "freed memory kept" not in gains(compute=0.1, page_faults=100)
    few, many = (gains(compute=0.1, page_faults=faults)["freed memory kept"] for faults in (1_000, 4_000))
    assert many == pytest.approx(4 * few)
    assert 0.0 < many < 0.5
    assert "freed memory kept" not in gains(plan=replace(PLAIN, keep_freed_memory=True), compute=0.1, page_faults=4_000)
    of_gpu = replace(JOB, device=torch.device("cuda"))
    assert "freed memory kept" not in gains(of_gpu, compute=0.1, page_faults=4_000)


def test_a_step_is_compiled_as_one_graph_where_the_loop_can_do_so() -> None:
    assert gains(overhead=0.5, compute=0.5)["compiled step"] > gains(overhead=0.5, compute=0.5)["compiled"]
    assert "compiled step" not in gains(replace(JOB, can_compile_step=False), overhead=0.5, compute=0.5)
    for ruled_out in ({"activation_checkpointing": True}, {"precision": "fp16"}, {"compile": "step"}):
        assert "compiled step" not in gains(plan=replace(PLAIN, **ruled_out), overhead=0.5, compute=0.5)


def test_what_is_compiled_in_parts_may_gain_by_one_graph_and_not_the_other_way_round() -> None:
    blocks = gains(plan=replace(PLAIN, compile="regional"), overhead=0.5, compute=0.5)
    assert "compiled step" in blocks and "compiled" not in blocks
    step = gains(plan=replace(PLAIN, compile="step"), overhead=0.5, compute=0.5)
    assert not {"compiled", "compiled blocks", "CUDA graphs"} & set(step)
