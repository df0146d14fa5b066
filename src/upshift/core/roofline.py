"""How near a step comes to what the machine allows: the roofline model.

Williams, Waterman, Patterson: Roofline, an insightful visual performance model for multicore architectures,
CACM 52(4), 2009. At an intensity of I operations a byte, no program reaches more operations per second than
min(peak, I · bandwidth).
"""

from __future__ import annotations

from dataclasses import dataclass

from upshift.core.flops import StepCost
from upshift.core.limits import Limits
from upshift.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LimitShare:
    """A time against the least that the same work can take.

    Attributes:
        share: `limit_seconds` over the time that was measured. Above 1 where the limits were measured while the
            machine was slower than later, or the step moved less than `StepCost.bytes_min` says.
        limit_seconds: The least that the work can take.
        limited_by: "compute", "memory" or "cache": what it cannot be faster for.
        flops_per_second: Reached.
        attainable_flops_per_second: At this intensity.
        intensity: Operations a byte.
    """

    share: float
    limit_seconds: float
    limited_by: str
    flops_per_second: float
    attainable_flops_per_second: float
    intensity: float


def share_of_limit(cost: StepCost, seconds: float, limits: Limits, precision: str) -> LimitShare:
    """How near a step comes to this machine's limit.

    What a step has to move goes through memory if it is more than the last level of cache holds, else through
    that cache. Launching operators, loading data and waiting are no part of the limit: they are what a step
    with a small share suffers from.

    Args:
        cost: Of the step.
        seconds: That it took.
        limits: Of the machine.
        precision: That it computed in: "fp32", "tf32", "bf16", "fp16".

    Raises:
        ConfigError: The time is not greater than 0.
        UnknownNameError: The precision has no limit on this machine.
    """
    if not seconds > 0:
        raise ConfigError("the time of a step must be greater than 0", received=seconds, hint="give seconds")
    fits = limits.cache_bytes is not None and cost.bytes_min <= limits.cache_bytes
    bandwidth, place = limits.memory_bytes_per_second, "memory"
    if fits and limits.cache_bytes_per_second is not None:
        bandwidth, place = max(bandwidth, limits.cache_bytes_per_second), "cache"
    computing, moving = cost.flops / limits.peak_flops(precision), cost.bytes_min / bandwidth
    least = max(computing, moving)
    return LimitShare(
        share=least / seconds,
        limit_seconds=least,
        limited_by="compute" if computing >= moving else place,
        flops_per_second=cost.flops / seconds,
        attainable_flops_per_second=cost.flops / least if least else 0.0,
        intensity=cost.flops / cost.bytes_min if cost.bytes_min else 0.0,
    )
