"""Emitted code keeps memory that is freed where its user has not said otherwise, as training by the plan does."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from test_core_malloc import needs_glibc, needs_small_pages

import upshift
from emitted import residual_recipe

NUM_FLOATS = 10_500_000
"""42 MB: more than glibc ever keeps by itself."""
NUM_PAGES = 4 * NUM_FLOATS // resource.getpagesize()
COUNT = f"""
import resource, runpy, sys
import torch

runpy.run_path(sys.argv[1])["keep_freed_memory"]()
for _ in range(10):
    torch.ones({NUM_FLOATS})  # the first may find no place large enough
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones({NUM_FLOATS})
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


@needs_glibc
@needs_small_pages
@pytest.mark.parametrize(
    ("settings", "keeps"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, False),
    ],
)
def test_emitted_code_keeps_freed_memory_unless_its_user_has_set_how(
    tmp_path: Path, settings: dict[str, str], keeps: bool
) -> None:
    path = tmp_path / "train_it.py"
    upshift.emit(upshift.Plan(keep_freed_memory=True), residual_recipe(tmp_path), "script", out=path)
    command = [sys.executable, "-c", COUNT, str(path)]
    answer = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
    mapped_anew = float(answer.stdout)
    assert mapped_anew < 0.2 * NUM_PAGES if keeps else mapped_anew > 0.9 * NUM_PAGES
