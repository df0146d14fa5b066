"""Steps whose model, loss and gradients are one compiled function: what a plain step does, or an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from upshift.training.config import OptimizerConfig, TrainingConfig
from upshift.training.optimizers import build_optimizer
from upshift.training.step import TrainingStep
from upshift.training.step_graph import StepGraphError
from upshift.tuning.plan import BASELINE, Plan

CPU = torch.device("cpu")
CONFIG = TrainingConfig(batch_size=16, epochs=1, optimizer=OptimizerConfig(name="sgd", lr=0.05, momentum=0.9))
STEP = replace(BASELINE, compile="step")


class Small(nn.Module):
    """Batch norm, dropout, a frozen part, tied weights and two inputs or one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 5)

    def forward(self, images: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        hidden = F.max_pool2d(self.norm(self.conv(images)).relu(), 2).mean((2, 3))
        if scale is not None:
            hidden = hidden * scale
        return self.head(self.drop(self.second(self.first(self.frozen(hidden)).relu())))


def make(model: nn.Module, plan: Plan, *, config: TrainingConfig = CONFIG) -> TrainingStep:
    optimizer = build_optimizer(model, config.optimizer, fused=plan.fused_optimizer)
    return TrainingStep(model, F.cross_entropy, optimizer, config, plan, CPU)


def seeded(factory: Callable[[], nn.Module] = Small) -> nn.Module:
    torch.manual_seed(0)
    return factory()


def batches(count: int, *, last: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(1)
    sizes = [16] * (count - 1) + [last]
    return [(torch.randn(size, 3, 8, 8, generator=drawn), torch.randint(5, (size,), generator=drawn)) for size in sizes]


def losses(step: TrainingStep, *stages: list[Any], begin: Callable[[int], Any] = lambda number: None) -> list[float]:
    """The losses of one stage of training after another; `begin` is told when each begins."""
    torch.manual_seed(2)
    found = []
    try:
        for number, inputs in enumerate(stages):
            begin(number)
            found += [step(step.prepare(batch), labels)[0].item() for batch, labels in inputs]
        return found
    finally:
        step.release()


@pytest.mark.parametrize(
    "changes",
    [{}, {"memory_format": "channels_last"}, {"micro_batch_size": 8}, {"fused_optimizer": False}],
    ids=lambda changes: next(iter(changes), "alone"),
)
def test_a_compiled_step_learns_as_a_plain_one(changes: dict[str, Any]) -> None:
    plain, compiled = seeded(), seeded()
    inputs = batches(6, last=7)  # the smaller last batch is made plainly
    expected = losses(make(plain, replace(BASELINE, **changes)), inputs)
    found = losses(make(compiled, replace(STEP, **changes)), inputs)
    assert found == pytest.approx(expected, rel=1e-4)
    for name, value in plain.state_dict().items():
        assert torch.allclose(compiled.state_dict()[name], value, atol=2e-3), name
    assert compiled.norm.num_batches_tracked == plain.norm.num_batches_tracked
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_inputs_may_be_a_mapping() -> None:
    inputs = [({"images": images, "scale": torch.full((len(images), 1), 0.5)}, labels) for images, labels in batches(3)]
    expected = losses(make(seeded(), BASELINE), inputs)
    assert losses(make(seeded(), STEP), inputs) == pytest.approx(expected, rel=1e-4)


def test_outputs_and_loss_belong_to_no_graph() -> None:
    step = make(seeded(), STEP)
    (images, labels), again = batches(2)
    step(images, labels)
    loss, outputs = step(*again)
    assert not loss.requires_grad and not outputs.requires_grad
    assert outputs.shape == (16, 5)
    step.release()


def test_gradients_can_be_asked_for_without_a_trace() -> None:
    model = seeded()
    step = make(model, STEP)
    (images, labels), again = batches(2)
    step(images, labels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = step.gradients(*again)
    assert len(gradients) == len([weight for weight in model.parameters() if weight.requires_grad])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    step.release()


class Unused(Small):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)


class Replacing(Small):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * images.mean()
        return super().forward(images, scale)


def hooked() -> nn.Module:
    model = Small()
    model.head.weight.register_hook(lambda gradient: gradient * 2)
    return model


class Breaking(Small):
    def forward(self, images: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        print(end="", flush=True) if images.sum().item() > 1e9 else None
        return super().forward(images, scale)


@pytest.mark.parametrize(
    ("factory", "says"),
    [(Unused, "no part in the loss"), (Replacing, "in the place of its buffers"), (hooked, "hook on its gradient")],
)
def test_what_one_function_would_do_otherwise_is_refused(factory: Callable[[], nn.Module], says: str) -> None:
    model = seeded(factory)
    step = make(model, STEP)
    first, second = batches(2)
    step(*first)  # the first one is plain
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(StepGraphError, match=says):
        step(*second)
    step.abandon()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    step.release()


def test_a_model_that_breaks_the_graph_is_an_error_and_no_slow_step() -> None:
    step = make(seeded(Breaking), STEP)
    first, second = batches(2)
    step(*first)
    with pytest.raises(Exception, match=r"(?i)item|graph|data.?dependent|unsupported"):
        step(*second)
    step.release()


def test_parameters_that_a_later_stage_trains_are_trained() -> None:
    plain, compiled = seeded(), seeded()
    for model, plan in ((plain, BASELINE), (compiled, STEP)):
        conv = model.get_submodule("conv")
        step = make(model, replace(plan, fused_optimizer=False))
        losses(step, batches(3), batches(3), begin=lambda number, conv=conv: conv.requires_grad_(number == 1))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(compiled.state_dict()["conv.weight"], seeded().state_dict()["conv.weight"])


class Sum(nn.Module):
    """Two parameters with the same gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(16, 5)), nn.Parameter(torch.zeros(16, 5))
        self.head = nn.Linear(5, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(images.mean((2, 3))[:, :1] + self.first + self.second)
        return outputs


def test_parameters_with_the_same_gradient_have_it_each_for_themselves() -> None:
    clipped = replace(CONFIG, clip_grad_norm=1e-3)  # in place, which two of them in one memory would have twice
    plain, compiled = seeded(Sum), seeded(Sum)
    for model, plan in ((plain, BASELINE), (compiled, STEP)):
        losses(make(model, plan, config=clipped), batches(3))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-4, atol=1e-8)


def test_a_hook_that_comes_later_is_refused_then() -> None:
    model = seeded()
    step = make(model, STEP)
    inputs = batches(3)

    def begin(number: int) -> None:
        if number == 1:
            model.get_parameter("head.weight").register_hook(lambda gradient: gradient * 2)

    with pytest.raises(StepGraphError, match="hook on its gradient"):
        losses(step, inputs[:2], inputs[2:], begin=begin)
