"""What a run leaves to later ones: a plan that was proven gives way to proof alone, and nothing is tried twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from live_trainings import STEP_SECONDS, Net, Trained, is_channels_last, tuned

from simulated_clock import spend
from upshift.tuning.candidates import Candidate
from upshift.tuning.config import KnownPlan, TunerConfig
from upshift.tuning.ledger import Ledger
from upshift.tuning.payback import PRIOR_COMPILE_SECONDS, compile_seconds
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.trials import REFUSED_BEFORE
from upshift.workflows.tuning_memory import from_document, kept_document, to_document

pytestmark = pytest.mark.usefixtures("simulated_clock", "one_thread")

CHANNELS_LAST, COMPILED = Plan(memory_format="channels_last"), Plan(compile="whole")
ADOPTED = {"name": "channels_last", "changes": {"memory_format": "channels_last"}, "verdict": "adopted"}


def earlier(plan: Plan, **fields: Any) -> dict[str, Any]:
    """What a run left that came to its end."""
    seconds = {"step_seconds": STEP_SECONDS, "data_seconds": 0.0, "speedup": 2.0, "build_seconds": 0.0}
    return {"plan": plan.to_json(), **seconds, "untried_seconds": None, "complete": True, "decided": [], **fields}


def left_by(found: Trained) -> dict[str, Any]:
    """What a run would leave if no other had been before it."""
    assert found.tuner is not None
    document = to_document(found.tuner, found.plan)
    assert document is not None
    return document


def kept(found: Trained, before: dict[str, Any]) -> dict[str, Any]:
    """What later runs begin with."""
    assert found.tuner is not None
    return kept_document(before, left_by(found), found.tuner)


# A plan that is no faster on fresh rounds


class Fading(Net):
    """Faster in channels_last at first, long enough to be looked at as a known plan; slower from then on."""

    def __init__(self, after: int = 15) -> None:
        super().__init__(slow="contiguous", seconds=STEP_SECONDS)
        self.after = after

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if is_channels_last(self.conv) and len(self.batches) > self.after:
            spend(2.5 * STEP_SECONDS)
        return super().forward(images)


@pytest.mark.parametrize("interval", [None, (0.9, 1.15)], ids=["proven no faster", "no gain seen"])
def test_a_proven_plan_gives_way_where_it_is_proven_to_be_no_faster_and_the_job_is_tuned_again(
    interval: tuple[float, float] | None, tmp_path: Path
) -> None:
    before = earlier(CHANNELS_LAST, decided=[ADOPTED])
    found = tuned(tmp_path / "run", Fading(), arguments={"known": from_document(before)}, epochs=30)
    ledger, confirmation = found.ledger, found.ledger.confirmation
    assert found.tuner is not None and found.tuner.took_known and found.plan == BASELINE
    assert confirmation is not None and confirmation.verdict == "refuted"
    assert confirmation.speedup_interval is not None and confirmation.speedup_interval[1] < 1.0
    if interval is not None:
        ledger.confirmation = replace(confirmation, speedup_interval=interval)
        assert kept(found, before) == before
        return
    after = kept(found, before)
    assert after["plan"] == BASELINE.to_json() and (after["complete"], after["decided"]) == (False, [])
    again = tuned(tmp_path / "again", Net(slow="contiguous"), arguments={"known": from_document(after)}, epochs=20)
    assert again.trials["channels_last"].num_rounds > 0 and again.plan == CHANNELS_LAST


@pytest.mark.parametrize("after", [15, 60], ids=["raced again", "taken"])
def test_a_job_whose_plan_a_resumed_run_drops_is_tuned_again(after: int, tmp_path: Path) -> None:
    stopped = from_document(earlier(CHANNELS_LAST, decided=[ADOPTED], complete=False))
    arguments = {"known": stopped, "first_plan": BASELINE}
    found = tuned(tmp_path, Fading(after), arguments=arguments, plan=CHANNELS_LAST, epochs=40)
    assert found.tuner is not None and found.tuner.took_known is (after == 60)
    assert found.ledger.confirmation is not None and found.ledger.confirmation.verdict == "refuted"
    document = left_by(found)
    assert document["plan"] == BASELINE.to_json() and (document["complete"], document["decided"]) == (False, [])


# A plan that was too dear


def too_dear(**fields: Any) -> dict[str, Any]:
    """What a run left whose plan no short one can afford."""
    return earlier(COMPILED, build_seconds=1e6, speedup=20.0, **fields)


@pytest.mark.parametrize("epochs", [10, 30], ids=["not confirmed", "confirmed"])
def test_a_proven_plan_is_replaced_by_one_that_is_confirmed_to_be_faster_alone(epochs: int, tmp_path: Path) -> None:
    before = too_dear()
    found = tuned(tmp_path, Net(slow="contiguous"), arguments={"known": from_document(before)}, epochs=epochs)
    assert found.plan == CHANNELS_LAST and found.ledger.speedup > 3.0
    confirmation = found.ledger.confirmation
    assert confirmation is not None
    if epochs == 10:
        assert confirmation.verdict == "not confirmed"
        assert kept(found, before | {"speedup": 2.0})["plan"] == COMPILED.to_json()
        return
    assert confirmation.verdict == "confirmed" and confirmation.speedup_interval is not None
    low, speedup = confirmation.speedup_interval[0], found.ledger.speedup
    assert kept(found, before | {"speedup": (low + speedup) / 2})["plan"] == COMPILED.to_json()
    assert kept(found, before | {"speedup": 0.99 * low})["plan"] == CHANNELS_LAST.to_json()


def test_another_plan_that_fails_says_nothing_of_the_proven_one(tmp_path: Path) -> None:
    before, model = too_dear(), Net(slow="contiguous")

    def fails_at_last(logits: torch.Tensor) -> torch.Tensor:
        if len(model.batches) > 120:
            raise RuntimeError("no memory left")
        return logits

    model.trouble = fails_at_last
    found = tuned(tmp_path, model, arguments={"known": from_document(before)}, epochs=10)
    assert found.ledger.was_demoted and found.plan == BASELINE
    assert kept(found, before) == before


def test_of_two_short_runs_in_a_row_the_second_races_nothing_that_the_first_refused(tmp_path: Path) -> None:
    before = too_dear()
    facts = {"num_cores": 2}
    for name in ("first", "second"):
        known = from_document(before)
        found = tuned(tmp_path / name, Net(slow="channels_last"), arguments={"known": known}, facts=facts, epochs=60)
        assert found.ledger.trials[0].verdict == "not tried", "the known plan"
        raced = [trial.name for trial in found.ledger.trials if trial.num_rounds]
        assert sorted(raced) == (["2 threads", "channels_last"] if name == "first" else [])
        before = kept(found, before)
        assert before["plan"] == COMPILED.to_json()
        assert sorted(trial["name"] for trial in before["decided"]) == ["2 threads", "channels_last"]
    assert found.trials["2 threads"].reason == REFUSED_BEFORE


# What building takes


def test_a_known_plan_that_is_raced_again_is_remembered_with_what_building_it_took(tmp_path: Path) -> None:
    model, built = Net(slow="contiguous"), []

    def build_once(logits: torch.Tensor) -> torch.Tensor:
        if not built:
            built.append(True)
            spend(5.0)
        return logits

    model.trouble = build_once
    known = from_document(earlier(CHANNELS_LAST, step_seconds=1e-6))  # no step is as fast: it has to prove itself
    found = tuned(tmp_path, model, arguments={"known": known}, epochs=20)
    assert found.plan == CHANNELS_LAST and found.tuner is not None and not found.tuner.took_known
    assert any(trial.num_rounds for trial in found.ledger.trials if "known from an earlier run" in trial.name)
    assert left_by(found)["build_seconds"] == pytest.approx(5.0, rel=0.2)


@pytest.mark.parametrize("is_proven", [False, True])
def test_building_a_plan_that_was_known_is_no_experience_of_what_compiling_takes(is_proven: bool) -> None:
    ledger: Ledger = Ledger(BASELINE, config=TunerConfig())
    ledger.num_operators = 10
    candidate = Candidate(name="it", changes={"compile": "whole"}, gain=0.5, reason="", is_proven=is_proven)
    loop: Any = SimpleNamespace(steps_made=0, remaining_steps=0)
    ledger.record(loop, candidate, "refused", "slower", 1.0, build_seconds=100.0)
    (trial,) = ledger.trials
    at_least, each = PRIOR_COMPILE_SECONDS["whole"]
    expected = at_least + 10 * each if is_proven else 100.0
    assert compile_seconds("whole", 10, [trial.to_json() | dict(trial.changes)]) == pytest.approx(expected)


# What could not be afforded


@pytest.mark.parametrize("races", [True, False])
def test_what_an_earlier_run_could_not_afford_is_no_longer_told_of_once_it_was_tried(
    races: bool, tmp_path: Path
) -> None:
    known = KnownPlan(
        plan=CHANNELS_LAST,
        step_seconds=STEP_SECONDS,
        data_seconds=0.0,
        speedup=3.0,
        build_seconds=0.0,
        untried_seconds=0.1 if races else 100.0,
        decided=(ADOPTED,),
    )
    facts = {"num_cores": 2, "changes_size": True}  # so that nothing is compiled
    found = tuned(tmp_path, Net(slow="contiguous"), arguments={"known": known}, facts=facts, epochs=20)
    assert found.tuner is not None and found.tuner.took_known
    assert ("2 threads" in found.trials) is races
    assert left_by(found)["untried_seconds"] == (None if races else 100.0)
