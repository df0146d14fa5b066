"""docs/own-loop.md says what is so: its example is run as it is written, and its tables are those of the program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from upshift.tuning.plan import Plan, load_plan
from upshift.tuning.planned_calls import MAX_COMPILED_SHAPES

TEXT = (Path(__file__).parents[2] / "docs" / "own-loop.md").read_text(encoding="utf-8")


def test_example_runs_and_its_plan_is_read_again(tmp_path: Path) -> None:
    block = re.search(r"<!-- runs: own loop -->\n```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert block is not None
    # Every candidate is tried, however long it takes: what the text calls a budget keeps the test short.
    example = block.group(1).replace('out="plan.json")', 'out="plan.json", budget_seconds=1)')
    assert example != block.group(1)
    again = 'upshift.Plan.load("plan.json").apply(model, optimizer, loader)'
    assert again in TEXT
    (tmp_path / "mine.py").write_text(f"{example}\n{again}\n", encoding="utf-8")
    environment = {**os.environ, "UPSHIFT_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert load_plan(tmp_path / "plan.json").trials


def test_every_field_of_a_plan_is_spoken_of() -> None:
    named = set(re.findall(r"`(\w+)`", TEXT))
    execution = {field.name for field in fields(Plan)} - {"version", "subject", "environment", "trials", "compile_mode"}
    assert execution <= named


def test_number_of_compiled_shapes_is_the_documented_one() -> None:
    assert MAX_COMPILED_SHAPES == 2
    assert "at most two" in TEXT
