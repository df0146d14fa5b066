"""What this machine can do at best: measured once, and remembered for as long as the machine stays the same."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from upshift.core import peaks
from upshift.core.cache import TuningCache
from upshift.core.environment import describe, fingerprint, num_usable_threads
from upshift.core.load import LoadMeter
from upshift.core.typed_fields import check_fields, dataclass_from_json, to_json
from upshift.errors import BadInputError, ConfigError, UnknownNameError

MAX_MEASUREMENTS = 4
"""On a machine that was busy each time."""
USUAL_SECONDS = 7.0
"""That measuring takes, or a little less."""

_PRECISIONS = {
    "cpu": ("fp32", "bf16", "fp16", "int8"),
    "cuda": ("fp32", "tf32", "bf16", "fp16", "int8"),
}
_PRECISIONS_ELSEWHERE = ("fp32", "bf16", "fp16")
_ROUND_SECONDS = 3.0
"""After which each of the two rounds takes no more than a call of what is left; on two cores it takes about two."""
_PEAK_SECONDS = 0.17
_BANDWIDTH_SECONDS = 0.24
_LAUNCH_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a device reaches at best. Each figure was reached, so that the true limit is at least as high.

    Attributes:
        device: "cpu", "cuda", "mps".
        matmul_flops: Operations per second of matrix products, by precision ("fp32", "tf32", "bf16", "fp16", and
            "int8", summed up in int32); precisions that the device does not have are left out.
        convolution_flops: The same of 3×3 convolutions, but for "int8". On CUDA "fp32" is what the default of
            PyTorch makes of it, which lets cuDNN use tf32.
        memory_bytes_per_second: Between memory and processor, of reading, copying or a triad.
        cache_bytes_per_second: Of the same in the last level of cache; None where its size is not known.
        cache_bytes: Size of that cache; None where it is not known.
        launch_seconds: Of an operator on one number, from Python: no step is faster than this times its operators.
        num_threads: That computed on the CPU; None on other devices.
        was_busy: Whether other programs used the machine during each measurement, so that the true limits can be
            far above these.
        num_measurements: That the best was taken of.
        seconds: That they took.
    """

    device: str
    matmul_flops: Mapping[str, float]
    convolution_flops: Mapping[str, float]
    memory_bytes_per_second: float
    cache_bytes_per_second: float | None
    cache_bytes: int | None
    launch_seconds: float
    num_threads: int | None
    was_busy: bool
    num_measurements: int
    seconds: float

    def __post_init__(self) -> None:
        check_fields(self)
        speeds = [*self.matmul_flops.values(), *self.convolution_flops.values(), self.memory_bytes_per_second]
        speeds += [self.launch_seconds, self.num_measurements]
        speeds += [value for value in (self.cache_bytes_per_second, self.cache_bytes) if value is not None]
        if not self.matmul_flops or not all(math.isfinite(speed) and speed > 0 for speed in speeds):
            raise ConfigError(
                "a machine's limits must be speeds greater than 0",
                received=f"{len(speeds)} figures, the least {min(speeds)}",
                hint="measure them again",
            )

    def peak_flops(self, precision: str) -> float:
        """The most operations per second in a precision, of matrix products or convolutions.

        Raises:
            UnknownNameError: The device does not have this precision, or it was not measured.
        """
        rates = [table[precision] for table in (self.matmul_flops, self.convolution_flops) if precision in table]
        if not rates:
            raise UnknownNameError("a precision of this machine's limits", precision, self.matmul_flops)
        return max(rates)


def measure_limits(device: torch.device | str) -> Limits:
    """Measure what a device can do; takes a few seconds, and less than ten.

    In two rounds, so that a disturbance of a second does not spoil a figure. On a CPU that others use, the second
    one is on a single thread: threads that wait for each other while others have their cores take up to a hundred
    times as long, so that one of them alone comes nearer to what all of them can do.

    Nothing of the process is changed by it: settings and random number generators are as they were.

    Args:
        device: "cpu", or an accelerator that torch finds.

    Raises:
        ConfigError: This machine has no such device.
    """
    device = _present(device)
    num_threads = num_usable_threads() if device.type == "cpu" else None
    first = _measure_once(device, num_threads)
    alone = 1 if first.was_busy and num_threads is not None else num_threads
    both = best_of(_measure_once(device, alone), first)
    return replace(both, num_measurements=1)


def _present(device: torch.device | str) -> torch.device:
    accelerator = torch.accelerator.current_accelerator()
    present = ["cpu", *([accelerator.type] if accelerator is not None else [])]
    if str(device).partition(":")[0] not in present:
        raise ConfigError(
            "a device must be one that this machine has", received=device, hint=f"it has {', '.join(present)}"
        )
    return torch.device(device)


def _measure_once(device: torch.device, num_threads: int | None) -> Limits:
    start = time.perf_counter()
    watch = peaks.Stopwatch(device, _ROUND_SECONDS)
    meter = LoadMeter()
    meter.start()
    with peaks.measuring_state(device, num_threads):
        matmul, convolution = _arithmetic(watch)
        cache_bytes = peaks.last_cache_bytes(device)
        memory = peaks.memory_bandwidth(watch, cache_bytes, _BANDWIDTH_SECONDS)
        cache = peaks.cache_bandwidth(watch, cache_bytes, _BANDWIDTH_SECONDS / 3) if cache_bytes else None
        launch = peaks.launch_seconds(watch, _LAUNCH_SECONDS)
    load = meter.stop()
    return Limits(
        device=device.type,
        matmul_flops=matmul,
        convolution_flops=convolution,
        memory_bytes_per_second=memory,
        cache_bytes_per_second=cache,
        cache_bytes=cache_bytes,
        launch_seconds=launch,
        num_threads=num_threads,
        was_busy=load.is_busy if load else False,
        num_measurements=1,
        seconds=time.perf_counter() - start,
    )


def _arithmetic(watch: peaks.Stopwatch) -> tuple[dict[str, float], dict[str, float]]:
    """Peaks of products and of convolutions, by precision."""
    matmul: dict[str, float] = {}
    convolution: dict[str, float] = {}
    for precision in _PRECISIONS.get(watch.device.type, _PRECISIONS_ELSEWHERE):
        if matmul and watch.left_seconds < 0:  # a machine so slow or busy that only float32 is measured
            break
        if rate := peaks.matmul_flops(precision, watch, _PEAK_SECONDS):
            matmul[precision] = rate
        if precision != "int8" and (rate := peaks.convolution_flops(precision, watch, _PEAK_SECONDS)):
            convolution[precision] = rate
    return matmul, convolution


def limits(device: torch.device | str, *, cache: TuningCache | None = None, environment: str | None = None) -> Limits:
    """What a device can do: as it was measured before on this machine, else measured now.

    What was measured while other programs used the machine is measured again, up to `MAX_MEASUREMENTS` times,
    and the best figures are kept.

    Args:
        device: "cpu", or an accelerator that torch finds.
        cache: Where to look and to keep it; else the usual one.
        environment: `environment.fingerprint` of this machine, if it is at hand.
    """
    cache = TuningCache() if cache is None else cache
    environment = fingerprint(describe()) if environment is None else environment
    known = known_limits(device, cache=cache, environment=environment)
    if known is not None and (not known.was_busy or known.num_measurements >= MAX_MEASUREMENTS):
        return known
    found = measure_limits(device)
    found = found if known is None else best_of(known, found)
    cache.save("limits", environment, found.device, to_json(found))
    return found


def known_limits(
    device: torch.device | str, *, cache: TuningCache | None = None, environment: str | None = None
) -> Limits | None:
    """What was measured before on this machine, without measuring; None if nothing was.

    Args:
        device: "cpu", or an accelerator that torch finds.
        cache: Where to look; else the usual one.
        environment: `environment.fingerprint` of this machine, if it is at hand.
    """
    cache = TuningCache() if cache is None else cache
    environment = fingerprint(describe()) if environment is None else environment
    kind = str(device).partition(":")[0]
    document = cache.load("limits", environment, kind)
    try:
        found = None if document is None else dataclass_from_json(document, Limits)
    except BadInputError:  # of an older upshift, or edited: measured again and replaced
        return None
    return found if isinstance(found, Limits) and found.device == kind else None


def best_of(first: Limits, second: Limits) -> Limits:
    """The better figure of two measurements of one device, each: whatever disturbs makes them only worse."""

    def better(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
        return {name: max(a.get(name, 0.0), b.get(name, 0.0)) for name in (*a, *b)}

    caches = [one.cache_bytes_per_second for one in (first, second) if one.cache_bytes_per_second is not None]
    return replace(
        second,
        matmul_flops=better(first.matmul_flops, second.matmul_flops),
        convolution_flops=better(first.convolution_flops, second.convolution_flops),
        memory_bytes_per_second=max(first.memory_bytes_per_second, second.memory_bytes_per_second),
        cache_bytes_per_second=max(caches, default=None),
        launch_seconds=min(first.launch_seconds, second.launch_seconds),
        was_busy=first.was_busy and second.was_busy,
        num_measurements=first.num_measurements + second.num_measurements,
        seconds=first.seconds + second.seconds,
    )
