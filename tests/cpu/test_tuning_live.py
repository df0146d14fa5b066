"""Runs that tune themselves: what they record, what they remember, and what a bad memory does to them: nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from layered_recipe import RECIPE, Layered
from live_trainings import assert_same_losses
from safetensors.torch import load_file

from simulated_clock import simulated_clock
from upshift import Plan, train, tune
from upshift.core.cache import TuningCache
from upshift.core.environment import describe
from upshift.core.files import cache_folder, write_bytes
from upshift.errors import StorageError
from upshift.reports.tuned import adopted_names
from upshift.tuning.plan import BASELINE, load_plan

pytestmark = pytest.mark.usefixtures("simulated_clock", "one_core")

AUGMENTED = ("augment.crop_padding=1", "augment.rotation_degrees=10")
QUICK = ("model_args.seconds=0.0", "epochs=6")


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The number of threads is nothing to try."""
    monkeypatch.setattr("upshift.workflows.live_tuning.num_usable_cores", lambda: 1)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def no_memory() -> Iterator[Path]:
    """The tuner's cache, empty before and after."""
    folder = cache_folder() / "tuning-v1"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.unlink(missing_ok=True)


def run(out: Path, *overrides: str, plan: Any = "auto", **arguments: Any) -> dict[str, Any]:
    return train(RECIPE, overrides=overrides, out=out, plan=plan, **arguments).result


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def trials(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {trial["name"]: trial for trial in result["plan"]["trials"]}


# Records


def test_a_run_records_what_tuning_came_to(tmp_path: Path, no_memory: Path) -> None:
    out = tmp_path / "tuned"
    result = run(out)
    trial = trials(result)["channels_last"]
    assert trial["verdict"] == "adopted"
    low, high = trial["speedup_interval"]
    assert 1.0 < low <= trial["speedup"] <= high and trial["gradient_error"] < 1e-3
    assert result["plan"]["memory_format"] == "channels_last"
    tuning = result["tuning"]
    assert tuning["complete"] is True and tuning["from_cache"] is False
    assert tuning["net_seconds"] == pytest.approx(tuning["saved_seconds"] - tuning["seconds"])
    assert tuning["step_seconds"] < tuning["first_step_seconds"]
    assert tuning["last_split"]["seconds"] < tuning["split"]["seconds"]
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert [line.pop("of") for line in lines] == ["training"] * len(lines)
    assert lines == result["plan"]["trials"] == json.loads((out / "plan.json").read_text())["trials"]
    assert load_plan(out / "plan.json").memory_format == "channels_last"
    assert result == json.loads((out / "result.json").read_text())
    assert result["command"][-2:] == ["--plan", "auto"] or result["command"] == []


def test_a_run_that_tuned_learns_what_one_that_did_not_learns(tmp_path: Path, no_memory: Path) -> None:
    found = run(tmp_path / "tuned", *AUGMENTED)
    plain = run(tmp_path / "plain", *AUGMENTED, "model_args.seconds=0.0", plan="baseline")
    assert trials(found)["channels_last"]["verdict"] == "adopted" and plain["tuning"] is None
    assert_same_losses(losses(tmp_path / "tuned"), losses(tmp_path / "plain"))
    assert found["steps"] == plain["steps"]
    assert list(load_file(tmp_path / "tuned/model.safetensors")) == list(
        load_file(tmp_path / "plain/model.safetensors")
    )


def test_settings_of_the_process_are_those_from_before(tmp_path: Path, no_memory: Path) -> None:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        run(tmp_path / "run", *QUICK, "epochs=1", plan=Plan(num_threads=threads + 1))
        assert torch.get_num_threads() == threads
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)


# Memory


def test_a_second_run_begins_with_the_plan_of_the_first(tmp_path: Path, no_memory: Path) -> None:
    run(tmp_path / "first")
    second = run(tmp_path / "second")
    assert second["tuning"]["from_cache"] is True
    assert second["plan"]["memory_format"] == "channels_last"
    (trial,) = second["plan"]["trials"]
    assert "known from an earlier run" in trial["name"] and trial["verdict"] == "adopted"
    assert_same_losses(losses(tmp_path / "second"), losses(tmp_path / "first"))


def test_trials_are_written_when_the_plan_changes_and_at_the_end_alone(
    tmp_path: Path, no_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def write(path: Path, data: bytes) -> None:
        written.append(path.name)
        write_bytes(path, data)

    monkeypatch.setattr("upshift.workflows.live_tuning.write_bytes", write)
    result = run(tmp_path / "short", *QUICK, "epochs=1")
    assert {trial["verdict"] for trial in result["plan"]["trials"]} <= {"not tried"} and len(written) == 1
    written.clear()
    found = run(tmp_path / "tuned")
    assert trials(found)["channels_last"]["verdict"] == "adopted"
    assert len(written) <= 4, "at the adoption, at pauses after which there is more to tell, and at the end"


def test_the_trials_of_a_run_are_one_file_of_the_memory_and_a_known_plan_adds_none(
    tmp_path: Path, no_memory: Path
) -> None:
    run(tmp_path / "first")
    (path,) = no_memory.glob("*/trials/*.json")
    remembered = path.read_bytes()
    assert json.loads(remembered)["content"][0]["changes"] == {"memory_format": "channels_last"}
    second = run(tmp_path / "second")
    assert second["tuning"]["from_cache"] is True
    assert list(no_memory.glob("*/trials/*.json")) == [path] and path.read_bytes() == remembered


def test_a_run_folder_that_cannot_be_written_for_a_while_does_not_end_the_training(
    tmp_path: Path, no_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full = [True]

    def write(path: Path, data: bytes) -> None:
        if is_full.pop() if is_full else False:
            raise StorageError("a file must be writable", received="No space left on device", hint="make room")
        write_bytes(path, data)

    monkeypatch.setattr("upshift.workflows.live_tuning.write_bytes", write)
    result = run(tmp_path / "run")
    assert not is_full and result["plan"]["memory_format"] == "channels_last"
    assert any("could not be written into the run folder: No space" in note for note in result["notes"])


def test_another_job_does_not_begin_with_it(tmp_path: Path, no_memory: Path) -> None:
    run(tmp_path / "first", *QUICK)
    other = run(tmp_path / "other", *QUICK, "batch_size=32")
    assert other["tuning"]["from_cache"] is False


def edited(no_memory: Path, **changes: Any) -> None:
    """Change the remembered plan, as someone would who knows its format."""
    (path,) = no_memory.glob("*/plans/*.json")
    envelope = json.loads(path.read_text())
    TuningCache().save_plan(envelope["environment"], envelope["subject"], envelope["content"] | changes)


def test_a_run_whose_steps_are_slower_than_remembered_tunes_again(tmp_path: Path, no_memory: Path) -> None:
    run(tmp_path / "first", *QUICK)
    edited(no_memory, plan=Plan(memory_format="channels_last").to_json(), step_seconds=1e-5, speedup=3.0)
    second = run(tmp_path / "second")
    assert any("slower than when the plan was found" in note for note in second["notes"])
    assert second["plan"]["memory_format"] == "channels_last"
    trial = next(trial for trial in second["plan"]["trials"] if trial["verdict"] == "adopted")
    assert trial["num_rounds"] > 0
    (path,) = no_memory.glob("*/plans/*.json")
    remembered = json.loads(path.read_text())["content"]
    assert remembered["step_seconds"] == second["tuning"]["step_seconds"], "in the place of what was remembered"


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document that a run of the quick job leaves, with its keys."""
    folder = cache_folder() / "tuning-v1"
    shutil.rmtree(folder, ignore_errors=True)
    with simulated_clock():
        run(tmp_path_factory.mktemp("remembered") / "run", *QUICK)
    (path,) = folder.glob("*/plans/*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


GOOD = {"step_seconds": 1.0, "data_seconds": 0.0, "speedup": 2.0, "build_seconds": 0.0}
BAD_DOCUMENTS: dict[str, dict[str, Any]] = {
    "empty": {},
    "no plan": GOOD,
    "a plan that is none": GOOD | {"plan": [1, 2]},
    "an unknown field": GOOD | {"plan": BASELINE.to_json() | {"speed": "ludicrous"}},
    "a field of another type": GOOD | {"plan": BASELINE.to_json() | {"num_threads": "two"}},
    "a newer version": GOOD | {"plan": BASELINE.to_json() | {"version": 99, "memory_format": "channels_last"}},
    "for another device": GOOD | {"plan": BASELINE.to_json() | {"device": "cuda", "memory_format": "channels_last"}},
    "for another precision": GOOD | {"plan": BASELINE.to_json() | {"precision": "tf32"}},
    "nothing where seconds should be": GOOD | {"plan": BASELINE.to_json(), "step_seconds": None},
    "text where seconds should be": GOOD | {"plan": BASELINE.to_json(), "step_seconds": "nan"},
    "seconds below 0": GOOD | {"plan": BASELINE.to_json(), "step_seconds": -1.0},
    "a huge number": GOOD | {"plan": BASELINE.to_json(), "speedup": 10**400},
    "a speedup of 0": GOOD | {"plan": BASELINE.to_json(), "speedup": 0},
    "building below 0": GOOD | {"plan": BASELINE.to_json(), "build_seconds": -5.0},
    "trials that are none": GOOD | {"plan": BASELINE.to_json() | {"trials": ["adopted", 3]}},
}


@pytest.mark.parametrize("what", BAD_DOCUMENTS)
def test_a_memory_of_nonsense_is_ignored(
    what: str, remembered: dict[str, Any], tmp_path: Path, no_memory: Path
) -> None:
    if torch.cuda.is_available() and what.startswith("for another"):
        pytest.skip("this machine has CUDA")
    cache = TuningCache()
    cache.save_plan(remembered["environment"], remembered["subject"], BAD_DOCUMENTS[what])
    cache.add_trials(
        remembered["environment"],
        [{"compile": "whole", "build_seconds": "x", "num_operators": -1}, {"compile": 3}, {}],
    )
    result = run(tmp_path / "run", *QUICK)
    assert result["tuning"]["from_cache"] is False and result["steps"] == 138


RAW = {
    "empty": b"",
    "cut short": b'{"version": 1, "ki',
    "not a number": b'{"version": 1, "content": {"step_seconds": NaN}}',
    "no object": b"[1]",
    "no text": b"\xff\xfe\x00",
    "of another job": b'{"version": 1, "kind": "plans", "environment": "x", "subject": "y", "content": {}}',
}


@pytest.mark.parametrize("what", RAW)
def test_a_damaged_memory_is_ignored_with_a_note(
    what: str, remembered: dict[str, Any], tmp_path: Path, no_memory: Path
) -> None:
    path = no_memory / remembered["environment"] / "plans" / f"{remembered['subject']}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(RAW[what])
    result = run(tmp_path / "run", *QUICK)
    assert result["tuning"]["from_cache"] is False and result["steps"] == 138
    assert any("damaged" in note for note in result["notes"])


def test_a_file_in_the_place_of_the_memory_is_noted(tmp_path: Path, no_memory: Path) -> None:
    no_memory.write_text("not a folder")
    result = run(tmp_path / "run", *QUICK)
    assert result["steps"] == 138
    assert any("could not be written" in note for note in result["notes"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_memory_that_cannot_be_written_is_noted(tmp_path: Path, no_memory: Path) -> None:
    no_memory.mkdir()
    no_memory.chmod(0o555)
    result = run(tmp_path / "run", *QUICK)
    assert result["steps"] == 138
    assert any("could not be written" in note for note in result["notes"])


def test_what_a_budget_left_untried_is_tried_by_the_next_training(
    tmp_path: Path, no_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upshift.workflows.live_tuning.fast_dtypes", lambda limits: ())
    tuned = tune(RECIPE, budget_seconds=1e-6)
    assert tuned.plan.memory_format == "contiguous"
    assert "not tried" in {trial["verdict"] for trial in tuned.plan.trials if trial["name"] == "channels_last"}
    assert tuned.result["tuning"]["complete"] is False
    (path,) = no_memory.glob("*/plans/*.json")
    remembered = json.loads(path.read_text())["content"]
    assert remembered["complete"] is False and remembered["untried_seconds"] is None
    assert run(tmp_path / "run")["plan"]["memory_format"] == "channels_last"


# A plan that loses a part


class FailingLate(Layered):
    """Fails in channels last, some steps before the end of twenty epochs."""

    num_steps = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training
        if self.training and self.num_steps > 455 and not self.conv.weight.is_contiguous():
            raise RuntimeError("no kernel")
        return super().forward(images)


def test_a_run_whose_plan_lost_a_part_near_its_end_tells_of_what_is_left(tmp_path: Path, no_memory: Path) -> None:
    recipe = replace(RECIPE, model=FailingLate)
    train(recipe, overrides=QUICK, out=tmp_path / "first")
    both = Plan(memory_format="channels_last", fused_optimizer=False)
    edited(no_memory, plan=both.to_json(), step_seconds=0.002, speedup=3.0, complete=True, untried_seconds=None)
    result = train(recipe, out=tmp_path / "second").result
    assert result["plan"]["memory_format"] == "contiguous" and result["plan"]["fused_optimizer"] is False
    assert adopted_names(result["plan"]["trials"]) == ["fused_optimizer=False"]
    assert trials(result)["memory_format=channels_last"]["verdict"] == "demoted"
    tuning = result["tuning"]
    assert [tuning[name] for name in ("step_seconds", "limit", "last_split")] == [None] * 3, "none was timed"
    assert any("memory_format=channels_last was dropped from the plan" in note for note in result["notes"])


# Plans that are given


class Raising(Layered):
    """Fails to be trained in channels last."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and not self.conv.weight.is_contiguous():
            raise RuntimeError("no kernel")
        return super().forward(images)


def test_a_given_plan_that_fails_is_dropped_for_the_plain_one(tmp_path: Path, no_memory: Path) -> None:
    given = Plan(memory_format="channels_last")
    result = train(replace(RECIPE, model=Raising), overrides=("epochs=1",), out=tmp_path / "run", plan=given).result
    assert result["plan"]["memory_format"] == "contiguous" and result["steps"] == 23
    assert load_plan(tmp_path / "run/plan.json").memory_format == "contiguous"
    assert any("dropped" in note and "no kernel" in note for note in result["notes"])


# Plans from elsewhere


def elsewhere(path: Path, environment: Any, **fields: Any) -> Path:
    """A plan file that was measured on another machine."""
    path.write_text(json.dumps(BASELINE.to_json() | fields | {"environment": environment}))
    return path


@pytest.mark.parametrize("in_channels_last", [False, True])
def test_a_plan_of_another_machine_is_raced_and_not_trusted(
    in_channels_last: bool, tmp_path: Path, no_memory: Path
) -> None:
    plan = elsewhere(tmp_path / "plan.json", {"cpu": "another one"}, memory_format="channels_last")
    sleeps = f"model_args.in_channels_last={str(in_channels_last).lower()}"
    result = run(tmp_path / "run", sleeps, plan=plan)
    verdict = "refused" if in_channels_last else "adopted"
    assert trials(result)["the plan handed over"]["verdict"] == verdict
    assert result["plan"]["memory_format"] == ("contiguous" if in_channels_last else "channels_last")
    assert any("it was measured on another machine" in note and verdict in note for note in result["notes"])
    assert result["plan"]["environment"]["cpu"] != "another one"


@pytest.mark.parametrize("environment", [{"cpu": None}, {"packages": [1, {"a": []}]}, {"memory_bytes": "much"}])
def test_a_plan_with_an_environment_of_nonsense_is_raced(environment: Any, tmp_path: Path, no_memory: Path) -> None:
    plan = elsewhere(tmp_path / "plan.json", environment, memory_format="channels_last")
    result = run(tmp_path / "run", *QUICK, plan=plan)
    assert "the plan handed over" in trials(result) and result["steps"] == 138


def test_a_plan_without_an_environment_is_the_users_word(tmp_path: Path, no_memory: Path) -> None:
    plan = elsewhere(tmp_path / "plan.json", {}, memory_format="channels_last")
    result = run(tmp_path / "run", *QUICK, "epochs=1", plan=plan)
    assert result["tuning"] is None and result["plan"]["memory_format"] == "channels_last"


def test_a_plan_of_this_machine_is_applied_as_it_is(tmp_path: Path, no_memory: Path) -> None:
    plan = elsewhere(tmp_path / "plan.json", describe(), memory_format="channels_last")
    result = run(tmp_path / "run", *QUICK, "epochs=1", plan=plan)
    assert result["tuning"] is None and result["plan"]["memory_format"] == "channels_last"


# Exact resume of a plan


@pytest.mark.parametrize(
    "optimizer",
    ['{"name": "sgd", "lr": 0.02, "momentum": 0.9}', '{"name": "adamw", "lr": 0.01, "momentum": 0.0}'],
    ids=["momentum", "adamw"],
)
def test_a_run_in_channels_last_is_resumed_bitwise(optimizer: str, tmp_path: Path, no_memory: Path) -> None:
    plan = Plan(memory_format="channels_last", fused_optimizer=True)
    options = ("model_args.seconds=0.0", f"optimizer={optimizer}", *AUGMENTED)
    run(tmp_path / "whole", *options, "max_steps=60", plan=plan)
    run(tmp_path / "parts", *options, "max_steps=31", plan=plan)
    second = run(tmp_path / "parts", *options, "max_steps=60", plan=plan, resume=True)
    assert second["resumed_from_step"] == 31
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
