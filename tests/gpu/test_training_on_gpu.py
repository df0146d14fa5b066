"""Training on a CUDA device: the paths that the CPU tests cannot reach. Skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from upshift import DataConfig, OptimizerConfig, Plan, Recipe, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Network(nn.Module):
    """Outputs become NaN every fifth training step if `poison`."""

    def __init__(self, num_classes: int = 10, poison: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(512, num_classes)
        self.poison, self.calls = poison, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            if self.poison and self.calls % 5 == 0:
                images = images * float("nan")
        return self.head(self.features(images).flatten(1))


def run(tmp_path: Path, name: str, plan: Plan, **model_args: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    recipe = Recipe(
        name="gpu",
        model=Network,
        model_args=model_args,
        data=DataConfig(source="digits"),
        epochs=3,
        log_every=1,
        optimizer=OptimizerConfig(name="adamw", lr=0.01),
    )
    trained = train(recipe, plan=plan, out=tmp_path / name)
    lines = [json.loads(line) for line in trained.folder.metrics.read_text().splitlines()]
    return trained.result, lines


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_each_precision_learns(tmp_path: Path, precision: Any) -> None:
    result, _ = run(tmp_path, "run", Plan(device="cuda", precision=precision))
    assert result["metrics"]["accuracy"] > 0.9


def test_the_losses_are_those_of_the_cpu(tmp_path: Path) -> None:
    _, on_cpu = run(tmp_path, "cpu", Plan(device="cpu"))
    _, on_gpu = run(tmp_path, "gpu", Plan(device="cuda"))
    expected = [line["loss"] for line in on_cpu[:10]]
    assert [line["loss"] for line in on_gpu[:10]] == pytest.approx(expected, rel=1e-2)


def test_fused_optimizers_skip_steps_that_are_not_finite_without_asking_the_host(tmp_path: Path) -> None:
    result, lines = run(tmp_path, "run", Plan(device="cuda"), poison=True)
    skipped = [line["step"] for line in lines if line["loss"] is None]
    assert skipped == list(range(5, 70, 5)) and result["num_skipped_steps"] == len(skipped)
    assert result["metrics"]["accuracy"] > 0.8


@pytest.mark.slow
def test_cuda_graphs_by_compile_mode_learn(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "run", Plan(device="cuda", compile="whole", compile_mode="reduce-overhead"))
    assert result["metrics"]["accuracy"] > 0.9
