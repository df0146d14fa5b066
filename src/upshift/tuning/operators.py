"""What the operators of one step are: how many, and what share of its time a compiler could fuse away."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from upshift.core import clock

DISPATCH_SECONDS = 4e-6
"""What PyTorch spends on the way to a kernel, forward and backward alike (2 to 6 µs on current CPUs)."""

QUIET_KINETO = "99"
"""libkineto writes lines of its own progress to stderr; this level has none."""

_DENSE = ("mm", "matmul", "linear", "conv", "attention", "lstm", "gru", "embedding")
_READ_BACK = "aten::_local_scalar_dense"
_PARTS_OF_DENSE = ("mkldnn_", "cudnn_", "_flash_", "_efficient_")


@dataclass(frozen=True)
class OperatorMix:
    """The operators of one step.

    Attributes:
        num_calls: Operators called.
        fusible_share: Share of the step's time in operators that pass over memory once for little arithmetic:
            activations, norms, pooling, copies. A compiler makes fewer passes of them.
        overhead_share: Share of the step's time spent on the way to kernels and not in them, at most 0.9.
        synchronization_share: Share of the step's time in which the host reads values back from the device.
        seconds: What finding this out took.
    """

    num_calls: int
    fusible_share: float
    overhead_share: float
    synchronization_share: float
    seconds: float


def profiler(device: torch.device, *, with_stack: bool = False) -> torch.profiler.profile:
    """A profiler of the host and, where there is one, the accelerator."""
    os.environ.setdefault("KINETO_LOG_LEVEL", QUIET_KINETO)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, with_stack=with_stack)


def operator_mix(step: Callable[[], object], step_seconds: float, device: torch.device) -> OperatorMix:
    """Profile one step.

    Args:
        step: Makes it.
        step_seconds: What it takes without a profiler.
        device: Where it runs.
    """
    start = clock.now()
    with profiler(device) as profile:
        step()
    events = [event for event in profile.key_averages() if event.key.startswith(("aten::", "mkldnn::", "torch::"))]
    num_calls = sum(event.count for event in events)

    def own(event: torch.autograd.profiler_util.FunctionEventAvg) -> float:
        return float(event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total)

    reading = sum(event.cpu_time_total for event in events if event.key == _READ_BACK) * 1e-6
    total = sum(own(event) for event in events) or 1.0
    fusible = sum(own(event) for event in events if not _is_dense(event.key)) / total
    if device.type == "cuda":
        # While the device has nothing to do, it waits for a value to be read or for the host's next launch.
        idle = max(0.0, 1.0 - total * 1e-6 / step_seconds)
        synchronization = min(idle, reading / step_seconds)
        overhead = idle - synchronization
    else:
        overhead = num_calls * DISPATCH_SECONDS / step_seconds
        synchronization = min(1.0, reading / step_seconds)
    overhead = min(0.9, overhead)
    fusible = max(0.0, fusible * (1.0 - overhead))
    return OperatorMix(num_calls, fusible, overhead, synchronization, clock.now() - start)


def _is_dense(name: str) -> bool:
    name = name.split("::", 1)[1]
    return name.startswith(_PARTS_OF_DENSE) or any(word in name for word in _DENSE)
