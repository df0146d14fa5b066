"""A plan that loses a part: its figures, its trials and its name in later runs are those of what is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from live_trainings import ANY_PRICE, STEP_SECONDS, Batches, Net, Trained, job, train

from simulated_clock import spend
from upshift.reports.tuned import adopted_names
from upshift.tuning.config import KnownPlan, TunerConfig
from upshift.tuning.demotion import Adoptions, earlier_trials_after, trials_after
from upshift.tuning.ledger import Ledger
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.stopwatch import Measured
from upshift.tuning.trials import Trial
from upshift.tuning.tuner import Tuner
from upshift.tuning.whole_plans import known_candidate

CHANGES = {"memory_format": "channels_last", "num_threads": 2}
BOTH, THREADS = Plan(memory_format="channels_last", num_threads=2), Plan(num_threads=2)
WHOLE = Trial(
    name="channels_last + 2 threads, known from an earlier run",
    changes=CHANGES,
    tier="A",
    verdict="adopted",
    reason="steps of 12 ms",
    expected_gain=0.5,
    expected_seconds=0.0,
    step=70,
    speedup=3.0,
)
BY_THREADS, BY_LAYOUT = 0.02, 0.04
"""Seconds that a step takes more: on one thread, and in contiguous layout."""


class Picky(Net):
    """Slow in contiguous layout and on one thread."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spend(BY_THREADS / torch.get_num_threads())
        return super().forward(images)


class Counting(Batches):
    """Knows which step is made."""

    step = 0

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in super().epoch(epoch, start_batch=start_batch):
            self.step += 1
            yield batch


def known(plan: Plan) -> KnownPlan:
    seconds = STEP_SECONDS + BY_THREADS / 2
    return KnownPlan(plan=plan, step_seconds=seconds, data_seconds=0.0, speedup=3.0, build_seconds=0.0)


def loses_its_layout(folder: Path, *, at_step: int) -> Trained:
    """A training of 400 steps that goes on with a known plan, of which one thing fails long after tuning."""
    model, loader = Picky(slow="contiguous", seconds=BY_LAYOUT, dropout=0.0), Counting()
    tuner = Tuner(BASELINE, job=job(model, num_cores=2), config=ANY_PRICE, known=known(BOTH))

    def trouble(logits: torch.Tensor) -> torch.Tensor:
        if loader.step >= at_step:
            assert tuner.is_complete
            raise RuntimeError("kernel panic")
        return logits

    model.trouble = trouble
    found = train(folder, model, tuner, loader=loader, epochs=20)
    assert found.plan == THREADS and found.ledger.was_demoted and len(found.losses) == 400
    return found


# Its figures


@pytest.mark.usefixtures("simulated_clock", "one_thread")
def test_a_step_by_what_is_left_is_timed_anew_though_tuning_was_complete(tmp_path: Path) -> None:
    found = loses_its_layout(tmp_path, at_step=200)
    ledger, tuner = found.ledger, found.tuner
    assert ledger.step is not None and tuner is not None and tuner.is_complete
    assert ledger.step.step_seconds == pytest.approx(STEP_SECONDS + BY_THREADS / 2 + BY_LAYOUT, rel=0.1)
    assert ledger.measured_step == ledger.step
    split = tuner.observer.split_by_plan()
    assert split is not None and split.seconds == pytest.approx(ledger.step.seconds)
    assert all(trial.num_rounds == 0 for trial in ledger.trials), "tuning is over: nothing more is raced"


@pytest.mark.usefixtures("simulated_clock", "one_thread")
def test_a_step_that_there_was_no_time_to_time_is_not_told_of_as_one_by_the_plan(tmp_path: Path) -> None:
    found = loses_its_layout(tmp_path, at_step=390)
    assert found.ledger.step is not None and found.ledger.step.is_estimated
    assert found.ledger.measured_step is None
    assert found.tuner is not None and found.tuner.observer.split_by_plan() is None and found.tuner.is_complete


def test_what_a_step_by_the_first_plan_takes_is_an_estimate_until_one_is_timed() -> None:
    ledger = Ledger(BOTH, config=TunerConfig())
    ledger.go_on_with(known(BOTH), BASELINE)
    ledger.set_first_step(Measured(0.01, 0.0))
    ledger.drop_plan("it is no faster", 0.0)
    assert ledger.step == Measured(0.03, 0.0, is_estimated=True) and ledger.measured_step is None
    timed = Measured(0.02, 0.0)
    ledger.set_step(timed)
    assert ledger.first_step == ledger.measured_step == timed
    ledger.set_step(Measured(0.025, 0.0))
    assert ledger.first_step == timed, "as it was timed first"


# Its trials


@pytest.mark.usefixtures("simulated_clock", "one_thread")
def test_what_is_left_is_what_the_trials_call_adopted(tmp_path: Path) -> None:
    found = loses_its_layout(tmp_path, at_step=200)
    left, lost = found.ledger.trials
    assert (left.name, left.verdict, left.changes) == ("num_threads=2", "adopted", {"num_threads": 2})
    assert "which lost memory_format=channels_last; before: steps of" in left.reason and left.speedup is None
    assert (lost.name, lost.verdict) == ("memory_format=channels_last", "demoted")
    trials = tuple(trial.to_json() for trial in found.ledger.trials)
    assert adopted_names(trials) == ["num_threads=2"]
    again = known_candidate(known(replace(found.plan, trials=trials)), BASELINE)
    assert again.name == "num_threads=2, known from an earlier run" and again.changes == {"num_threads": 2}


def test_a_change_that_is_lost_part_by_part_is_demoted_in_the_end() -> None:
    adoptions = Adoptions()
    adoptions.add(BOTH, BASELINE, 3.0)
    first = adoptions.take_back(BOTH, BASELINE, 3.0, of_batches=False)
    trials = trials_after([WHOLE], first, "it failed", 80)
    second = adoptions.take_back(first.plan, BASELINE, 1.0, of_batches=False)
    trials = trials_after(trials, second, "it failed again", 81)
    verdicts = [(trial.name, trial.verdict) for trial in trials]
    assert verdicts == [("num_threads=2", "demoted"), ("memory_format=channels_last", "demoted")]
    assert "it failed again" in trials[0].reason


@pytest.mark.parametrize(
    ("rest", "of_batches", "build_seconds"),
    [({"memory_format": "channels_last"}, False, None), ({"data_path": "mmap"}, True, 30.0)],
)
def test_what_building_cost_is_told_as_long_as_what_was_compiled_is_there(
    rest: dict[str, Any], of_batches: bool, build_seconds: float | None
) -> None:
    changes = {"compile": "whole", **rest}
    adoptions, plan = Adoptions(), Plan(**changes)
    adoptions.add(plan, BASELINE, 3.0)
    lost = adoptions.take_back(plan, BASELINE, 3.0, of_batches=of_batches)
    left, _ = trials_after([replace(WHOLE, changes=changes, build_seconds=30.0)], lost, "it failed", 80)
    assert ("compile" in left.changes) == of_batches and left.build_seconds == build_seconds


def test_trials_of_before_an_interruption_tell_of_what_is_left_too() -> None:
    def trial(name: str, changes: dict[str, Any], verdict: str = "adopted") -> dict[str, Any]:
        return {"name": name, "changes": changes, "verdict": verdict, "reason": "a proven gain", "speedup": 2.0}

    layout, threads = (trial(name, {name: value}) for name, value in CHANGES.items())
    refused, both = trial("compiled", {"compile": "whole"}, "refused"), trial("both", CHANGES)
    lost = [{"memory_format": "channels_last"}]
    assert earlier_trials_after([layout, threads, refused], lost, THREADS) == [
        layout | {"verdict": "demoted"},
        threads,
        refused,
    ]
    (left,) = earlier_trials_after([both], lost, THREADS)
    assert (left["name"], left["verdict"], left["changes"]) == ("num_threads=2", "adopted", {"num_threads": 2})
    assert "speedup" not in left and "what is left of both" in left["reason"]
    assert earlier_trials_after([layout, both, {"verdict": "adopted"}], [], BOTH) == [
        layout,
        both,
        {"verdict": "adopted"},
    ]
