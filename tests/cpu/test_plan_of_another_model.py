"""A plan file that was found for another model: it is told, and has to prove itself before it is trained by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import upshift
from upshift.tuning.plan import load_plan

pytestmark = pytest.mark.usefixtures("simulated_clock")


def train(folder: Path, plan: upshift.Plan, *overrides: str) -> Any:
    plan.save(folder / "plan.json")
    settings = ["epochs=1", "max_steps=4", *overrides]
    return upshift.train("digits", overrides=settings, plan=folder / "plan.json", out=folder / "run")


def test_a_plan_for_another_model_is_handed_over_and_told(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    tuned = train(tmp_path / "first", upshift.Plan(memory_format="channels_last", subject="0123456789abcdef"))
    notes = " ".join(tuned.result["notes"])
    assert "found for another model" in notes
    assert tuned.result["tuning"] is not None
    found = load_plan(tmp_path / "first" / "run" / "plan.json")
    assert found.subject not in (None, "0123456789abcdef")
    assert found.memory_format == "contiguous"  # in four steps nothing is proven

    same = train(tmp_path / "second", upshift.Plan(memory_format="channels_last", subject=found.subject))
    assert "another model" not in " ".join(same.result["notes"])
    assert same.result["tuning"] is None
    assert load_plan(tmp_path / "second" / "run" / "plan.json").memory_format == "channels_last"
