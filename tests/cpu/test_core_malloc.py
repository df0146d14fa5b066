"""Memory that is freed: kept, or given back to the system. In processes of their own: the setting is the process's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from upshift.core.malloc import can_keep_freed_memory

needs_glibc = pytest.mark.skipif(not can_keep_freed_memory(), reason="needs glibc as its user left it")

BLOCKS = """
import torch
from upshift.core.malloc import can_keep_freed_memory, keep_freed_memory, num_page_faults

def faults(num_floats=10_500_000):  # 42 MB: more than glibc ever keeps by itself
    before = num_page_faults()
    for _ in range(10):
        torch.ones(num_floats)
    return (num_page_faults() - before) / 10
"""


def run(script: str, **variables: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS + script], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@needs_glibc
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
    assert plain > 10_000
    assert kept < 0.2 * plain
    assert again > 10_000  # glibc is as it was


@needs_glibc
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
print(can_keep_freed_memory(), faults() > 1000)
"""
    assert run(script, **variables) == ["False", "True"]


@needs_glibc
def test_asking_twice_changes_nothing_and_leaves_no_memory_behind() -> None:
    script = """
from upshift.core import malloc
for _ in range(50):
    keep_freed_memory(True)
    keep_freed_memory(True)
    keep_freed_memory(False)
    keep_freed_memory(False)
import resource
print(malloc._before >= 128 * 2**10)
"""
    assert run(script) == ["True"]
