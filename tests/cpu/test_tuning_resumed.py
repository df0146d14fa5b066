"""A run that is resumed while it tuned: it goes on from what its folder has, beside the plan that it began with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from live_trainings import STEP_SECONDS, Net, tuned

import upshift
from upshift.core import environment
from upshift.core.files import write_json
from upshift.core.malloc import can_keep_freed_memory, keep_freed_memory, keeps_freed_memory
from upshift.core.records import RunFolder
from upshift.errors import BadInputError
from upshift.tuning.config import KnownPlan
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.trials import REFUSED_BEFORE
from upshift.tuning.whole_plans import HANDED_OVER
from upshift.workflows.live_tuning import plan_to_start_with, start_tuning, with_model
from upshift.workflows.preparation import Prepared, prepare_training

ADOPTED = {"name": "channels_last", "changes": {"memory_format": "channels_last"}, "verdict": "adopted"}
REFUSED = {"name": "2 threads", "changes": {"num_threads": 2}, "verdict": "refused"}
CHANNELS_LAST = Plan(memory_format="channels_last")
ELSEWHERE = Plan(num_threads=1, environment={"cpu": "another"}, trials=({"name": "1 thread", "verdict": "adopted"},))


def left(path: Path, plan: Plan, *decided: dict[str, Any]) -> Path:
    """A run folder as a run leaves it that is stopped while it tunes."""
    folder = RunFolder(path)
    path.mkdir()
    made = replace(plan, subject="0123456789abcdef", environment=environment.describe(), trials=decided)
    made.save(folder.plan)
    seconds = {"step_seconds": STEP_SECONDS, "data_seconds": 0.0, "speedup": 1.0, "build_seconds": 0.0}
    write_json(folder.tuning, {"plan": made.to_json(), **seconds, "complete": False, "decided": list(decided)})
    return path


def prepared(plan: Plan) -> Prepared:
    return prepare_training(
        "digits",
        variant=None,
        overrides=[],
        plan=plan,
        seed=0,
        data=None,
        data_dir=None,
        skip_bad=False,
        on_data_progress=None,
    )


@pytest.mark.usefixtures("simulated_clock")
@pytest.mark.parametrize(("plan", "decided"), [(BASELINE, (REFUSED,)), (CHANNELS_LAST, (ADOPTED, REFUSED))])
def test_what_the_folder_says_was_refused_is_not_raced_again(
    plan: Plan, decided: tuple[dict[str, Any], ...], tmp_path: Path
) -> None:
    start = plan_to_start_with("auto", left(tmp_path / "run", plan, *decided))
    assert start.plan == plan and start.known is not None and start.known.plan.subject is not None
    arguments = {"known": start.known, "first_plan": BASELINE}
    model = Net(slow="contiguous" if plan == CHANNELS_LAST else "channels_last")
    found = tuned(tmp_path / "on", model, arguments=arguments, plan=start.plan, facts={"num_cores": 2}, epochs=60)
    trial = found.trials["2 threads"]
    assert (trial.verdict, trial.reason) == ("not tried", REFUSED_BEFORE)
    assert found.tuner is not None and (found.tuner.observer.first_split is None) == (plan != BASELINE)
    if plan == BASELINE:
        assert not any("dropped" in note for note in found.notes)


@pytest.mark.parametrize("is_decided", [True, False])
@pytest.mark.parametrize("is_of_another_model", [True, False])
def test_a_run_of_a_plan_handed_over_is_gone_on_with(
    is_decided: bool, is_of_another_model: bool, tmp_path: Path
) -> None:
    of_it = {"name": HANDED_OVER, "changes": {"num_threads": 1}, "verdict": "refused"}
    folder = left(tmp_path / "run", CHANNELS_LAST, ADOPTED, *([of_it] if is_decided else []))
    if is_of_another_model:
        elsewhere = Plan(num_threads=1, subject="fedcba9876543210")
        start = plan_to_start_with(elsewhere, folder)
        assert not start.tunes
        start = with_model(start, Net(), folder)
    else:
        elsewhere = ELSEWHERE
        start = plan_to_start_with(elsewhere, folder)
    assert start.tunes and start.known is not None and start.plan == CHANNELS_LAST
    assert start.handed_over == (None if is_decided else elsewhere)


def test_a_plan_that_the_folder_never_raced_is_raced_all_the_same(tmp_path: Path) -> None:
    folder = left(tmp_path / "run", CHANNELS_LAST, ADOPTED)
    RunFolder(folder).tuning.unlink()  # it came to its end, without the plan that is handed over now
    start = plan_to_start_with(ELSEWHERE, folder)
    assert (start.plan, start.handed_over, start.known) == (BASELINE, ELSEWHERE, None)


def test_the_plan_of_the_beginning_has_the_data_path_of_the_beginning() -> None:
    found = Plan(data_path="mmap")
    known = KnownPlan(plan=found, step_seconds=1.0, data_seconds=0.0, speedup=2.0, build_seconds=0.0, is_complete=False)
    begun, resumed = start_tuning(prepared(BASELINE)), start_tuning(prepared(found), known=known)
    assert resumed._subject == begun._subject, "later runs look for the plan under this"
    loader_for = resumed.tuner.live._loader_for
    assert loader_for is not None
    assert (loader_for(BASELINE).data_path, loader_for(found).data_path) == ("resident", "mmap")


def test_changes_of_before_the_interruption_are_dropped_with_the_plan() -> None:
    known = KnownPlan(
        plan=CHANNELS_LAST,
        step_seconds=1.0,
        data_seconds=0.0,
        speedup=2.0,
        build_seconds=0.0,
        is_complete=False,
        decided=(ADOPTED,),
    )
    tuning = start_tuning(prepared(CHANNELS_LAST), known=known)
    assert tuning.plan().trials[0]["verdict"] == "adopted"
    tuning.tuner.ledger.drop_plan("it is no faster", 0.0)
    assert tuning.plan().memory_format == "contiguous" and tuning.plan().trials[0]["verdict"] == "demoted"


# The process


class Threads:
    """An observer that notes how many threads torch has while training."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def on_start(self, **facts: int) -> None: ...
    def on_end(self) -> None: ...
    def on_record(self, record: dict[str, Any]) -> None: ...
    def on_note(self, note: str) -> None: ...

    def on_progress(self, **where: int) -> None:
        self.seen.add(torch.get_num_threads())


def test_a_plan_that_has_to_prove_itself_sets_no_threads_before_that(tmp_path: Path) -> None:
    before, threads = torch.get_num_threads(), Threads()
    plan = Plan(num_threads=before + 1, subject="0123456789abcdef")
    settings = ["epochs=1", "max_steps=4"]
    upshift.train("digits", overrides=settings, plan=plan, out=tmp_path / "run", observers=[threads])
    assert threads.seen == {before}
    prepared(Plan(num_threads=before + 1))
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not can_keep_freed_memory(), reason="needs glibc as its user left it")
def test_freed_memory_is_kept_for_the_training_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("mine")
    settings = ["epochs=1", "max_steps=2"]
    with pytest.raises(BadInputError):
        upshift.train("digits", overrides=settings, plan=Plan(keep_freed_memory=True), out=tmp_path / "run")
    assert not keeps_freed_memory()
    keep_freed_memory(True)
    try:
        upshift.train("digits", overrides=settings, plan="baseline", out=tmp_path / "other")
        assert keeps_freed_memory(), "as a plan in a loop of the user's own has it"
    finally:
        keep_freed_memory(False)
