"""Memory that is freed: kept, or given back to the system. In processes of their own: the setting is the process's."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from upshift.core.malloc import can_keep_freed_memory

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
BLOCK_PAGES = 42_000_000 // resource.getpagesize()

needs_glibc = pytest.mark.skipif(not can_keep_freed_memory(), reason="needs glibc as its user left it")
needs_small_pages = pytest.mark.skipif(
    HUGE_PAGES.is_file() and "[always]" in HUGE_PAGES.read_text(), reason="needs blocks to be mapped page by page"
)

BLOCKS = """
import statistics, torch
from upshift.core.malloc import can_keep_freed_memory, keep_freed_memory, num_page_faults

def fault(num_floats):
    before = num_page_faults()
    torch.ones(num_floats)
    return num_page_faults() - before

def faults(num_floats=10_500_000):  # 42 MB: more than glibc ever keeps by itself
    # Of most blocks: where something small and lasting takes a place in the hole that a block left, the next one,
    # which does not fit in it any more, is mapped anew, once.
    return statistics.median(fault(num_floats) for _ in range(10))
"""


def run(script: str, **variables: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS + script], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@needs_glibc
@needs_small_pages
def test_memory_that_is_kept_is_not_mapped_anew() -> None:
    script = """
faults()
plain = faults()
keep_freed_memory(True)
faults()
kept = faults()
keep_freed_memory(False)
print(plain, kept, faults(21_000_000))  # twice as much: what was kept may have left a hole that the other fits in
"""
    plain, kept, again = map(float, run(script))
    assert plain > 0.9 * BLOCK_PAGES
    assert kept < 0.2 * plain
    assert again > 0.9 * BLOCK_PAGES  # glibc is as it was


@needs_glibc
@needs_small_pages
@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
)
def test_settings_of_the_user_stay(variables: dict[str, str]) -> None:
    script = """
keep_freed_memory(True)
faults()
print(can_keep_freed_memory(), faults())
"""
    can_keep, plain = run(script, **variables)
    assert can_keep == "False" and float(plain) > 0.9 * BLOCK_PAGES


@needs_glibc
def test_asking_twice_changes_nothing_and_leaves_no_memory_behind() -> None:
    script = """
from upshift.core import malloc
import resource

def pages():
    size, resident = open("/proc/self/statm").read().split()[:2]
    return int(size), int(resident)

def turn():
    keep_freed_memory(True)
    keep_freed_memory(True)
    keep_freed_memory(False)
    keep_freed_memory(False)

turn()
first, before = malloc._before, pages()
for _ in range(50):
    turn()
after = pages()
most = max(now - then for now, then in zip(after, before)) * resource.getpagesize()
print(malloc._before == first >= 128 * 2**10, most)
"""
    is_same, most = run(script)
    assert is_same == "True" and int(most) < 2**20
