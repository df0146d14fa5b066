"""Who trains in another precision is told so, and nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from live_trainings import ANY_PRICE, CPU, STEP_SECONDS, Net, train, tuned

import upshift
from simulated_clock import spend
from upshift.tuning.config import KnownPlan, TunerConfig
from upshift.tuning.fallback import Fallback
from upshift.tuning.numerics import note_of_steps, notes_of_plan
from upshift.tuning.plan import BASELINE, Plan

HALF = Plan(precision="bf16")
ADOPTED = {"name": "bf16", "changes": {"precision": "bf16"}, "tier": "B", "verdict": "adopted"}
SLOWER = 0.01


class InHalf(Net):
    """Slower in bf16, in which it raises from a step on.

    Args:
        fails_at: That step; None if it never does.
    """

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__(dropout=0.0)
        self.fails_at, self.num_steps = fails_at, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training
        if torch.is_autocast_enabled("cpu"):
            spend(SLOWER)
            if self.fails_at is not None and self.num_steps >= self.fails_at:
                raise RuntimeError("no kernel")
        return super().forward(images)


def told(notes: Sequence[str]) -> list[str]:
    """What is said of the losses."""
    return [note for note in notes if "within the noise" in note]


def test_the_note_says_what_the_losses_are() -> None:
    note = note_of_steps("bf16")
    assert "bf16" in note and "within the noise" in note and "not within round-off" in note


def test_a_plan_that_was_found_tells_its_precision_and_none_that_was_there_before() -> None:
    (note,) = notes_of_plan(HALF, BASELINE)
    assert note.startswith("the plan makes steps in bf16")
    assert notes_of_plan(HALF, HALF) == notes_of_plan(BASELINE, BASELINE) == []


@pytest.mark.usefixtures("simulated_clock", "one_thread")
@pytest.mark.parametrize(("fails_at", "notes"), [(5, [note_of_steps("bf16")]), (1, [])])
def test_a_given_precision_that_is_dropped_is_told_where_a_step_was_made_in_it(
    fails_at: int, notes: list[str], tmp_path: Path
) -> None:
    given = Fallback(HALF, CPU)
    found = train(tmp_path, InHalf(fails_at), given, epochs=1, plan=HALF)
    assert given.was_dropped and given.plan.precision == "fp32" and told(found.notes) == notes


@pytest.mark.usefixtures("simulated_clock", "one_thread")
def test_a_precision_that_a_resumed_run_went_on_with_and_dropped_is_told(tmp_path: Path) -> None:
    known = KnownPlan(
        plan=HALF,
        step_seconds=STEP_SECONDS + SLOWER,
        data_seconds=0.0,
        speedup=1.5,
        build_seconds=0.0,
        is_complete=False,
        decided=(ADOPTED,),
    )
    found = tuned(
        tmp_path,
        InHalf(),
        plan=HALF,
        arguments={"known": known, "first_plan": BASELINE},
        facts={"has_convolutions": False},
        epochs=20,
    )
    assert found.plan.precision == "fp32"
    assert all(trial.tier == "A" for trial in found.ledger.trials), "that of the precision is one of before"
    assert told(found.notes) == [note_of_steps("bf16")]


@pytest.mark.usefixtures("simulated_clock", "one_thread")
def test_where_no_training_follows_nothing_is_told_of_its_losses(tmp_path: Path) -> None:
    config = TunerConfig(allowance_share=ANY_PRICE.allowance_share, stop_when_done=True)
    facts = {"fast_dtypes": ("bf16",), "has_convolutions": False}
    found = tuned(tmp_path, InHalf(), tuner_config=config, facts=facts, epochs=40)
    assert found.trials["bf16"].num_rounds > 0 and not told(found.notes) and not told(found.ledger.notes)


def test_a_run_by_a_plan_file_in_bf16_has_the_note(tmp_path: Path) -> None:
    HALF.save(tmp_path / "plan.json")
    run = upshift.train("digits", overrides=["max_steps=2"], plan=tmp_path / "plan.json", out=tmp_path / "half")
    assert told(run.result["notes"]) == [note_of_steps("bf16")]
    plain = upshift.train("digits", overrides=["max_steps=2"], plan="baseline", out=tmp_path / "plain")
    assert told(plain.result["notes"]) == []


@pytest.mark.parametrize("plan", ["baseline", HALF])
def test_steps_from_before_a_resumption_are_told_once_whatever_the_plan_is_then(
    plan: str | Plan, tmp_path: Path
) -> None:
    upshift.train("digits", overrides=["max_steps=2"], plan=HALF, out=tmp_path / "run")
    run = upshift.train("digits", overrides=["max_steps=4"], plan=plan, out=tmp_path / "run", resume=True)
    assert run.result["resumed_from_step"] == 2 and told(run.result["notes"]) == [note_of_steps("bf16")]


def test_what_became_of_a_precision_when_a_plan_was_found_is_not_told_of_a_run_by_it(tmp_path: Path) -> None:
    Plan(trials=(ADOPTED | {"verdict": "demoted"},)).save(tmp_path / "plan.json")
    run = upshift.train("digits", overrides=["max_steps=2"], plan=tmp_path / "plan.json", out=tmp_path / "run")
    assert told(run.result["notes"]) == []
