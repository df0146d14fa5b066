"""Plans are read whole and for this machine, or refused with the reason."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from upshift.errors import PlanError
from upshift.training.step import Execution
from upshift.tuning.plan import BASELINE, Plan, load_plan, plan_from_json, read_plan
from upshift.workflows.tune import TunedPlan


def test_baseline_is_the_plain_loop() -> None:
    plan = load_plan("baseline")
    assert plan is BASELINE
    assert (plan.precision, plan.compile, plan.memory_format) == ("fp32", "none", "contiguous")
    assert plan.fused_optimizer


def test_a_plan_is_what_the_trainer_executes() -> None:
    execution: Execution = BASELINE  # the static check is the test: the protocol's fields are the plan's
    for name in (name for name in dir(Execution) if not name.startswith("_")):
        assert hasattr(execution, name)


def test_plan_survives_its_file(tmp_path: Path) -> None:
    plan = Plan(
        device="cpu",
        precision="bf16",
        memory_format="channels_last",
        compile="whole",
        compile_mode="max-autotune",
        fused_optimizer=False,
        data_path="worker",
        num_workers=2,
        num_threads=1,
        micro_batch_size=16,
        environment={"cpu": "a"},
        trials=({"name": "x", "ms": 1.5},),
    )
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert load_plan(str(tmp_path / "plan.json")) == plan
    assert load_plan(plan) is plan


def test_a_plan_prints_what_is_not_plain_and_no_evidence() -> None:
    assert repr(Plan()) == "Plan()"
    plan = Plan(precision="bf16", num_threads=2, fused_optimizer=None)
    assert repr(plan) == "Plan(precision='bf16', fused_optimizer=None, num_threads=2)" and eval(repr(plan)) == plan
    found = replace(plan, environment={"cpu": "a"}, trials=({"name": "x" * 9999},) * 20)
    assert repr(found) == repr(plan).replace(")", ", ...)")
    tuned = TunedPlan(found, 1.3149, ("a note",), {"plan": found.to_json()})
    assert str(tuned) == f"TunedPlan(plan={found!r}, speedup=1.31, ...)"


def test_fields_that_are_left_out_are_those_of_the_baseline(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"version": 1, "precision": "bf16"}')
    assert load_plan(tmp_path / "plan.json") == Plan(precision="bf16")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no version": ({"version": None}, "a plan's version must be a whole number; received None"),
    "a newer version": ({"version": 2}, "received version 2, which is of a newer upshift; hint: update upshift"),
    "a version before the first": ({"version": 0}, "must be of version 1 or later; received 0"),
    "a version of the wrong type": ({"version": True}, "a plan's version must be a whole number; received True"),
    "a version with a point": (
        {"version": 1.0},
        'must be a whole number; received 1.0; hint: for example "version": 1',
    ),
    "an unknown field": ({"precison": "bf16"}, "did you mean 'precision'"),
    "an unknown precision": ({"precision": "fp8"}, "one of fp32, tf32, bf16, fp16; received 'fp8'"),
    "a wrong type": ({"num_workers": "2"}, "plan.num_workers must be a whole number; received '2'"),
    "a flag as a number": ({"fused_optimizer": 1}, "true or false"),
    "threads as text": ({"num_threads": "many"}, f"for example plan.num_threads={os.cpu_count()},"),
    "workers as text": ({"num_workers": "many"}, "for example plan.num_workers=0"),
    "trials that are none": ({"trials": "many"}, 'for example plan.trials=[{"name": 1}]'),
    "no workers": ({"num_workers": -1}, "must not be negative"),
    "no threads": ({"num_threads": 0}, "plan.num_threads must be at least 1"),
    "an empty micro-batch": ({"micro_batch_size": 0}, "plan.micro_batch_size must be at least 1"),
    "workers that nothing uses": ({"num_workers": 2, "data_path": "resident"}, 'needs data_path "worker"'),
    "a mode that nothing uses": ({"compile_mode": "default"}, 'needs compile "whole"'),
    "a step of CUDA graphs": ({"compile": "step", "compile_mode": "reduce-overhead"}, "without CUDA graphs"),
    "tf32 on a CPU": ({"device": "cpu", "precision": "tf32"}, "needs a CUDA device"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_plan_that_cannot_be_is_refused_by_file_and_field(what: str, tmp_path: Path) -> None:
    change, message = BAD[what]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(BASELINE.to_json() | change))
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["num_threads", "num_workers"])
def test_a_plan_that_would_swamp_this_machine_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    most = 4 * (os.cpu_count() or 1)
    path.write_text(json.dumps({"version": 1, name: 999_999}))
    with pytest.raises(PlanError, match=rf"plan\.{name} must be at most 4 for each of .* received 999999; .* {most}$"):
        load_plan(path)
    too_many, most_plan = plan_from_json({"version": 1, name: most + 1}), plan_from_json({"version": 1, name: most})
    with pytest.raises(PlanError, match=name):
        too_many.apply(torch.nn.Linear(2, 2))
    assert load_plan(most_plan) is most_plan
    assert read_plan(path).to_json()[name] == 999_999, "another machine may have as many cores"


def test_the_example_for_threads_is_one_that_this_machine_has() -> None:
    with pytest.raises(PlanError, match=rf"received '2'; hint: for example plan.num_threads={os.cpu_count()},"):
        Plan(num_threads="2")  # type: ignore[arg-type]


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"version": 1, "num_threads": 1, "version": 1}')
    with pytest.raises(PlanError, match="the key 'version' is there twice"):
        load_plan(path)


def test_a_number_without_end_is_refused_in_words_of_json(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"version": 1, "num_threads": 1' + "0" * 5000 + "}")
    with pytest.raises(PlanError, match="a whole number of 5,001 digits, where at most 4,300 are read"):
        load_plan(path)


def test_a_name_that_is_no_plan_is_told_of_all_that_are() -> None:
    with pytest.raises(
        PlanError, match='"baseline", the path of a JSON file, or, in training, "auto"; received \'Auto\''
    ):
        load_plan("Auto")


@pytest.mark.parametrize("content", [b"", b'{"version": 1, "prec', b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_an_unreadable_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match="plan"):
        load_plan(path)


@pytest.mark.parametrize("reference", ["missing.json", "basline", ""])
def test_a_plan_that_is_not_there_is_refused(reference: str) -> None:
    with pytest.raises(PlanError):
        load_plan(reference)


def test_a_folder_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError):
        load_plan(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_plan_for_cuda_is_refused_without_it(tmp_path: Path) -> None:
    for plan in (Plan(device="cuda"), Plan(precision="tf32")):
        with pytest.raises(PlanError, match="cuda"):
            load_plan(plan)


@pytest.mark.skipif(torch.mps.is_available(), reason="this machine has MPS")
def test_a_plan_for_mps_is_refused_without_it() -> None:
    with pytest.raises(PlanError, match="device mps"):
        load_plan(Plan(device="mps"))
