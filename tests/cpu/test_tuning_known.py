"""What an earlier run found: doubted where the machine was busy or slow then, and else not raced again."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from layered_recipe import RECIPE
from live_trainings import STEP_SECONDS, Batches, Net, tuned

from upshift import Plan, train
from upshift.core.cache import TuningCache
from upshift.core.files import cache_folder
from upshift.core.load import Load, LoadMeter
from upshift.errors import TrainingInterrupted
from upshift.reports.tuned import tuning_fact, why_plain
from upshift.tuning.config import KnownPlan
from upshift.tuning.plan import BASELINE
from upshift.tuning.trials import REFUSED_BEFORE
from upshift.workflows.tuning_memory import from_document, to_document

pytestmark = pytest.mark.usefixtures("simulated_clock")

UNFUSED = Plan(fused_optimizer=False)
CHANNELS_LAST = Plan(memory_format="channels_last")
ADOPTED = {"name": "channels_last", "changes": {"memory_format": "channels_last"}, "verdict": "adopted"}
REFUSED = {"name": "2 threads", "changes": {"num_threads": 2}, "verdict": "refused"}


class BusyMeter(LoadMeter):
    """Of a machine half of which other programs use."""

    def read(self) -> Load | None:
        return Load(others_share=0.5, own_share=0.5, seconds=10.0, num_cores=2)


@pytest.mark.parametrize("is_busy", [False, True])
def test_what_was_not_proven_on_a_busy_machine_is_looked_for_by_the_next_run(
    is_busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if is_busy:
            patch.setattr("upshift.tuning.tuner.LoadMeter", BusyMeter)
        first = tuned(tmp_path / "first", Net(slow="channels_last"), plan=UNFUSED, epochs=60)
        assert first.tuner is not None
        document = to_document(first.tuner, first.plan)
    assert {first.trials[name].verdict for name in ("channels_last", "fused optimizer")} == {"refused"}
    assert document is not None and document["complete"] is not is_busy
    assert sorted(trial["name"] for trial in document["decided"]) == (
        ["channels_last"] if is_busy else ["channels_last", "fused optimizer"]
    ), "what is proven slower stays refused"
    known = from_document(document)
    second = tuned(tmp_path / "second", Net(slow="channels_last"), arguments={"known": known}, plan=UNFUSED, epochs=60)
    assert second.tuner is not None and second.tuner.took_known
    assert [trial.name for trial in second.ledger.trials if trial.num_rounds] == (
        ["fused optimizer"] if is_busy else []
    )
    after = to_document(second.tuner, second.plan)
    assert after is not None and after["complete"] is True
    assert sorted(trial["name"] for trial in after["decided"]) == ["channels_last", "fused optimizer"]


@pytest.mark.parametrize(("recorded", "is_slow"), [(3 * STEP_SECONDS, True), (1.2 * STEP_SECONDS, False)])
def test_a_plan_that_was_found_on_a_slow_machine_is_tuned_again(recorded: float, is_slow: bool, tmp_path: Path) -> None:
    known = KnownPlan(plan=BASELINE, step_seconds=recorded, data_seconds=0.0, speedup=1.0, build_seconds=0.0)
    found = tuned(tmp_path, Net(slow="channels_last"), arguments={"known": known}, epochs=30)
    assert found.tuner is not None and found.tuner.took_known is not is_slow
    assert ("channels_last" in found.trials) is is_slow
    assert any("times faster than when the plan was found" in note for note in found.ledger.notes) is is_slow


def test_a_longer_run_races_what_was_not_tried_and_nothing_that_was_refused(tmp_path: Path) -> None:
    known = KnownPlan(
        plan=CHANNELS_LAST,
        step_seconds=STEP_SECONDS,
        data_seconds=0.0,
        speedup=3.0,
        build_seconds=0.0,
        untried_seconds=0.1,
        decided=(ADOPTED, REFUSED),
    )
    found = tuned(tmp_path, Net(slow="contiguous"), arguments={"known": known}, facts={"num_cores": 2}, epochs=10)
    assert found.tuner is not None and found.tuner.took_known
    assert found.trials["2 threads"].reason == REFUSED_BEFORE
    document = to_document(found.tuner, found.plan)
    assert document is not None and document["decided"][:2] == [ADOPTED, REFUSED]
    assert [trial["name"] for trial in document["decided"]].count("channels_last") == 1


class Held(Batches):
    """Holds a copy of the data, until it is freed."""

    is_freed = False

    def free(self) -> None:
        self.is_freed = True


def test_a_run_that_goes_on_with_a_known_plan_holds_its_data_once(tmp_path: Path) -> None:
    first, made = Held(), list[Held]()

    def make(plan: Plan) -> Held:
        made.append(Held())
        return made[-1]

    known = KnownPlan(plan=CHANNELS_LAST, step_seconds=STEP_SECONDS, data_seconds=0.0, speedup=3.0, build_seconds=0.0)
    arguments = {"known": known, "loader_for": make}
    found = tuned(tmp_path, Net(slow="contiguous"), loader=first, arguments=arguments, epochs=5)
    assert found.tuner is not None and found.tuner.took_known
    assert first.is_freed and [loader.is_freed for loader in made] == [False]


def test_a_plan_from_elsewhere_that_has_no_steps_to_prove_itself_on_is_named(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(CHANNELS_LAST.to_json() | {"environment": {"cpu": "another one"}}))
    result = train(RECIPE, overrides=("epochs=1",), out=tmp_path / "run", plan=plan).result
    assert result["plan"]["memory_format"] == "contiguous"
    (told,) = (note for note in result["notes"] if "handed over" in note or "too few" in note)
    assert told == (
        "the plan handed over was ignored: it was measured on another machine, and 23 steps are too few to prove it on"
    )


class Stopping:
    """An observer that stops the process as Ctrl-C does, once tuning is complete."""

    def __init__(self, at_step: int) -> None:
        self.at_step = at_step

    def on_start(self, **facts: int) -> None: ...
    def on_end(self) -> None: ...
    def on_progress(self, **where: int) -> None: ...
    def on_note(self, note: str) -> None: ...

    def on_record(self, record: dict[str, Any]) -> None:
        if record["step"] == self.at_step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_resumed_after_its_tuning_tells_what_that_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("upshift.workflows.live_tuning.num_usable_cores", lambda: 1)
    out, recipe = tmp_path / "run", replace(RECIPE, epochs=30)
    with pytest.raises(TrainingInterrupted):
        train(recipe, out=out, observers=[Stopping(at_step=600)])
    left = json.loads((out / "tuning.json").read_text())
    assert left["complete"] is True and left["account"]["saved_seconds"] > 0
    result = train(recipe, out=out, resume=True).result
    assert result["resumed_from_step"] == 600 and result["plan"]["memory_format"] == "channels_last"
    assert result["tuning"] == left["account"]
    assert result["tuning"]["confirmation"]["verdict"] == "confirmed"
    assert any(trial["name"] == "channels_last" and trial["num_rounds"] for trial in result["plan"]["trials"])
    assert any("before the run was resumed" in note for note in result["notes"])
    assert TuningCache().notes == []


# Runs in a row


def run(out: Path, *overrides: str) -> dict[str, Any]:
    return train(RECIPE, overrides=overrides, out=out).result


def remembered() -> dict[str, Any]:
    """What the next run of the job begins with."""
    (path,) = (cache_folder() / "tuning-v1").glob("*/plans/*.json")
    content: dict[str, Any] = json.loads(path.read_text())["content"]
    return content


def change(**changes: Any) -> None:
    """Have the memory say something else of the plan."""
    (path,) = (cache_folder() / "tuning-v1").glob("*/plans/*.json")
    envelope = json.loads(path.read_text())
    TuningCache().save_plan(envelope["environment"], envelope["subject"], envelope["content"] | changes)


@pytest.fixture
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """A cache of the test's own, and one core."""
    monkeypatch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("upshift.workflows.live_tuning.num_usable_cores", lambda: 1)


@pytest.mark.usefixtures("own_memory")
def test_each_of_three_runs_in_a_row_begins_with_the_proven_plan_however_short_it_is(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    assert first["tuning"]["confirmation"]["verdict"] == "confirmed"
    recorded = remembered()
    for name, overrides in (("second", ["epochs=5"]), ("third", []), ("fourth", ["epochs=5"])):
        result = run(tmp_path / name, *overrides)
        tuning = result["tuning"]
        assert tuning["from_cache"] is True and result["plan"]["memory_format"] == "channels_last"
        assert tuning["seconds"] < 0.5
        # Of steps of some milliseconds no more can be saved than the recorded speedup makes of all of them.
        most = result["steps"] * recorded["step_seconds"] * (recorded["speedup"] * 1.2 - 1.0)
        assert 0.0 < tuning["saved_seconds"] <= most
        assert result["plan"]["trials"][0]["speedup"] <= recorded["speedup"] * 1.2
        assert remembered()["plan"]["memory_format"] == "channels_last"


@pytest.mark.usefixtures("own_memory")
def test_a_proven_plan_that_is_too_dear_for_a_short_run_is_kept_for_longer_ones(tmp_path: Path) -> None:
    run(tmp_path / "first")
    recorded = remembered()
    change(build_seconds=2.0)  # which 115 steps of 8 ms cannot win
    short = run(tmp_path / "short", "epochs=5", "model_args.in_channels_last=false")
    known = short["plan"]["trials"][0]
    assert known["verdict"] == "not tried" and "kept for longer runs" in known["reason"]
    assert short["plan"]["memory_format"] == "contiguous" and short["tuning"]["from_cache"] is False
    kept = remembered()
    assert kept["plan"] == recorded["plan"] and kept["speedup"] == recorded["speedup"]
    fact = tuning_fact(short)
    assert fact is not None and fact[2].startswith("nothing else could have paid for itself")
    train(RECIPE, overrides=["epochs=5"], out=tmp_path / "plain", plan="baseline")
    assert losses(tmp_path / "short") == losses(tmp_path / "plain"), "looking at it changes no step"
    change(build_seconds=0.0)
    third = run(tmp_path / "third")
    assert third["tuning"]["from_cache"] is True and third["plan"]["memory_format"] == "channels_last"


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("own_memory")
def test_a_known_plan_saves_what_it_gained_when_it_was_found_until_it_is_confirmed(tmp_path: Path) -> None:
    run(tmp_path / "first")
    change(speedup=1.25)  # less than what the first steps of the next run seem to show
    second = run(tmp_path / "second", "epochs=5")
    tuning = second["tuning"]
    assert tuning["confirmation"]["verdict"] == "not confirmed"
    assert second["plan"]["trials"][0]["speedup"] == 1.25 and remembered()["speedup"] == 1.25
    assert tuning["saved_seconds"] <= second["steps"] * 0.25 * 1.2 * remembered()["step_seconds"]
    fact = tuning_fact(second)
    assert fact is not None and fact[2].endswith("saved, by what the plan gained when it was found")


@pytest.mark.usefixtures("own_memory")
def test_a_busy_run_does_not_replace_a_proven_plan(tmp_path: Path, monkeypatch: Any) -> None:
    run(tmp_path / "first")
    change(step_seconds=0.001)  # its steps are slower than recorded: it has to prove itself
    monkeypatch.setattr("upshift.tuning.tuner.LoadMeter", BusyMeter)
    second = run(tmp_path / "second", "model_args.seconds=0.0")
    assert second["plan"]["memory_format"] == "contiguous"
    assert remembered()["plan"]["memory_format"] == "channels_last"


class StoppingOnceAdopted(Stopping):
    """The same as soon as a plan was adopted."""

    def __init__(self, out: Path) -> None:
        self.out, self.has_stopped = out, False

    def on_record(self, record: dict[str, Any]) -> None:
        if not self.has_stopped and (self.out / "tuning.json").is_file():
            self.has_stopped = True
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("own_memory")
def test_a_run_that_is_resumed_keeps_a_proven_plan_which_it_could_not_afford(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("upshift.workflows.live_tuning.num_usable_cores", lambda: 2)
    run(tmp_path / "first")
    proven = remembered()["plan"] | {"num_threads": 3}
    change(plan=proven, build_seconds=1000.0, speedup=100.0)
    out = tmp_path / "second"
    with pytest.raises(TrainingInterrupted):
        train(RECIPE, out=out, observers=[StoppingOnceAdopted(out)])
    left = json.loads((out / "tuning.json").read_text())
    assert left["complete"] is False and left["plan"]["memory_format"] == "channels_last"
    assert remembered()["plan"] == proven
    result = train(RECIPE, out=out, resume=True).result
    assert result["plan"]["memory_format"] == "channels_last" and result["plan"]["num_threads"] != 3
    assert remembered()["plan"] == proven


def test_a_run_without_time_for_any_candidate_does_not_say_that_an_earlier_one_found_nothing_faster() -> None:
    tuning = {"from_cache": True, "num_refused_before": 0}
    assert why_plain(tuning, []) == "nothing else could have paid for itself"
    assert "found nothing faster" in why_plain(tuning | {"num_refused_before": 2}, [])
