"""The speeds that a machine reaches at best: arithmetic, memory, starting a kernel.

A peak is the best of many short calls, not their mean: whatever disturbs makes a call slower and none faster.
Calls are kept to a few milliseconds, so that some of them run undisturbed on a busy machine too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from upshift.core.environment import available_memory_bytes

Size = TypeVar("Size")
Problem = tuple[Callable[[], object], float]
"""A call, and the operations that it does."""

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by their names in plans. "tf32" is float32 that a CUDA device may round to 10 bits of mantissa."""
MAX_BUFFER_BYTES = 512 * 2**20
_MIN_BUFFER_BYTES = 64 * 2**20
_MEMORY_SHARE = 1 / 16
"""Of the memory that is free, the largest part that one buffer takes; there are three."""
_CHUNK_BYTES = 8 * 2**20


@dataclass
class Stopwatch:
    """Finds the least seconds of a call, within what is left of a time limit.

    Attributes:
        device: Where the calls compute; it is waited for.
        limit_seconds: For all calls together.
    """

    device: torch.device
    limit_seconds: float
    _start: float = field(default_factory=time.perf_counter)

    @property
    def left_seconds(self) -> float:
        """What is left of the limit."""
        return self.limit_seconds - (time.perf_counter() - self._start)

    def best(self, call: Callable[[], object], budget_seconds: float) -> float:
        """The seconds of the fastest call; a first one, which may compile or allocate, is not counted."""
        self._seconds(call)
        end = time.perf_counter() + min(budget_seconds, self.left_seconds)
        best = self._seconds(call)
        while time.perf_counter() + best < end:
            best = min(best, self._seconds(call))
        return best

    def _seconds(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return max(time.perf_counter() - start, 1e-9)


@contextlib.contextmanager
def measuring_state(device: torch.device, num_threads: int | None) -> Iterator[None]:
    """No gradients, no autocast, so many threads; afterwards everything is as it was before.

    Args:
        device: That is measured.
        num_threads: Of the CPU; None leaves them.
    """
    threads_before = torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_float32_matmul_precision(precision)
        if device.type != "cpu":
            torch.accelerator.empty_cache()


def matmul_flops(precision: str, watch: Stopwatch, budget_seconds: float) -> float | None:
    """Operations per second of products of square matrices; None where the device has none in this precision.

    Args:
        precision: A name of `DTYPES`, or "int8" for products that are summed up in int32.
        watch: Of the device.
        budget_seconds: About how long.
    """
    sizes = (256, 512, 1024) if watch.device.type == "cpu" else (1024, 2048, 4096, 8192)

    def product(size: int) -> Problem:
        left, right = (_values((size, size), precision, watch.device) for _ in range(2))
        if precision == "int8":
            right = right.t()  # as kernels for int8 want it: columns side by side
            return lambda: torch._int_mm(left, right), 2.0 * size**3
        out = torch.empty_like(left)
        return lambda: torch.mm(left, right, out=out), 2.0 * size**3

    return _rate_of_growing(product, sizes, precision, watch, budget_seconds)


def convolution_flops(precision: str, watch: Stopwatch, budget_seconds: float) -> float | None:
    """Operations per second of 3×3 convolutions, in the better memory format; None where the device has none.

    Args:
        precision: A name of `DTYPES`.
        watch: Of the device.
        budget_seconds: About how long.
    """
    small = ((1, 64, 28), (4, 128, 28), (8, 256, 14))
    sizes = small if watch.device.type == "cpu" else ((32, 128, 28), (64, 256, 28), (128, 256, 28))
    rates = []
    for layout in (torch.contiguous_format, torch.channels_last):

        def convolution(size: tuple[int, int, int], layout: torch.memory_format = layout) -> Problem:
            samples, channels, side = size
            images = _values((samples, channels, side, side), precision, watch.device).to(memory_format=layout)
            weight = _values((channels, channels, 3, 3), precision, watch.device).to(memory_format=layout)
            work = 2.0 * samples * side**2 * channels**2 * 9
            return lambda: torch.nn.functional.conv2d(images, weight, padding=1), work

        rates.append(_rate_of_growing(convolution, sizes, precision, watch, budget_seconds / 2))
    return max((rate for rate in rates if rate is not None), default=None)


def _rate_of_growing(
    make: Callable[[Size], Problem],
    sizes: tuple[Size, ...],
    precision: str,
    watch: Stopwatch,
    budget_seconds: float,
) -> float | None:
    """The best rate over problems of growing size; the next one is tried only if this one left it the time."""
    best = None
    share = budget_seconds / len(sizes)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        for size in sizes:
            call, work = make(size)
            seconds = watch.best(call, share)
            best = max(best or 0.0, work / seconds)
            if seconds > share / 2 or watch.left_seconds < 0:
                break
    except (RuntimeError, NotImplementedError):  # no kernel for this type, or too little memory on the device
        return best
    return best


def _values(shape: tuple[int, ...], precision: str, device: torch.device) -> torch.Tensor:
    """Numbers in [-1, 1), drawn without touching the global generator."""
    generator = torch.Generator().manual_seed(0)
    if precision == "int8":
        return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8).to(device)
    return (torch.rand(shape, generator=generator) * 2 - 1).to(device, DTYPES[precision])


def memory_bandwidth(watch: Stopwatch, cache_bytes: int | None, budget_seconds: float) -> float:
    """Bytes per second between the memory and the processor, of the best of reading, copying and a triad.

    As STREAM counts (McCalpin 1995): what a program names, without the lines that a processor reads before it
    writes them. The buffers are several times as large as the caches, and are gone through piece by piece.
    """
    wanted = min(MAX_BUFFER_BYTES, max(_MIN_BUFFER_BYTES, 4 * (cache_bytes or 0)))
    affordable = int(_free_bytes(watch.device) * _MEMORY_SHARE)
    num_chunks = max(1, min(wanted, affordable) // _CHUNK_BYTES)
    buffers = [torch.ones(num_chunks, _CHUNK_BYTES // 4, device=watch.device) for _ in range(3)]
    return _best_bandwidth(buffers, watch, budget_seconds)


def cache_bandwidth(watch: Stopwatch, cache_bytes: int, budget_seconds: float) -> float:
    """Bytes per second of the same, in buffers that fit into the last level of cache with room to spare."""
    buffers = [torch.ones(1, max(1024, cache_bytes // 4 // 3 // 4), device=watch.device) for _ in range(3)]
    return _best_bandwidth(buffers, watch, budget_seconds)


def _best_bandwidth(buffers: list[torch.Tensor], watch: Stopwatch, budget_seconds: float) -> float:
    a, b, c = buffers
    chunk = 0

    def next_chunk() -> int:
        nonlocal chunk
        chunk = (chunk + 1) % len(a)
        return chunk

    def read() -> object:
        return a[next_chunk()].sum()

    def copy() -> object:
        row = next_chunk()
        return a[row].copy_(b[row])

    def triad() -> object:
        row = next_chunk()
        return torch.add(b[row], c[row], alpha=3.0, out=a[row])

    num_bytes = a[0].numel() * a.element_size()
    kernels = ((read, 1), (copy, 2), (triad, 3))
    return max(num_bytes * passes / watch.best(kernel, budget_seconds / 3) for kernel, passes in kernels)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory_bytes()


def last_cache_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Size of the last level of cache; None where it is not told.

    Args:
        device: Whose.
        root: Where `sys` is.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size) or None
    if device.type != "cpu":
        return None
    sizes = []
    for index in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*"):
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            text = (index / "size").read_text().strip()
            unit = {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]]
            sizes.append((int((index / "level").read_text()), int(text[:-1]) * unit))
    return max(sizes)[1] if sizes else None


def launch_seconds(watch: Stopwatch, budget_seconds: float) -> float:
    """Seconds of an operator on one number: what Python, the dispatcher and starting a kernel take."""
    a, b, out = (torch.ones(1, device=watch.device) for _ in range(3))
    calls = 500

    def many() -> None:
        for _ in range(calls):
            torch.add(a, b, out=out)

    return watch.best(many, budget_seconds) / calls
