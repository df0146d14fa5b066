"""Gradients that are the same but for round-off pass; all else is caught, on real models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from upshift.training.config import OptimizerConfig, TrainingConfig
from upshift.training.loss import CrossEntropy
from upshift.training.optimizers import build_optimizer
from upshift.training.step import TrainingStep
from upshift.tuning.fidelity import NOISE_SHARE, HonestDeviation, Reference
from upshift.tuning.plan import Plan

BATCH, CLASSES = 32, 10


class Deep(nn.Module):
    """Convolutions, batch norm and dropout, deep enough to amplify round-off."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1)]
        for _ in range(6):
            layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


class Trained:
    """A model some steps into its training, and a batch."""

    def __init__(self, plan: Plan | None = None, seed: int = 0, batch: int = BATCH) -> None:
        torch.manual_seed(seed)
        self.model = Deep()
        config = TrainingConfig(batch_size=batch, optimizer=OptimizerConfig(lr=0.05, momentum=0.9))
        optimizer = build_optimizer(self.model, config.optimizer, fused=True)
        self.step = TrainingStep(self.model, CrossEntropy(), optimizer, config, plan or Plan(), torch.device("cpu"))
        for _ in range(3):
            self.step(torch.randn(batch, 3, 8, 8), torch.randint(0, CLASSES, (batch,)))
        self.inputs, self.labels = torch.randn(batch, 3, 8, 8), torch.randint(0, CLASSES, (batch,))

    def reference(self) -> Reference:
        self.step.execute(Plan())
        return Reference(self.model, self.step.gradients, self.inputs, self.labels)

    def gradients(self, plan: Plan | None = None) -> list[torch.Tensor]:
        self.step.execute(plan or Plan())
        return self.step.gradients(self.inputs, self.labels)

    def state(self) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in self.model.state_dict().values()]


def test_asking_for_gradients_changes_nothing_that_training_depends_on() -> None:
    trained = Trained()
    before, generator = trained.state(), torch.get_rng_state()
    trained.reference()
    trained.gradients(Plan(memory_format="channels_last"))
    assert all(torch.equal(a, b) for a, b in zip(before, trained.state(), strict=True))
    assert torch.equal(generator, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in trained.model.parameters())


@pytest.mark.parametrize(
    "changes", [{"memory_format": "channels_last"}, {"num_threads": 1}, {"activation_checkpointing": True}]
)
def test_the_same_mathematics_in_another_order_passes(changes: dict[str, object]) -> None:
    for seed in range(3):
        trained = Trained(seed=seed)
        reference = trained.reference()
        fidelity = reference.judge(trained.gradients(replace(Plan(), **changes)), same_mathematics=True)
        assert fidelity.reason is None, fidelity


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["whole", "regional"])
def test_a_compiled_model_with_dropout_passes_as_it_draws_the_same_masks(scope: str) -> None:
    trained = Trained()
    fidelity = trained.reference().judge(trained.gradients(Plan(compile=scope)), same_mathematics=True)
    assert fidelity.reason is None, fidelity


def test_a_thousandth_more_of_the_largest_gradient_is_caught() -> None:
    trained = Trained()
    reference = trained.reference()
    largest = max(range(5), key=lambda index: float(trained.gradients()[index].norm()))
    wrong = trained.gradients()
    wrong[largest] = wrong[largest] * 1.001
    fidelity = reference.judge(wrong, same_mathematics=True)
    assert fidelity.reason is not None and "more than round-off" in fidelity.reason


@pytest.mark.parametrize("fault", ["nan", "missing", "other dropout"])
def test_gradients_that_are_not_those_of_the_batch_are_refused(fault: str) -> None:
    trained = Trained()
    reference = trained.reference()
    wrong = trained.gradients()
    if fault == "nan":
        wrong[0] = wrong[0] * float("nan")
    elif fault == "missing":
        wrong = wrong[1:]
    else:
        torch.manual_seed(99)
        wrong = trained.gradients()
    assert reference.judge(wrong, same_mathematics=True).reason is not None


def off_by(trained: Trained, share: float, seed: int = 1) -> list[torch.Tensor]:
    """Gradients that add a share of the variance which the batch's have as a sample."""
    noise = trained.reference().honest.noise
    assert noise is not None
    plain = trained.gradients()
    norm = torch.cat([gradient.flatten() for gradient in plain]).norm()
    generator = torch.Generator().manual_seed(seed)
    errors = [torch.randn(gradient.shape, generator=generator) for gradient in plain]
    wanted = share**0.5 * noise * norm / torch.cat([part.flatten() for part in errors]).norm()
    return [gradient + wanted * part for gradient, part in zip(plain, errors, strict=True)]


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.0001, 0.95 * NOISE_SHARE) | st.floats(1.05 * NOISE_SHARE, 0.5))
def test_changed_numerics_pass_by_the_variance_that_they_add(share: float) -> None:
    trained = Trained()
    reference = trained.reference()
    fidelity = reference.judge(off_by(trained, share), same_mathematics=False)
    assert (fidelity.error / reference.honest.noise) ** 2 == pytest.approx(share, rel=0.01)
    assert (fidelity.reason is None) == (share < NOISE_SHARE)


@pytest.mark.parametrize(
    "in_use, candidate, passes",
    [
        (0.012, 0.012, True),  # the batch makes the error of the precision so large, not the candidate
        (0.012, 0.019, True),
        (0.002, 0.012, False),  # six times the error of the plan in use: something else than its precision
        (0.012, 0.021, False),
        (0.5, 0.03, False),  # whatever the plan in use does
    ],
)
def test_another_execution_of_a_changed_precision_is_judged_beside_the_plan_in_use(
    in_use: float, candidate: float, passes: bool
) -> None:
    trained = Trained()
    fidelity = trained.reference().judge(
        off_by(trained, candidate, seed=2), same_mathematics=False, beside=off_by(trained, in_use)
    )
    assert (fidelity.reason is None) == passes, fidelity


def test_one_sample_a_batch_proves_nothing_about_changed_numerics() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES)
    config = TrainingConfig(batch_size=1)
    step = TrainingStep(
        model, CrossEntropy(), build_optimizer(model, config.optimizer), config, Plan(), torch.device("cpu")
    )
    inputs, labels = torch.randn(1, 4), torch.randint(0, CLASSES, (1,))
    reference = Reference(model, step.gradients, inputs, labels)
    assert reference.honest.noise is None
    assert reference.judge(step.gradients(inputs, labels), same_mathematics=True).reason is None
    assert "no half of a batch can be taken" in (
        reference.judge(step.gradients(inputs, labels), same_mathematics=False).reason or ""
    )


class Tied(nn.Module):
    """Two ways for a sample, of which the larger input's is taken; both count alike where the inputs tie."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.Parameter(torch.full((2, 4, CLASSES), 0.1) + torch.randn(1, 4, CLASSES) / 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        first, second = inputs[:, 0], inputs[:, 1]
        takes_first = (first[:, :1] >= second[:, :1]).float()
        return takes_first * (first @ self.ways[0]) + (1 - takes_first) * (second @ self.ways[1])


def test_a_tie_that_round_off_breaks_is_found_by_looking_closer_and_hides_no_fault() -> None:
    torch.manual_seed(0)
    model, config = Tied(), TrainingConfig(batch_size=64)
    optimizer = build_optimizer(model, config.optimizer)
    step = TrainingStep(model, CrossEntropy(), optimizer, config, Plan(), torch.device("cpu"))
    inputs, labels = torch.randn(64, 2, 4), torch.randint(0, CLASSES, (64,))
    inputs[7, 1] = inputs[7, 0]  # no change of weights tells them apart
    reference = Reference(model, step.gradients, inputs, labels)
    other_order = inputs.clone()
    other_order[7, 1, 0] += 1e-6
    gradients = step.gradients(other_order, labels)
    refused = reference.judge(gradients, same_mathematics=True)
    assert refused.reason is not None and "round-off" in refused.reason
    reference.look_closer(model, step.gradients)
    assert reference.judge(gradients, same_mathematics=True).reason is None
    wrong = [gradient * 1.1 for gradient in step.gradients(inputs, labels)]
    assert reference.judge(wrong, same_mathematics=True).reason is not None


@pytest.mark.parametrize("round_off", [float("inf"), float("nan")])
def test_where_the_smallest_change_makes_gradients_infinite_nothing_is_proven(round_off: float) -> None:
    trained = Trained()
    honest = HonestDeviation(trained.reference().honest.noise, round_off)
    reference = Reference(trained.model, trained.step.gradients, trained.inputs, trained.labels, like=honest)
    same = reference.judge(trained.gradients(), same_mathematics=True)
    assert same.error == 0.0 and "nothing is proven" in (same.reason or "")


def test_round_off_is_held_to_the_noise_between_batches_too() -> None:
    trained = Trained()
    honest = HonestDeviation(trained.reference().honest.noise, 1.0)  # of a model that makes all of the smallest change
    reference = Reference(trained.model, trained.step.gradients, trained.inputs, trained.labels, like=honest)
    wrong = [3.0 * gradient for gradient in trained.gradients()]
    fidelity = reference.judge(wrong, same_mathematics=True)
    assert fidelity.reason is not None and "variance between batches" in fidelity.reason
    assert reference.judge(trained.gradients(), same_mathematics=True).reason is None
