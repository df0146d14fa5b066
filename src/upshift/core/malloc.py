"""What glibc does with memory that is freed: give it back to the system, or keep it for the next allocation.

A training step frees its activations and asks for as much again in the next. By default glibc gives large blocks back
to the system, which then maps each page anew, filled with zeros, when it is first written to: on small convolutional
networks this can be a fifth of a step (`benchmarks/bench_plan_fields.py`). See mallopt(3).
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_ALL = 2**31 - 1
"""Bytes: the most that mallopt takes."""
_MAX_BLOCK = 2**30
"""Larger blocks still go back to the system when they are freed; older versions of glibc take `_MOST_THRESHOLD`."""
_LEAST_THRESHOLD, _MOST_THRESHOLD = 128 * 2**10, 32 * 2**20
"""Between which glibc moves its threshold by itself (DEFAULT_MMAP_THRESHOLD, DEFAULT_MMAP_THRESHOLD_MAX)."""
_IS_MMAPPED = 2
"""The bit in the word before a block that says that it is a mapping of its own."""
_MOST_HOLES = 8
_PRECISION = 1.02
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")

_before: int | None = None
"""The threshold that glibc had when it was first told otherwise: it stops moving it by itself then."""
_keeps = False


@functools.cache
def can_keep_freed_memory() -> bool:
    """Whether this process allocates by glibc, and its user has not said how it should."""
    if platform.libc_ver()[0] != "glibc" or "malloc" in os.environ.get("LD_PRELOAD", ""):
        return False
    if any(name in os.environ for name in _OWN_SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    return hasattr(ctypes.CDLL(None), "mallopt")


def keep_freed_memory(keep: bool) -> None:
    """Keep memory that is freed in the process, or give it back to the system as glibc does by itself.

    Given back is what would be by the threshold of before: glibc does not move it by itself any more.
    Does nothing where `can_keep_freed_memory` is False. For the whole process, and for its main thread above all:
    other threads allocate small blocks elsewhere.
    """
    global _before, _keeps
    if keep == _keeps or not can_keep_freed_memory():
        return
    libc = ctypes.CDLL(None)
    if keep:
        if _before is None:
            _before = _threshold(libc)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAX_BLOCK) or libc.mallopt(_M_MMAP_THRESHOLD, _MOST_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_ALL)
    else:
        assert _before is not None
        libc.mallopt(_M_MMAP_THRESHOLD, _before)
        # glibc keeps the one at twice the other, once it has moved it; what was found is up to 2 % too much.
        has_moved = _before > _PRECISION * _LEAST_THRESHOLD
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _before if has_moved else _LEAST_THRESHOLD)
    _keeps = keep


def keeps_freed_memory() -> bool:
    """Whether this process was last told to keep it."""
    return _keeps


def _threshold(libc: ctypes.CDLL) -> int:
    """Bytes from which on glibc gives a block a mapping of its own now, or a little more.

    It grows with the mapped blocks that are freed, and nothing tells its value: blocks are asked for, looked at and
    kept until the threshold is set, as freeing one would move it. They are never written to, and so take no memory.
    """
    malloc, free = libc.malloc, libc.free
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    libc.malloc_trim(0)  # free memory at the top would be given out whatever the threshold
    asked: list[int] = []

    def is_mapped(size: int) -> bool:
        for _ in range(_MOST_HOLES):  # a hole in the heap is filled whatever the threshold
            block = malloc(size)
            if block is None:
                return True
            asked.append(block)
            before = block - ctypes.sizeof(ctypes.c_size_t)
            if ctypes.c_size_t.from_address(before).value & _IS_MMAPPED:
                return True
        return False

    low, high = _LEAST_THRESHOLD, _MOST_THRESHOLD
    while high > _PRECISION * low:
        middle = (low + high) // 2
        low, high = (low, middle) if is_mapped(middle) else (middle, high)
    libc.mallopt(_M_MMAP_THRESHOLD, high)
    for block in asked:
        free(block)
    return high


def num_page_faults() -> int | None:
    """Pages of this process that the system mapped so far without reading a disk; None where it does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
