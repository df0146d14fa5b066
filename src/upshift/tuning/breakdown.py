"""Where the wall time of a training step goes, and what the step is bound by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

Bound: TypeAlias = Literal["data", "overhead", "compute", "memory bandwidth", "synchronization", "communication"]

NO_WAIT_SHARE = 0.05
"""Of a step: taking a batch that is ready takes some time too."""
SLOWEST_KERNELS = 10.0
"""Times the machine's limit that the kernels of a usual model take at most; what takes longer is not kernels."""
MEMORY_BOUND_SHARE = 0.5
"""Of computing: where moving the bytes at the machine's full bandwidth takes as much of it, memory is what binds. An
operator that has more bytes to move than operations to make, and is slow for other reasons, is not bound by memory."""


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
        memory_share: Share of `device_compute` that moving bytes at the machine's full bandwidth accounts for, of
            work that the roofline calls limited by memory; None where the machine's limits are not known.
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
            return "memory bandwidth" if (self.memory_share or 0.0) >= MEMORY_BOUND_SHARE else "compute"
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
        num_steps: That were timed.
        overhead_share: Share of the step on the way to its kernels; where it is missing, all that takes longer than
            ten times the limit of the machine is taken for overhead.
        synchronization_share: Share of the step in which the host reads values back.
        flops: Floating-point operations of a step.
        bytes_moved: Bytes that a step must read and write.
        peak_flops_per_second: What the machine can compute.
        peak_bytes_per_second: What its memory can move.
        loader_samples_per_second: Of the loader alone; see `loader_ceiling`.
    """

    batch_size: int
    num_steps: int
    overhead_share: float | None
    synchronization_share: float
    flops: float
    bytes_moved: float
    peak_flops_per_second: float
    peak_bytes_per_second: float
    loader_samples_per_second: float | None


def estimate_breakdown(data_seconds: float, step_seconds: float, **facts: Unpack[StepFacts]) -> Breakdown:
    """The parts of a step from what a training loop can time by itself, and what is known of its operators.

    Args:
        data_seconds: The wait for a batch; a mean, as loaders make several batches at once: one of many waits for all.
        step_seconds: Of a step without it; a median, which a burst of something else on the machine does not move.
        facts: What is known of a step beside.

    Returns:
        The breakdown. Without any limit to compare with, and without its operators, the whole step counts as
        computing. The ceiling of synthetic data is the step without its waits.
    """
    arithmetic = _seconds(facts.get("flops", 0.0), facts.get("peak_flops_per_second", 0.0))
    memory = _seconds(facts.get("bytes_moved", 0.0), facts.get("peak_bytes_per_second", 0.0))
    limit = max(arithmetic, memory)
    synchronization = min(1.0, facts.get("synchronization_share", 0.0)) * step_seconds
    overhead_share = facts.get("overhead_share")
    if overhead_share is not None:
        overhead = min(overhead_share * step_seconds, step_seconds - synchronization)
    else:
        overhead = max(0.0, step_seconds - synchronization - SLOWEST_KERNELS * limit) if limit > 0 else 0.0
    compute = max(0.0, step_seconds - overhead - synchronization)
    memory_share = None
    if limit > 0:
        memory_share = min(1.0, memory / compute) if memory > arithmetic and compute > 0 else 0.0
    batch_size = facts.get("batch_size", 1)
    return Breakdown(
        batch_size=batch_size,
        num_steps=facts.get("num_steps", 0),
        data_wait=data_seconds,
        host_overhead=overhead,
        device_compute=compute,
        synchronization=synchronization,
        memory_share=memory_share,
        loader_samples_per_second=facts.get("loader_samples_per_second"),
        synthetic_samples_per_second=batch_size / step_seconds if step_seconds > 0 else None,
    )


def loader_ceiling(
    batch_size: int, data_seconds: float, step_seconds: float, *, works_ahead: bool, at_best: float | None
) -> float | None:
    """Samples a second of a loader alone, from what a loop waits for it; None where that tells nothing.

    A loader that works between the steps makes a batch in the time that the loop waits for it. One that works ahead,
    in other processes, and lets the loop wait all the same makes batches as fast as the loop takes them; where there is
    no wait, it is at least as fast, and what the machine reaches at best is all that is known.

    Args:
        batch_size: Samples of a batch.
        data_seconds: The wait for one.
        step_seconds: Of a step without it.
        works_ahead: Whether batches are made while steps are.
        at_best: Samples a second that this machine makes of stored ones at best; None if unknown.
    """
    seconds = data_seconds
    if works_ahead:
        seconds = data_seconds + step_seconds if data_seconds > NO_WAIT_SHARE * step_seconds else 0.0
    return batch_size / seconds if seconds > 0 else at_best


def _seconds(amount: float, per_second: float) -> float:
    return amount / per_second if per_second > 0 else 0.0
