"""Where memory binds: what is taken for that, and how many samples are then taken at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upshift.training.config import TrainingConfig
from upshift.training.loss import CrossEntropy
from upshift.training.optimizers import build_optimizer
from upshift.training.step import TrainingStep
from upshift.tuning.memory import StepMemory, step_memory
from upshift.tuning.plan import BASELINE, Plan

CPU, BATCH_SIZE, WIDTH, GIB = torch.device("cpu"), 64, 16, 2**30


class Block(nn.Module):
    """One of several, so that it is recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.dropout(torch.tanh(self.linear(features)))


# What is taken for it


def test_memory_binds_where_a_batch_was_split_or_a_step_leaves_little() -> None:
    assert StepMemory(num_parts=2).binds
    assert not StepMemory().binds, "nothing is known"
    assert not StepMemory(saved_bytes=GIB, free_bytes=3 * GIB, total_bytes=8 * GIB).binds
    assert StepMemory(saved_bytes=GIB, free_bytes=int(1.7 * GIB), total_bytes=8 * GIB).binds


def test_the_memory_of_a_cpu_is_what_this_process_may_use() -> None:
    found = step_memory(CPU, num_parts=1, saved_bytes=GIB)
    assert 0 < found.free_bytes <= found.total_bytes


def test_nobody_asks_what_is_free_where_nothing_is_known_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upshift.tuning.memory.available_memory_bytes", lambda: pytest.fail("was asked"))
    assert step_memory(CPU, num_parts=2, saved_bytes=0).binds and not step_memory(CPU, num_parts=1, saved_bytes=0).binds


# Micro-batches with and without recomputing


def step(plan: Plan) -> TrainingStep:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), nn.Linear(WIDTH, 5))
    config = TrainingConfig(batch_size=BATCH_SIZE)
    return TrainingStep(model, CrossEntropy(), build_optimizer(model, config.optimizer, fused=True), config, plan, CPU)


def test_recomputing_may_take_more_samples_at_a_time_than_fit_without() -> None:
    made = step(BASELINE)
    made.halve_micro_batch()
    assert made.micro_batch_size == made.largest_batch == BATCH_SIZE // 2
    made.execute(Plan(activation_checkpointing=True))
    assert made.micro_batch_size == BATCH_SIZE and made.largest_batch == BATCH_SIZE // 2
    made.execute(BASELINE)
    assert made.micro_batch_size == BATCH_SIZE // 2


def test_what_does_not_fit_with_recomputing_does_not_fit_without() -> None:
    made = step(Plan(activation_checkpointing=True))
    made.halve_micro_batch()
    for plan in (BASELINE, Plan(activation_checkpointing=True)):
        made.execute(plan)
        assert made.micro_batch_size == BATCH_SIZE // 2


def test_recomputed_gradients_are_those_of_kept_activations() -> None:
    made = step(BASELINE)
    inputs, labels = torch.randn(BATCH_SIZE, WIDTH), torch.arange(BATCH_SIZE) % 5
    kept = made.gradients(inputs, labels)
    made.execute(Plan(activation_checkpointing=True))
    for one, other in zip(made.gradients(inputs, labels), kept, strict=True):
        torch.testing.assert_close(one, other)
