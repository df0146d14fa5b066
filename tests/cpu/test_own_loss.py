"""A recipe with a loss of its own: what is measured is called by what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import upshift
from upshift.workflows.train import TrainedRun


class Linear(nn.Sequential):
    """One layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))


def hundredfold(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return 100 * F.cross_entropy(logits, labels)


RECIPE = upshift.Recipe(
    name="hundredfold",
    model=Linear,
    loss=hundredfold,
    data=upshift.DataConfig(source="digits"),
    epochs=2,
    optimizer=upshift.OptimizerConfig(name="adamw", lr=0.01),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return upshift.train(RECIPE, plan="baseline", out=tmp_path_factory.mktemp("own") / "run")


def test_the_monitored_loss_is_that_of_the_recipe(trained: TrainedRun) -> None:
    lines = [json.loads(line) for line in (trained.path / "metrics.jsonl").read_text().splitlines()]
    last = [line["eval_loss"] for line in lines if "eval_loss" in line][-1]
    # Without a validation split, monitored on the test split, whose cross-entropy the result has.
    assert last == pytest.approx(100 * trained.result["metrics"]["cross_entropy"], rel=1e-5)


def test_cross_entropy_is_not_called_the_loss_of_such_a_run(trained: TrainedRun) -> None:
    evaluated = upshift.evaluate(trained.path)["metrics"]
    assert trained.result["metrics"]["loss"] == pytest.approx(100 * evaluated["cross_entropy"], rel=1e-5)
    assert "loss" not in evaluated, "for it the recipe's own code would have to be run"
    assert evaluated["cross_entropy"] == pytest.approx(trained.result["metrics"]["cross_entropy"], rel=1e-5)


def test_a_target_is_judged_on_the_loss_of_the_recipe(tmp_path: Path) -> None:
    overrides = ["target.loss=2"]  # reached at once by cross-entropy, never by a hundred times it
    result = upshift.train(RECIPE, overrides=overrides, plan="baseline", out=tmp_path / "run").result
    assert result["stopped"] == "completed"
