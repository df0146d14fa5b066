"""How a model is executed can change between two steps, and nothing else does."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from live_trainings import CPU
from torch import nn

from upshift.training.config import OptimizerConfig, TrainingConfig
from upshift.training.loss import CrossEntropy
from upshift.training.optimizers import build_optimizer
from upshift.training.step import TrainingStep
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.whole_plans import differences

CLASSES = 5
REGIONAL = Plan(compile="regional")
RECOMPUTED = Plan(activation_checkpointing=True)


def changes(plan: Plan) -> str:
    return " ".join(f"{name}={value}" for name, value in differences(plan, BASELINE).items())


class Block(nn.Module):
    """Convolution, batch norm and dropout beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        # A bias before batch norm has a gradient of round-off alone, which Adam makes as large as any other.
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout2d(0.2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.dropout(torch.relu(self.norm(self.conv(features))))


class Residual(nn.Module):
    """Two blocks of a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 1)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class Steps:
    """Training steps on the same random batches each time."""

    def __init__(self, optimizer: OptimizerConfig | None = None, plan: Plan = BASELINE, *, model: Any = None) -> None:
        torch.manual_seed(0)
        self.model = model if model is not None else Residual()
        optimizer = optimizer or OptimizerConfig(lr=0.05, momentum=0.9)
        config = TrainingConfig(batch_size=16, optimizer=optimizer)
        self.optimizer = build_optimizer(self.model, optimizer, fused=plan.fused_optimizer)
        self.step = TrainingStep(self.model, CrossEntropy(), self.optimizer, config, plan, CPU)
        self.generator = torch.Generator().manual_seed(1)

    def batch(self, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.randn(size, 4, 6, 6, generator=self.generator)
        return inputs, torch.randint(0, CLASSES, (size,), generator=self.generator)

    def make(self, count: int, size: int = 16) -> list[float]:
        losses = []
        for _ in range(count):
            inputs, labels = self.batch(size)
            loss, _ = self.step(self.step.prepare(inputs), labels)
            losses.append(loss.item())
        return losses

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights, buffers and the optimizer's state, in one memory layout."""
        found = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        found |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state()[0].items()}
        return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], rtol=1e-3, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


# Switching


@pytest.mark.parametrize(
    "other",
    [
        Plan(memory_format="channels_last"),
        Plan(fused_optimizer=False),
        Plan(num_threads=1),
        Plan(micro_batch_size=8),
        Plan(precision="bf16"),
        Plan(compile="whole"),
        REGIONAL,
        RECOMPUTED,
    ],
    ids=changes,
)
def test_switching_to_and_fro_changes_no_bit(other: Plan) -> None:
    steps = Steps()
    steps.make(2)
    before, strides = steps.tensors(), [parameter.stride() for parameter in steps.model.parameters()]
    parameters = list(steps.model.parameters())
    for _ in range(3):
        steps.step.execute(other)
        assert_identical(steps.tensors(), before)
        steps.step.execute(BASELINE)
    assert_identical(steps.tensors(), before)
    assert [parameter.stride() for parameter in steps.model.parameters()] == strides
    assert all(one is two for one, two in zip(steps.model.parameters(), parameters, strict=True))


OPTIMIZERS = {
    "sgd": OptimizerConfig(lr=0.05),
    "sgd with momentum": OptimizerConfig(lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd with nesterov": OptimizerConfig(lr=0.05, momentum=0.9, nesterov=True),
    "adam": OptimizerConfig(name="adam", lr=0.01, weight_decay=1e-3),
    "adam with amsgrad": OptimizerConfig(name="adam", lr=0.01, options={"amsgrad": True}),
    "adamw": OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("starts_fused", [False, True])
def test_a_fused_optimizer_that_comes_and_goes_learns_the_same(name: str, starts_fused: bool) -> None:
    kept, switched = (Steps(OPTIMIZERS[name], Plan(fused_optimizer=starts_fused)) for _ in range(2))
    torch.manual_seed(2)
    expected = kept.make(12)
    torch.manual_seed(2)
    losses = switched.make(4)
    switched.step.execute(Plan(fused_optimizer=not starts_fused))
    losses += switched.make(4)
    switched.step.execute(Plan(fused_optimizer=starts_fused))
    losses += switched.make(4)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert_close(switched.tensors(), kept.tensors())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_layout_that_comes_and_goes_learns_the_same(name: str, fused: bool) -> None:
    kept, switched = (Steps(OPTIMIZERS[name], Plan(fused_optimizer=fused)) for _ in range(2))
    torch.manual_seed(2)
    expected = kept.make(12)
    torch.manual_seed(2)
    losses = switched.make(4)
    switched.step.execute(Plan(fused_optimizer=fused, memory_format="channels_last"))
    losses += switched.make(4)
    switched.step.execute(Plan(fused_optimizer=fused))
    losses += switched.make(4)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert_close(switched.tensors(), kept.tensors())


def test_threads_are_the_plans_and_then_torchs_own_again() -> None:
    before = torch.get_num_threads()
    steps = Steps()
    try:
        steps.step.execute(Plan(num_threads=before + 1))
        assert torch.get_num_threads() == before + 1
        steps.make(1)
        steps.step.execute(BASELINE)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


# Blocks


def forwards(model: nn.Module) -> list[Any]:
    return [module.__dict__.get("forward") for module in model.modules()]


@pytest.mark.parametrize("plan", [RECOMPUTED, pytest.param(REGIONAL, marks=pytest.mark.slow)], ids=changes)
def test_blocks_are_called_as_before_once_a_step_is_made(plan: Plan) -> None:
    steps = Steps()

    def doubled(self: Block, features: torch.Tensor) -> torch.Tensor:
        return 2 * Block.forward(self, features)

    first = steps.model.blocks[0]
    first.forward = types.MethodType(doubled, first)
    kept = Steps(model=copy.deepcopy(steps.model))
    kept.model.blocks[0].forward = types.MethodType(doubled, kept.model.blocks[0])
    before = forwards(steps.model)
    steps.step.execute(plan)
    torch.manual_seed(2)
    losses = steps.make(3)
    assert forwards(steps.model) == before
    torch.manual_seed(2)
    assert losses == pytest.approx(kept.make(3), rel=1e-4), "a block's own forward is what is executed"


def test_blocks_are_called_as_before_once_a_step_has_failed() -> None:
    steps = Steps()
    steps.step.execute(RECOMPUTED)
    with pytest.raises(RuntimeError):
        steps.step(torch.randn(16, 3, 6, 6), torch.zeros(16, dtype=torch.int64))
    assert forwards(steps.model) == [None] * len(forwards(steps.model))
    steps.step.abandon()
    steps.make(1)


def test_recomputed_activations_learn_the_same_batch_norm_too() -> None:
    plain, recomputed = Steps(), Steps(plan=RECOMPUTED)
    torch.manual_seed(2)
    expected = plain.make(4)
    torch.manual_seed(2)
    assert recomputed.make(4) == pytest.approx(expected, rel=1e-5)
    assert_close(recomputed.tensors(), plain.tensors())


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [REGIONAL, Plan(compile="whole"), Plan(compile="regional", activation_checkpointing=True),
     Plan(compile="whole", activation_checkpointing=True)],
    ids=changes,
)  # fmt: skip
def test_compiled_steps_learn_the_same(plan: Plan) -> None:
    plain, compiled = Steps(), Steps()
    torch.manual_seed(2)
    expected = plain.make(6) + plain.make(1, size=7) + plain.make(2)
    torch.manual_seed(2)
    losses = compiled.make(2)
    compiled.step.execute(plan)
    losses += compiled.make(2)
    compiled.step.execute(BASELINE)
    losses += compiled.make(1)
    compiled.step.execute(plan)
    losses += compiled.make(1) + compiled.make(1, size=7) + compiled.make(2)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert_close(compiled.tensors(), plain.tensors())
    assert not any("_orig_mod" in name for name in compiled.model.state_dict())


# Asking for gradients, and steps that are not made


class Counting(nn.Module):
    """Puts new tensors in the place of its buffers, and draws random numbers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4 * 36, CLASSES)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("mean", torch.zeros(CLASSES))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.layer(self.dropout(images.flatten(1)))
        self.mean = 0.9 * self.mean + 0.1 * logits.detach().mean(0)
        self.count += 1
        return logits - self.mean


@pytest.mark.parametrize("make", [Residual, Counting])
def test_asking_for_gradients_changes_nothing(make: Callable[[], nn.Module]) -> None:
    steps = Steps(model=make())
    steps.make(3)
    before, random_state = steps.tensors(), torch.get_rng_state()
    inputs, labels = steps.batch()
    first, second = steps.step.gradients(inputs, labels), steps.step.gradients(inputs, labels)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert_identical(steps.tensors(), before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in steps.model.parameters())


def test_gradients_are_those_that_the_next_step_uses() -> None:
    steps = Steps(OptimizerConfig(lr=1.0))
    inputs, labels = steps.batch()
    gradients = steps.step.gradients(inputs, labels)
    before = [parameter.detach().clone() for parameter in steps.model.parameters()]
    steps.step(inputs, labels)
    for weight, old, gradient in zip(steps.model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(weight.detach(), old - gradient)


def test_a_skipped_step_that_is_made_again_is_not_counted() -> None:
    steps = Steps()
    inputs, labels = steps.batch()
    before = steps.tensors()
    steps.step(torch.full_like(inputs, float("nan")), labels)
    assert steps.step.skipped and steps.step.num_skipped == 1
    steps.step.forget_skip()
    assert not steps.step.skipped and steps.step.num_skipped == steps.step.num_skipped_in_a_row == 0
    assert_identical(steps.tensors(), before)
    steps.step.forget_skip()
    assert steps.step.num_skipped == 0
    steps.step(inputs, labels)
    assert not steps.step.skipped


def test_abandoning_without_a_step_under_way_takes_nothing_back() -> None:
    steps = Steps()
    steps.make(2)
    before = steps.tensors()
    steps.step.abandon()
    assert_identical(steps.tensors(), before)
