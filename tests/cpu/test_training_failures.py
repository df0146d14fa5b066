"""What a training survives: numbers that are not finite, too little memory, a last batch of one sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from upshift import DataConfig, OptimizerConfig, Recipe, train
from upshift.workflows.train import TrainedRun


class Linear(nn.Module):
    """One layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1))


def recipe(model: type[nn.Module], **changes: Any) -> Recipe:
    fields: dict[str, Any] = {"epochs": 1, "optimizer": OptimizerConfig(lr=0.1), **changes}
    return Recipe(name="tried", model=model, data=DataConfig(source="digits"), batch_size=64, **fields)


def run(tmp_path: Path, model: type[nn.Module], *overrides: str, plan: Any = "baseline", **changes: Any) -> TrainedRun:
    return train(recipe(model, **changes), overrides=overrides, out=tmp_path / "run", plan=plan)


# Evaluations that are not finite


class Infinite(Linear):
    """Its outputs are infinite wherever it does not learn."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * (1.0 if self.training else float("inf"))


@pytest.mark.parametrize("target", ['{"loss": 0.5}', '{"accuracy": 0.99}'])
def test_an_evaluation_whose_loss_is_not_finite_is_recorded_and_resumed(tmp_path: Path, target: str) -> None:
    trained = run(tmp_path, Infinite, f"target={target}")
    lines = [json.loads(line) for line in trained.folder.metrics.read_text().splitlines()]
    assert lines[-1]["eval_loss"] is None and trained.result["metrics"]["loss"] is None
    assert trained.result["stopped"] == "completed" and trained.folder.model.is_file()
    resumed = train(
        recipe(Infinite), overrides=[f"target={target}", "epochs=2"], out=tmp_path / "run", plan="baseline", resume=True
    )
    assert resumed.result["resumed_from_step"] == 23 and resumed.result["steps"] == 46
