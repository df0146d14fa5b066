"""Where the wall time of a training step goes, and what the step is bound by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

Bound: TypeAlias = Literal["data", "overhead", "compute", "memory bandwidth", "synchronization", "communication"]

SLOWEST_KERNELS = 10.0
"""Times the machine's limit that the kernels of a usual model take at most; what takes longer is not kernels."""


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """The wall time of one training step in parts that add up to it, and two ceilings.

    On a CPU the thread that runs Python also runs the kernels, so that no clock tells the two apart from outside. A few
    steps are therefore recorded by torch's profiler: an operator's own time beyond that of an operator on a single
    element is computing; the cost of each call, and the gaps between operators (Python, the dispatcher, autograd's
    bookkeeping), are host overhead; all of what reads a value back to Python is synchronization. In the proportion in
    which these stood to each other, they share the time of a step that nothing watched.

    On an accelerator the device works beside the host. What is computing is the time of the device's kernels by its
    own events; while it is idle it waits for data, for the host to read a value back, or for the host's next
    launch (overhead), in this order.

    Attributes:
        batch_size: Samples of a step.
        num_steps: How many steps were timed.
        data_wait: Seconds a step in which the loop waits for its batch.
        host_overhead: Seconds a step in Python, the dispatcher and autograd.
        device_compute: Seconds a step within kernels.
        synchronization: Seconds a step in which the host reads a value back.
        communication: Seconds a step between processes; 0 with one.
        memory_share: Share of `device_compute` in operators that memory bandwidth limits, by the roofline of this
            machine; None where the machine's limits are not known.
        loader_samples_per_second: Ceiling: samples a second of the loader alone, without training; None if unknown.
        synthetic_samples_per_second: Ceiling: samples a second of the same step on one batch that stays in memory;
            None if unknown.
    """

    batch_size: int
    num_steps: int
    data_wait: float
    host_overhead: float
    device_compute: float
    synchronization: float = 0.0
    communication: float = 0.0
    memory_share: float | None = None
    loader_samples_per_second: float | None = None
    synthetic_samples_per_second: float | None = None

    @property
    def parts(self) -> dict[str, float]:
        """The parts in seconds, by name."""
        names = ("data_wait", "host_overhead", "device_compute", "synchronization", "communication")
        return {name: getattr(self, name) for name in names}

    @property
    def seconds(self) -> float:
        """Seconds of a step, waiting for its data included."""
        return sum(self.parts.values())

    @property
    def samples_per_second(self) -> float:
        """Throughput of the training."""
        return self.batch_size / self.seconds if self.seconds > 0 else 0.0

    @property
    def bound_by(self) -> Bound:
        """What the step is bound by: its largest part, where computing is of arithmetic or of memory."""
        parts = self.parts
        largest = max(parts, key=lambda name: parts[name])
        if largest == "device_compute":
            return "memory bandwidth" if (self.memory_share or 0.0) > 0.5 else "compute"
        names: dict[str, Bound] = {
            "data_wait": "data",
            "host_overhead": "overhead",
            "synchronization": "synchronization",
            "communication": "communication",
        }
        return names[largest]

    def to_json(self) -> dict[str, Any]:
        """The breakdown as a JSON object, with what follows from it."""
        derived = {"seconds": self.seconds, "samples_per_second": self.samples_per_second, "bound_by": self.bound_by}
        return asdict(self) | derived


class StepFacts(TypedDict, total=False):
    """What is known of a step beside its times.

    Attributes:
        batch_size: Samples of a step.
        flops: Floating-point operations of a step.
        bytes_moved: Bytes that a step must read and write.
        peak_flops_per_second: What the machine can compute.
        peak_bytes_per_second: What its memory can move.
        num_operators: Operators of a step; where it is missing, all that takes longer than ten times the limit of the
            machine is taken for overhead.
        seconds_per_operator: What the host spends on calling one.
    """

    batch_size: int
    flops: float
    bytes_moved: float
    peak_flops_per_second: float
    peak_bytes_per_second: float
    num_operators: int | None
    seconds_per_operator: float


def bound_by(data_seconds: Sequence[float], step_seconds: Sequence[float], **facts: Unpack[StepFacts]) -> Bound:
    """What a training is bound by, from what its loop can time by itself; see `estimate_breakdown`."""
    return estimate_breakdown(data_seconds, step_seconds, **facts).bound_by


def estimate_breakdown(
    data_seconds: Sequence[float], step_seconds: Sequence[float], **facts: Unpack[StepFacts]
) -> Breakdown:
    """The parts of a step from what a training loop can time by itself, without watching operators.

    Waiting is a mean, as loaders make several batches at once: one batch of many waits for all of them. The step is a
    median, which a burst of something else on the machine does not move.

    Args:
        data_seconds: How long the loop waited for each batch.
        step_seconds: How long each step took.
        facts: What is known of a step beside.

    Returns:
        The breakdown; without any limit to compare with, the whole step counts as computing.
    """
    data = statistics.fmean(data_seconds) if data_seconds else 0.0
    step = statistics.median(step_seconds) if step_seconds else 0.0
    arithmetic = _seconds(facts.get("flops", 0.0), facts.get("peak_flops_per_second", 0.0))
    memory = _seconds(facts.get("bytes_moved", 0.0), facts.get("peak_bytes_per_second", 0.0))
    limit = max(arithmetic, memory)
    num_operators = facts.get("num_operators")
    if num_operators is not None:
        overhead = min(num_operators * facts.get("seconds_per_operator", 0.0), step)
    else:
        overhead = max(0.0, step - SLOWEST_KERNELS * limit) if limit > 0 else 0.0
    return Breakdown(
        batch_size=facts.get("batch_size", 1),
        num_steps=len(step_seconds),
        data_wait=data,
        host_overhead=overhead,
        device_compute=step - overhead,
        memory_share=(1.0 if memory > arithmetic else 0.0) if limit > 0 else None,
    )


def _seconds(amount: float, per_second: float) -> float:
    return amount / per_second if per_second > 0 else 0.0
