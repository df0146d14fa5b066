"""When each operator of a step ran, by torch's profiler, and how much of that was its kernel.

The profiler's records cost about a microsecond each. Python that watches from within (as `OperatorLog` does) costs
more, and drives a small model's data out of the caches: what operators are and how long they take is therefore
found out in different steps, and brought together by their names and order.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from upshift.tuning.operators import profiler
from upshift.tuning.profiling.rehearsal import Batch, Rehearsal

NUM_CALIBRATION_CALLS = 500
DATA_MARK, STEP_MARK, FORWARD_MARK = "upshift: data", "upshift: step", "upshift: forward begins"
"""Regions of the profiler's; a user's code may have regions of any plain name."""


@dataclass(frozen=True, slots=True)
class TimedOperator:
    """An operator that ran.

    Attributes:
        name: As "aten::mm".
        seconds: Of its kernel and those of operators within it: each one's own time beyond that of a call alone.
        gap_seconds: On the host, from the end of the operator before to the beginning of this one, beyond the gap
            between two calls that nothing lies between.
        phase: "forward", "backward" or "optimizer", as far as the profiler tells.
    """

    name: str
    seconds: float
    gap_seconds: float
    phase: str


@dataclass(frozen=True)
class WatchedStep:
    """The operators of one step.

    Attributes:
        data: Those that ran while the loop waited for the batch, on its own thread.
        step: Those of the step.
        synchronization: Seconds in which the host waited for an accelerator; 0 on a CPU.
    """

    data: list[TimedOperator]
    step: list[TimedOperator]
    synchronization: float


@dataclass(frozen=True, kw_only=True)
class CallCost:
    """What calling an operator costs when there is nothing to compute.

    Attributes:
        own_seconds: Of an operator on one element, as the profiler records it.
        gap_seconds: From one such operator to the next, likewise.
        unwatched_seconds: From one to the next when nothing watches.
    """

    own_seconds: float
    gap_seconds: float
    unwatched_seconds: float


def record(
    rehearsal: Rehearsal, batches: Iterator[Batch], *, num_steps: int, with_stack: bool = False, marks: bool = False
) -> torch.profiler.profile:
    """Make steps while torch's profiler records them.

    Args:
        rehearsal: Makes the steps.
        batches: Its batches.
        num_steps: How many.
        with_stack: Record Python functions too, which makes all of it slower.
        marks: Mark where forward passes begin; not for compiled models, whose code a hook would change.
    """
    recorded = profiler(rehearsal.device, with_stack=with_stack)
    hook = rehearsal.model.register_forward_pre_hook(_mark_forward) if marks else None
    try:
        with recorded:
            for _ in range(num_steps):
                with torch.profiler.record_function(DATA_MARK):
                    batch = next(batches)
                with torch.profiler.record_function(STEP_MARK):
                    rehearsal.step(*batch)
            rehearsal.synchronize()
    finally:
        if hook is not None:
            hook.remove()
    return recorded


def _mark_forward(module: torch.nn.Module, inputs: object) -> None:
    with torch.profiler.record_function(FORWARD_MARK):
        pass


def calibrate(device: torch.device) -> CallCost:
    """Measure what a call alone costs on this machine."""
    element = torch.zeros(1, device=device)

    def call() -> None:
        for _ in range(NUM_CALIBRATION_CALLS):
            element.add_(1)

    with torch.no_grad():
        call()
        recorded = profiler(device)
        with recorded:
            call()
        rounds = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            rounds.append((time.perf_counter() - start) / NUM_CALIBRATION_CALLS)
    events = [event for event in _events(recorded) if event.name == "aten::add_"]
    gaps = [after.time_range.start - before.time_range.end for before, after in pairwise(events)]
    return CallCost(
        own_seconds=1e-6 * statistics.median(event.self_cpu_time_total for event in events),
        gap_seconds=1e-6 * statistics.median(gaps),
        unwatched_seconds=min(rounds),
    )


def watched_steps(
    recorded: torch.profiler.profile, cost: CallCost, device: torch.device, *, names: frozenset[str] | None = None
) -> list[WatchedStep]:
    """The operators of the steps that `record` made.

    Args:
        recorded: From `record`.
        cost: Of a call alone.
        device: Where the operators ran.
        names: Operators that count by themselves, even within others; None takes the outermost ones.
    """
    events = _events(recorded)
    reader = _Reader(cost, device, (lambda name: name in names) if names is not None else _is_operator)
    regions = [event for event in events if event.name in (DATA_MARK, STEP_MARK) and event.is_user_annotation]
    roots = _roots(events, regions, device)
    found = [(region.name, reader.operators(roots[index])) for index, region in enumerate(regions)]
    waits = [reader.wait_seconds(roots[index]) for index in range(len(regions))]
    return [
        WatchedStep(data=before, step=within, synchronization=wait)
        for (_, before), (_, within), wait in zip(found[::2], found[1::2], waits[1::2], strict=True)
    ]


def _events(recorded: torch.profiler.profile) -> list[Any]:
    return list(recorded.events())  # type: ignore[no-untyped-call]


def _roots(events: Sequence[Any], regions: Sequence[Any], device: torch.device) -> list[list[Any]]:
    """For each region the events directly in it; on an accelerator those of other threads (autograd's) too."""
    roots: list[list[Any]] = [list(region.cpu_children) for region in regions]
    if device.type != "cpu":
        others = [event for event in events if event.cpu_parent is None and event not in regions]
        for event in others:
            for index, region in enumerate(regions):
                within = region.time_range.start <= event.time_range.start < region.time_range.end
                if within and event.thread != region.thread and region.name == STEP_MARK:
                    roots[index].append(event)
    return [sorted(children, key=lambda event: event.time_range.start) for children in roots]


class _Reader:
    """Reads operators out of a tree of the profiler's events."""

    def __init__(self, cost: CallCost, device: torch.device, counts: Callable[[str], bool]) -> None:
        self._cost, self._on_cpu, self._counts = cost, device.type == "cpu", counts

    def operators(self, roots: Sequence[Any]) -> list[TimedOperator]:
        """The operators in order; the gap of a forward pass's first one begins where its model is called."""
        found: list[TimedOperator] = []
        end: float | None = None
        for event, phase in self._walk(roots, "forward"):
            if event.name == FORWARD_MARK:
                end = event.time_range.end
                continue
            gap = 0.0 if end is None else 1e-6 * (event.time_range.start - end)
            end = event.time_range.end
            own_gap = max(0.0, gap - self._cost.gap_seconds)
            found.append(TimedOperator(event.name, self._kernel_seconds(event), own_gap, phase))
        return found

    def wait_seconds(self, roots: Sequence[Any]) -> float:
        """Time of the host in calls that wait for the accelerator."""
        own = sum(1e-6 * float(event.cpu_time_total) for event in roots if event.name in _WAITS)
        return own + sum(self.wait_seconds(event.cpu_children) for event in roots)

    def _walk(self, events: Sequence[Any], phase: str) -> Iterator[tuple[Any, str]]:
        for event in events:
            inner = phase
            if event.name.startswith("Optimizer."):
                inner = "optimizer"
            elif event.name.startswith(("autograd::engine", "CompiledFunctionBackward")):
                inner = "backward"
            if self._counts(event.name) or event.name == FORWARD_MARK:
                yield event, inner
            else:
                yield from self._walk(event.cpu_children, inner)

    def _kernel_seconds(self, event: Any) -> float:
        if not self._on_cpu:
            return 1e-6 * float(event.device_time_total)
        own = max(0.0, 1e-6 * float(event.self_cpu_time_total) - self._cost.own_seconds)
        return own + sum(self._kernel_seconds(child) for child in event.cpu_children)


_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def _is_operator(name: str) -> bool:
    return "::" in name and not name.startswith(("autograd::", "torch::autograd", "profiler::"))
