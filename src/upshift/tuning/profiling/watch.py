"""The operators of a step and what they say of where its time goes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from upshift.tuning.profiling.attribution import (
    AttributedCall,
    OperatorRow,
    Roofline,
    attribute,
    memory_share,
    operator_rows,
    timed_rows,
)
from upshift.tuning.profiling.events import CallCost, TimedOperator, WatchedStep, calibrate, record, watched_steps
from upshift.tuning.profiling.operators import OperatorCall, log_step
from upshift.tuning.profiling.rehearsal import Batch, Rehearsal, StepTimes
from upshift.tuning.profiling.trials import AlternativeTrials

MIN_STEPS, MAX_STEPS = 3, 10


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What watching a few steps came to.

    Attributes:
        calls: The operators of a step with their part of it; empty where the step is compiled.
        rows: The operators by time, those of the loader included.
        parts: Seconds of a step, as `Breakdown` names them.
        memory_share: Share of computing that memory bandwidth explains; None if unknown.
    """

    calls: tuple[AttributedCall, ...]
    rows: tuple[OperatorRow, ...]
    parts: dict[str, float]
    memory_share: float | None


def watch(
    rehearsal: Rehearsal,
    batches: Iterator[Batch],
    times: StepTimes,
    roofline: Roofline | None,
    *,
    is_compiled: bool,
    max_seconds: float,
    max_operators: int,
) -> Watched:
    """Watch the operators of a few steps.

    Args:
        rehearsal: Makes the steps.
        batches: Its batches, all of the same size.
        times: Of steps that nothing watched.
        roofline: Of the machine, if known.
        is_compiled: Whether torch.compile made them. Such a step is not logged: under the log it would run its
            operators one by one.
        max_seconds: About as long; at least three steps are made.
        max_operators: About as many calls are timed.
    """
    step, data = statistics.median(times.step), statistics.fmean(times.data)
    cost = calibrate(rehearsal.device)
    logged: list[OperatorCall] = []
    if not is_compiled:
        trials = AlternativeTrials(rehearsal.device, budget_seconds=max_seconds)
        logged = log_step(rehearsal, next(batches), trials)
    by_time, by_number = int(max_seconds / max(step + data, 1e-9)), max_operators // (len(logged) or 1)
    num_steps = max(MIN_STEPS, min(MAX_STEPS, by_time, by_number))
    recorded = record(rehearsal, batches, num_steps=num_steps, marks=not is_compiled)
    outermost = watched_steps(recorded, cost, rehearsal.device)
    rows = timed_rows([watched.data for watched in outermost], step + data, phase="data", at_most=data)
    calls: list[AttributedCall] = []
    if is_compiled:
        rows += timed_rows([watched.step for watched in outermost], step + data)
        parts = _parts_of_timed([watched.step for watched in outermost], step, cost)
    else:
        names = frozenset(call.name for call in logged)
        calls = attribute(logged, watched_steps(recorded, cost, rehearsal.device, names=names), step, cost)
        rows += operator_rows(calls, step + data, roofline)
        parts = _parts(calls)
    if rehearsal.device.type != "cpu":
        parts = _parts_beside_the_host(outermost, step, data)
    return Watched(
        calls=tuple(calls),
        rows=tuple(sorted(rows, key=lambda row: -row.share)),
        parts={"data_wait": data} | parts,
        memory_share=memory_share(calls, roofline) if calls and roofline else None,
    )


def _parts(calls: Sequence[AttributedCall]) -> dict[str, float]:
    """The parts of a step on a CPU, from its operators."""
    others = [item for item in calls if not item.call.reads_back]
    return {
        "host_overhead": sum(item.overhead_seconds for item in others),
        "device_compute": sum(item.compute_seconds for item in others),
        "synchronization": sum(item.seconds for item in calls if item.call.reads_back),
    }


def _parts_of_timed(steps: Sequence[Sequence[TimedOperator]], step_seconds: float, cost: CallCost) -> dict[str, float]:
    """The parts of a step on a CPU of which only the operators' times are known."""
    kernels = statistics.median(sum(timed.seconds for timed in step) for step in steps)
    calls = statistics.median(sum(timed.gap_seconds + cost.unwatched_seconds for timed in step) for step in steps)
    share = kernels / (kernels + calls) if kernels + calls > 0 else 1.0
    return {"host_overhead": step_seconds * (1 - share), "device_compute": step_seconds * share}


def _parts_beside_the_host(steps: Sequence[WatchedStep], step_seconds: float, data_seconds: float) -> dict[str, float]:
    """The parts of a step on an accelerator: its kernels, and what the host did while it was idle."""
    total = step_seconds + data_seconds
    compute = min(total, statistics.median(sum(timed.seconds for timed in watched.step) for watched in steps))
    idle = total - compute
    data = min(idle, data_seconds)
    waits = min(idle - data, statistics.median(max(0.0, watched.synchronization - compute) for watched in steps))
    return {
        "data_wait": data,
        "host_overhead": idle - data - waits,
        "device_compute": compute,
        "synchronization": waits,
    }
