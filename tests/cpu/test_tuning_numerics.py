"""Who trains in another precision is told so, and nobody else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import upshift
from upshift.tuning.numerics import notes_of_plan, notes_of_training
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.trials import Trial

BF16 = Trial(
    name="bf16",
    changes={"precision": "bf16"},
    tier="B",
    verdict="adopted",
    reason="a proven gain",
    expected_gain=0.2,
    expected_seconds=0.0,
    step=40,
)
HALF = replace(BASELINE, precision="bf16")


def test_a_training_in_bf16_is_told_what_its_losses_are() -> None:
    (note,) = notes_of_training(HALF, [BF16])
    assert "bf16" in note and "within the noise" in note and "not within round-off" in note
    assert notes_of_training(BASELINE, [replace(BF16, verdict="refused")]) == []


def test_a_precision_that_was_dropped_again_is_told_too() -> None:
    (note,) = notes_of_training(BASELINE, [replace(BF16, verdict="demoted")])
    assert note.startswith("bf16 was adopted for a while")


def test_a_plan_that_was_found_tells_its_precision_and_none_that_was_there_before() -> None:
    (note,) = notes_of_plan(HALF, BASELINE)
    assert note.startswith("the plan makes steps in bf16")
    assert notes_of_plan(HALF, HALF) == notes_of_plan(BASELINE, BASELINE) == []


def test_a_run_by_a_plan_file_in_bf16_has_the_note(tmp_path: Path) -> None:
    Plan(precision="bf16").save(tmp_path / "plan.json")
    run = upshift.train("digits", overrides=["max_steps=2"], plan=tmp_path / "plan.json", out=tmp_path / "half")
    assert any("steps were made in bf16" in note for note in run.result["notes"])
    plain = upshift.train("digits", overrides=["max_steps=2"], plan="baseline", out=tmp_path / "plain")
    assert not any("noise that training has" in note for note in plain.result["notes"])
