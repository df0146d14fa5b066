"""A training that runs out of a real limit of memory, and is made whole again by recomputing activations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live_trainings import assert_same_losses
from training_in_little_memory import BATCH_SIZE

KEEPS_NO_FREED_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "262144"}
"""glibc else keeps freed blocks of one size, which no larger one fits in."""


def in_little_memory(folder: Path, mib: int) -> dict[str, Any]:
    script = Path(__file__).with_name("training_in_little_memory.py")
    paths = [str(script.parent), str(script.parents[1])]
    done = subprocess.run(
        [sys.executable, script, folder, str(mib)],
        capture_output=True,
        text=True,
        check=False,
        # One arena: others would reserve addresses that the limit counts.
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        | KEEPS_NO_FREED_BLOCKS,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of a process's memory")
def test_a_batch_that_did_not_fit_is_made_whole_by_recomputing(tmp_path: Path) -> None:
    plain = in_little_memory(tmp_path / "plain", 0)
    found = in_little_memory(tmp_path / "limited", 56)
    assert any(note.startswith("out of memory at step 1") for note in found["notes"])
    trial = next(trial for trial in found["trials"] if trial["name"] == "activation checkpointing")
    # Where the heap happens to be in pieces, the trial itself runs out of memory: training goes on in parts then.
    assert trial["verdict"] in ("adopted", "failed"), trial
    if trial["verdict"] == "adopted":
        assert trial["gradient_error"] < 1e-3
        assert found["plan"]["activation_checkpointing"] is True and found["micro_batch_size"] == BATCH_SIZE
    assert max(found["sizes"][1:30]) < BATCH_SIZE, "before it was tried, a batch went in parts"
    assert_same_losses(found["losses"], plain["losses"])
