"""What a training survives: numbers that are not finite, too little memory, a last batch of one sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from upshift import DataConfig, OptimizerConfig, Plan, Recipe, train
from upshift.errors import ConfigError, NonFiniteLossError, PlanError
from upshift.training.batches import micro_batch_sizes
from upshift.training.config import TrainingConfig
from upshift.training.evaluation import Batches, within_memory
from upshift.training.gradients import GradientCheck
from upshift.training.loss import CrossEntropy
from upshift.training.optimizers import build_optimizer
from upshift.training.step import TrainingStep
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


# Gradients that are not finite


class OneBadGradient(Linear):
    """A finite loss whose gradient is not, at the fifth step."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        logits = super().forward(images)
        if self.training and self.calls == 5:
            logits.register_hook(lambda gradient: gradient * float("nan"))
        return logits


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gradient_that_is_not_finite_is_skipped_counted_and_reported(tmp_path: Path, precision: str) -> None:
    trained = run(tmp_path, OneBadGradient, plan=Plan(precision=precision))
    assert trained.result["num_skipped_steps"] == 1
    assert any("1 steps were skipped" in note for note in trained.result["notes"])
    assert all(torch.isfinite(tensor).all() for tensor in trained.model.state_dict().values())
    assert trained.result["metrics"]["accuracy"] > 0.7


class AlwaysBadGradient(Linear):
    """A finite loss whose gradient never is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        if self.training:
            logits.register_hook(lambda gradient: gradient * float("inf"))
        return logits


@pytest.mark.parametrize(("precision", "given_up_at"), [("fp32", 3), ("fp16", 19)])
def test_gradients_that_stay_not_finite_end_training_with_the_last_good_state_saved(
    tmp_path: Path, precision: str, given_up_at: int
) -> None:
    # In fp16 the scale of the loss is halved from 65,536 to 1 first, which may be all that it takes.
    with pytest.raises(NonFiniteLossError, match="loss or gradient was not finite for 3 steps in a row"):
        run(tmp_path, AlwaysBadGradient, "max_nonfinite_steps=3", plan=Plan(precision=precision))
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == f"step-{given_up_at}"


def test_an_average_of_the_weights_leaves_out_steps_whose_gradient_overflowed() -> None:
    model, config = AlwaysBadGradient(), TrainingConfig(optimizer=OptimizerConfig(lr=0.1))
    optimizer = build_optimizer(model, config.optimizer)
    step = TrainingStep(model, CrossEntropy(), optimizer, config, Plan(precision="fp16"), torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,)))
    assert step.skipped and step.seeks_scale and (step.num_overflows, step.num_skipped) == (1, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("skips_on_device", [False, True])
def test_an_unclipped_gradient_that_is_not_finite_is_skipped_by_host_and_by_device(skips_on_device: bool) -> None:
    # The fused kernels of the CPU take the flag too, so the path of accelerators can be gone through here.
    model, config = OneBadGradient(), TrainingConfig(optimizer=OptimizerConfig(name="adamw", lr=0.1))
    optimizer = build_optimizer(model, config.optimizer, fused=True)
    step = TrainingStep(model, CrossEntropy(), optimizer, config, Plan(), torch.device("cpu"))
    step._skips_on_device = skips_on_device
    seen = []
    for _ in range(6):
        step(torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,)))
        step.synchronize()
        seen.append((step.num_skipped, model.head.weight.detach().clone()))
    assert [count for count, _ in seen] == [0, 0, 0, 0, 1, 1]
    assert torch.equal(seen[3][1], seen[4][1]) and not torch.equal(seen[4][1], seen[5][1])


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (100, 100)])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_any_one_number_of_a_gradient_is_seen_and_finite_ones_stay_as_they_are(
    dtype: torch.dtype, shape: tuple[int, int], value: float
) -> None:
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)), *(nn.Parameter(torch.zeros(9)) for _ in range(2))]
    # As large as they get: their sum overflows, and none of them is infinite.
    gradient = torch.full(shape, 3e38, dtype=dtype)
    parameters[0].grad, parameters[1].grad = gradient, torch.randn(9)
    check, loss, before = GradientCheck(parameters, torch.device("cpu")), torch.tensor(0.1), gradient.clone()
    assert check.is_finite(loss) and not check.nonfinite_at_once()
    assert torch.equal(gradient, before) and loss == torch.tensor(0.1)
    gradient[4, 6] = value
    assert not check.is_finite(loss) and check.nonfinite_at_once()
    gradient[4, 6] = 0
    assert check.is_finite(loss) and not check.nonfinite_at_once()
    assert not check.is_finite(torch.tensor(value))


def test_a_sparse_gradient_is_looked_at_too() -> None:
    table, loss = nn.Embedding(4, 2, sparse=True), torch.tensor(1.0)
    check = GradientCheck(list(table.parameters()), torch.device("cpu"))
    table(torch.tensor([1, 1])).sum().backward()
    assert check.is_finite(loss) and not check.nonfinite_at_once()
    (table(torch.tensor([2])) * float("inf")).sum().backward()
    assert not check.is_finite(loss) and check.nonfinite_at_once()


def test_an_optimizers_hooks_and_a_profiler_see_its_steps() -> None:
    model = Linear()
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1))
    model(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    called: list[str] = []
    with torch.profiler.profile() as profiled:
        optimizer.step()
    optimizer.optimizers[0].register_step_post_hook(lambda *_: called.append("hook"))
    optimizer.step()
    assert called == ["hook"]
    assert any(event.key.startswith("Optimizer.step") for event in profiled.key_averages())


# Memory


class HungryAtEvaluation(Linear):
    """Runs out of memory at more than 100 samples."""

    largest: ClassVar[list[int]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if not self.training:
            self.largest.append(len(images))
        return super().forward(images)


def test_an_evaluation_that_does_not_fit_in_memory_is_made_in_smaller_batches(tmp_path: Path) -> None:
    HungryAtEvaluation.largest.clear()
    trained = run(tmp_path, HungryAtEvaluation, "epochs=2")
    assert trained.result["stopped"] == "completed"
    notes = [note for note in trained.result["notes"] if "out of memory" in note]
    assert len(notes) == 2 and "at most 64 samples" in notes[-1], "it is found out once, not at each evaluation"
    assert max(HungryAtEvaluation.largest) == 64
    plain = train(recipe(Linear), overrides=["epochs=2"], out=tmp_path / "plain", plan="baseline")
    assert trained.result["metrics"] == pytest.approx(plain.result["metrics"], abs=1e-6)


def test_an_evaluation_of_one_sample_that_does_not_fit_is_refused() -> None:
    sizes = []

    def evaluate(batches: Batches) -> None:
        sizes.append(next(iter(batches))[1].shape[0])
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match="one sample must fit in memory"):
        within_memory(evaluate, lambda: [(torch.zeros(6, 1), torch.zeros(6))], largest=None, note=lambda note: None)
    assert sizes == [6, 3, 2, 1]


# A last batch of one sample


class Normed(nn.Sequential):
    """Batch norm over features: it needs two samples to learn from."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, num_classes))


class NormedImages(nn.Sequential):
    """Batch norm over pixels: one image has many."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, num_classes))


@pytest.mark.parametrize("batch_size", [1, 479, 1437])
def test_a_last_batch_that_batch_norm_cannot_take_is_refused_before_anything_is_written(
    tmp_path: Path, batch_size: int
) -> None:
    with pytest.raises(ConfigError, match=r"at least 2 samples.*--set batch_size=\d+$") as raised:
        run(tmp_path, Normed, f"batch_size={batch_size}", "max_steps=2")
    assert not (tmp_path / "run").exists()
    hinted = str(raised.value).rpartition("--set ")[2]
    assert run(tmp_path, Normed, hinted, "log_every=1", **{"epochs": 1}).result["stopped"] == "completed"


def test_a_last_batch_of_one_sample_is_learnt_from_where_the_model_can(tmp_path: Path) -> None:
    trained = run(tmp_path, NormedImages, "batch_size=1437", "log_every=1")
    assert trained.result["steps"] == 2 and trained.model[0].num_batches_tracked == 2


def test_a_plan_does_not_cut_a_batch_into_single_samples_that_batch_norm_cannot_take(tmp_path: Path) -> None:
    # 64 = 21 + 21 + 20 + 2, and the last batch of an epoch has 30 samples.
    assert run(tmp_path, Normed, plan=Plan(micro_batch_size=21)).result["stopped"] == "completed"
    with pytest.raises(PlanError, match="micro-batch must have at least 2 samples"):
        train(recipe(Normed), out=tmp_path / "single", plan=Plan(micro_batch_size=1))


@given(num_samples=st.integers(1, 300), most=st.integers(1, 300))
def test_micro_batches_are_of_at_most_the_size_and_single_only_where_it_must_be(num_samples: int, most: int) -> None:
    sizes = micro_batch_sizes(num_samples, most)
    assert sum(sizes) == num_samples and min(sizes) >= 1 and max(sizes) <= most
    assert len(sizes) == -(-num_samples // most)
    assert 1 not in sizes or most <= 2 or num_samples == 1
