"""Whole trainings whose steps are compiled as one graph with their gradients, by the compiler itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import upshift
from upshift.core.malloc import keeps_freed_memory

pytestmark = pytest.mark.slow
PLAN = upshift.Plan(compile="step", keep_freed_memory=True, num_threads=1)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_recipe_learns_the_same_by_one_graph(tmp_path: Path) -> None:
    plain = upshift.train("digits", out=tmp_path / "plain", plan="baseline", overrides=["epochs=2"])
    found = upshift.train("digits", out=tmp_path / "step", plan=PLAN, overrides=["epochs=2"])
    assert losses(tmp_path / "step") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)
    assert found.result["plan"]["compile"] == "step", found.result["notes"]
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("step", "plain"))
    assert list(weights) == list(expected)
    assert plain.result["metrics"].keys() == found.result["metrics"].keys()
    assert not keeps_freed_memory(), "the process has its own setting back"


def test_the_tuner_checks_and_races_it(tmp_path: Path) -> None:
    tuned = upshift.tune("digits", out=tmp_path / "plan.json", budget_seconds=60.0)
    trial = next(trial for trial in tuned.plan.trials if trial["name"] == "compiled step")
    assert trial["verdict"] in ("adopted", "refused"), trial["reason"]  # whichever is faster here
    assert trial["gradient_error"] < 0.2 * trial["gradient_noise"]  # of a precision that was adopted before, too
    assert trial["build_seconds"] > 0.0
    assert trial["details"]["num_graph_breaks"] == 0
