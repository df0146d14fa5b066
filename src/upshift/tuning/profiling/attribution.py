"""Which operator and which line the time of a step belongs to, so that the parts add up to what was measured."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from upshift.tuning.profiling.events import CallCost, TimedOperator, WatchedStep
from upshift.tuning.profiling.operators import OperatorCall


@dataclass(frozen=True, slots=True)
class AttributedCall:
    """A call of an operator with its part of an unwatched step.

    Attributes:
        call: What was called.
        compute_seconds: Within its kernels.
        overhead_seconds: Python, dispatcher and autograd on the way to it.
    """

    call: OperatorCall
    compute_seconds: float
    overhead_seconds: float

    @property
    def seconds(self) -> float:
        """Its part of the step."""
        return self.compute_seconds + self.overhead_seconds


def attribute(
    calls: Sequence[OperatorCall], steps: Sequence[WatchedStep], step_seconds: float, cost: CallCost
) -> list[AttributedCall]:
    """Divide the time of a step among its operators.

    Computing is what kernels took beyond the call alone. Overhead is the gap before each operator and the cost of
    calling it. Both are what they are while the profiler records; in that proportion they share the time that a step
    takes when nothing watches.

    Args:
        calls: Of a step, in order, as they were logged.
        steps: The same step as it was timed, several times.
        step_seconds: Of a step that nothing watched.
        cost: Of a call alone.
    """
    times = _matched(calls, steps)
    overheads = [cost.unwatched_seconds + gap for _, gap in times]
    watched = sum(overheads) + sum(seconds for seconds, _ in times)
    scale = step_seconds / watched if watched > 0 else 0.0
    return [
        AttributedCall(call, seconds * scale, overhead * scale)
        for call, (seconds, _), overhead in zip(calls, times, overheads, strict=True)
    ]


def _matched(calls: Sequence[OperatorCall], steps: Sequence[WatchedStep]) -> list[tuple[float, float]]:
    """Seconds and gap of each call: the median over the steps of the same call, by its name and order.

    Where a step called an operator more or less often than the one that was logged (its code depends on the data),
    its calls share the operator's time evenly.
    """
    logged = Counter(call.name for call in calls)
    queues = [_queues(step.step) for step in steps]
    mean: dict[str, tuple[float, float]] = {}
    for name, amount in logged.items():
        if any(len(queue[name]) != amount for queue in queues):
            mean[name] = (
                statistics.median(sum(timed.seconds for timed in queue[name]) for queue in queues) / amount,
                statistics.median(sum(timed.gap_seconds for timed in queue[name]) for queue in queues) / amount,
            )
    seen: Counter[str] = Counter()
    times = []
    for call in calls:
        if call.name in mean:
            times.append(mean[call.name])
            continue
        same = [queue[call.name][seen[call.name]] for queue in queues]
        seen[call.name] += 1
        times.append((statistics.median(t.seconds for t in same), statistics.median(t.gap_seconds for t in same)))
    return times


def _queues(timed: Sequence[TimedOperator]) -> defaultdict[str, list[TimedOperator]]:
    queues: defaultdict[str, list[TimedOperator]] = defaultdict(list)
    for operator in timed:
        queues[operator.name].append(operator)
    return queues


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What this machine can do at best, in the precision of the step.

    Attributes:
        flops_per_second: Arithmetic.
        bytes_per_second: Memory.
    """

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, flops: float, num_bytes: float) -> float:
        """The least that so much work can take."""
        return max(flops / self.flops_per_second, num_bytes / self.bytes_per_second)

    def is_memory(self, flops: float, num_bytes: float) -> bool:
        """Whether it is memory that limits such work."""
        return num_bytes / self.bytes_per_second > flops / self.flops_per_second


@dataclass(frozen=True, kw_only=True)
class OperatorRow:
    """All calls of an operator in a phase of a step.

    Attributes:
        name: As "aten::mm".
        phase: "data", "forward", "backward" or "optimizer".
        calls: A step.
        seconds: A step, within kernels.
        overhead_seconds: A step, on the way to them.
        share: Of the step's time, overhead included.
        flops: A step; None where they are not counted.
        num_bytes: A step, read and written at least; None where unknown.
        flops_per_second: Reached; None where they are not counted.
        share_of_limit: How near the kernels come to what the machine allows for so many operations and bytes (the
            roofline, Williams 2009). Above 1 where tensors stay in the caches. None where unknown, as of products
            in float64.
        limited_by: "compute" or "memory bandwidth"; None where unknown.
        site: The line that most of its time belongs to, as "file:line"; None where that is no code of the user's.
    """

    name: str
    phase: str
    calls: float
    seconds: float
    overhead_seconds: float
    share: float
    flops: int | None = None
    num_bytes: int | None = None
    flops_per_second: float | None = None
    share_of_limit: float | None = None
    limited_by: str | None = None
    site: str | None = None


def operator_rows(
    calls: Sequence[AttributedCall], total_seconds: float, roofline: Roofline | None
) -> list[OperatorRow]:
    """The operators of a step by the time that they take, most first.

    Args:
        calls: Of the step.
        total_seconds: Of the step with its waiting for data.
        roofline: Of this machine, if known.
    """
    groups: dict[tuple[str, str], list[AttributedCall]] = {}
    for item in calls:
        groups.setdefault((item.call.name, item.call.phase), []).append(item)
    rows = [_row(name, phase, group, total_seconds, roofline) for (name, phase), group in groups.items()]
    return sorted(rows, key=lambda row: -row.share)


def timed_rows(
    steps: Sequence[Sequence[TimedOperator]],
    total_seconds: float,
    *,
    phase: str | None = None,
    at_most: float = math.inf,
) -> list[OperatorRow]:
    """Operators of which only the times are known: those of the loader, and compiled ones.

    Args:
        steps: Of each step that was timed; the rows are of their mean, as loaders make several batches at once.
        total_seconds: Of a step with its waiting for data.
        phase: Of all of them; None takes what each says.
        at_most: Seconds that they take together in a step that nothing watches. A few steps may have met more than
            their share of what is made for many batches at once.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for timed in (operator for step in steps for operator in step):
        groups.setdefault((timed.name, phase or timed.phase), []).append(timed.seconds)
    together = sum(sum(times) for times in groups.values()) / max(len(steps), 1)
    scale = min(1.0, at_most / together) if together > 0 else 1.0
    rows = []
    for (name, where), times in groups.items():
        seconds = scale * sum(times) / len(steps)
        share = seconds / total_seconds if total_seconds > 0 else 0.0
        calls = len(times) / len(steps)
        rows.append(
            OperatorRow(name=name, phase=where, calls=calls, seconds=seconds, overhead_seconds=0.0, share=share)
        )
    return sorted(rows, key=lambda row: -row.share)


def _row(
    name: str, phase: str, group: Sequence[AttributedCall], total: float, roofline: Roofline | None
) -> OperatorRow:
    seconds = sum(item.compute_seconds for item in group)
    overhead = sum(item.overhead_seconds for item in group)
    flops = sum(item.call.flops for item in group)
    moved = sum(item.call.num_bytes for item in group)
    sites: dict[str | None, float] = {}
    for item in group:
        site = str(item.call.site) if item.call.site else None
        sites[site] = sites.get(site, 0.0) + item.seconds
    known: dict[str, Any] = {}
    # The roofline is that of the step's precision: float64 arithmetic has another one.
    is_judged = not flops or not any(item.call.is_float64 for item in group)
    if roofline is not None and seconds > 0 and is_judged and (flops or moved):
        known["share_of_limit"] = roofline.seconds(flops, moved) / seconds
        known["limited_by"] = "memory bandwidth" if roofline.is_memory(flops, moved) else "compute"
    return OperatorRow(
        name=name,
        phase=phase,
        calls=len(group),
        seconds=seconds,
        overhead_seconds=overhead,
        share=(seconds + overhead) / total if total > 0 else 0.0,
        flops=flops or None,
        num_bytes=moved or None,
        flops_per_second=flops / seconds if flops and seconds > 0 else None,
        site=max(sites, key=lambda site: sites[site]),
        **known,
    )


def memory_share(calls: Sequence[AttributedCall], roofline: Roofline) -> float:
    """The share of computing that moving the bytes of operators limited by memory takes at the full bandwidth.

    An operator counts with the time that the bandwidth explains, and not with all of its time: one that reaches 2 % of
    the bandwidth is slow for another reason.
    """
    total = sum(item.compute_seconds for item in calls)
    limited = sum(
        min(item.compute_seconds, item.call.num_bytes / roofline.bytes_per_second)
        for item in calls
        if roofline.is_memory(item.call.flops, item.call.num_bytes) and not (item.call.is_float64 and item.call.flops)
    )
    return limited / total if total > 0 else 0.0
