"""The optimizers of pytorch_optimizer: which can be used, and that those can be resumed and evaluated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import upshift
from upshift.core.records import RunFolder
from upshift.errors import ConfigError
from upshift.training.config import OptimizerConfig, TrainingConfig
from upshift.training.loss import CrossEntropy
from upshift.training.optimizer_check import check_optimizer
from upshift.training.optimizers import build_optimizer
from upshift.training.rng import seed_everything
from upshift.training.step import TrainingStep
from upshift.training.trainer import Trainer
from upshift.tuning.plan import Plan

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
NAMES = tuple(pytorch_optimizer.get_supported_optimizers())
PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
STEPS_AN_EPOCH = 4
# Each warns of what it is, once, when it is made.
pytestmark = pytest.mark.filterwarnings("ignore")


def network() -> nn.Module:
    """A convolution, batch norm and a linear layer: parameters of 4, 2 and 1 dimensions."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))


class Batches:
    """Random images of random classes."""

    batch_size = 8

    def __len__(self) -> int:
        return STEPS_AN_EPOCH

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(epoch)
        batches = [
            (torch.randn(8, 1, 8, 8, generator=generator), torch.randint(0, 10, (8,), generator=generator))
            for _ in range(len(self))
        ]
        yield from batches[start_batch:]


def trained(config: OptimizerConfig, folder: Path, max_steps: int, *, resume: bool = False) -> dict[str, torch.Tensor]:
    """The weights that a training in a folder ends with; its last checkpoint lies there."""
    model = network()
    training = TrainingConfig(epochs=2, max_steps=max_steps, optimizer=config, checkpoint_every_minutes=None)
    trainer = Trainer(
        model, CrossEntropy(), Batches(), Batches(), eval_split="test", config=training, execution=Plan(),
        device=torch.device("cpu"),
    )  # fmt: skip
    seed_everything(1)
    trainer.train(RunFolder(folder), resume=resume)
    return model.state_dict()


def goes_on_alike(config: OptimizerConfig, folder: Path) -> bool:
    """Whether a training that stops within the second epoch and goes on ends with the weights of one that does not."""
    whole = trained(config, folder / "whole", 7)
    trained(config, folder / "parts", 5)
    resumed = trained(config, folder / "parts", 7, resume=True)
    return all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("name", ["soap", "madgrad", "scalableshampoo", "schedulefreeadamw", "aggmo", "spam", "magma"])
def test_an_optimizer_with_any_kind_of_state_goes_on_after_a_resume_with_the_same_weights(
    name: str, tmp_path: Path
) -> None:
    config = OptimizerConfig(name=name, lr=0.01)
    check_optimizer(network(), config)
    assert goes_on_alike(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a2grad", "has no learning rate"),
        ("adahessian", "does not require grad"),
        ("lbfgs", "closure"),
        ("lomo", "no attribute 'parameters'"),
        ("spectralsphere", "only supports 2D"),
    ],
)
def test_an_optimizer_that_cannot_train_the_model_is_refused_with_its_own_words(name: str, reason: str) -> None:
    model, generators = network(), torch.get_rng_state()
    with pytest.raises(ConfigError, match=reason):
        check_optimizer(model, OptimizerConfig(name=name))
    assert torch.equal(torch.get_rng_state(), generators)


def test_such_an_optimizer_is_refused_before_a_run_has_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lbfgs"):
        upshift.train("digits", overrides=["optimizer.name=lbfgs"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Forgetful(torch.optim.SGD):
    """Counts its steps, which decide how long the next one is, where no checkpoint sees it."""

    num_steps = 0

    def step(self, closure: None = None) -> None:
        self.num_steps += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.num_steps
        super().step(closure)


def test_an_optimizer_whose_state_is_lost_in_a_resume_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pytorch_optimizer.optimizer.OPTIMIZERS, "forgetful", Forgetful)
    with pytest.raises(ConfigError, match="forgetful, which keeps a part of its state to itself"):
        check_optimizer(network(), OptimizerConfig(name="forgetful"))


def test_what_cannot_be_kept_as_data_is_refused_and_not_left_out() -> None:
    optimizer = build_optimizer(network(), OptimizerConfig(name="lion"))
    optimizer.optimizers[0].param_groups[0]["scale"] = abs
    with pytest.raises(ConfigError, match="keeps a builtin_function_or_method"):
        optimizer.state()


def test_a_checkpoint_cannot_name_code_of_another_package() -> None:
    from upshift.errors import ArtifactError

    optimizer = build_optimizer(network(), OptimizerConfig(name="lion"))
    tensors, rest = optimizer.state()
    rest["foreign"]["0"] = {"object": "subprocess:Popen", "attributes": {"mapping": []}}
    with pytest.raises(ArtifactError, match="subprocess:Popen"):
        optimizer.load_state(tensors, rest)


def test_an_optimizer_that_refuses_the_gradients_at_a_step_is_bad_input() -> None:
    model = network()
    optimizer = build_optimizer(model, OptimizerConfig(name="lion"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros(parameter.shape).to_sparse()
    with pytest.raises(ConfigError, match="lion, which raises NoSparseGradientError"):
        optimizer.step()


@pytest.mark.parametrize("name", ["schedulefreesgd", "schedulefreeadamw", "splus"])
def test_an_optimizer_that_averages_is_evaluated_and_saved_with_its_average(name: str, tmp_path: Path) -> None:
    config = OptimizerConfig(name=name, lr=0.1)
    saved = trained(config, tmp_path / "run", STEPS_AN_EPOCH)

    model = network()
    model.train()
    optimizer = build_optimizer(model, config)
    for inputs, labels in Batches().epoch(0):
        optimizer.zero_grad()
        CrossEntropy()(model(inputs), labels).backward()
        optimizer.step()
    trained_weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with optimizer.averaged():
        averaged = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert all(torch.equal(weight, saved[name]) for name, weight in averaged.items())
    assert any(not torch.equal(weight, trained_weights[name]) for name, weight in averaged.items())
    assert all(torch.equal(weight, trained_weights[name]) for name, weight in model.named_parameters())


@pytest.mark.slow
def test_every_name_trains_and_resumes_to_the_same_weights_or_is_refused_before_training(tmp_path: Path) -> None:
    """And docs/optimizers.md says which."""
    works, refused = [], {}
    for name in NAMES:
        config = OptimizerConfig(name=name, lr=0.01)
        try:
            check_optimizer(network(), config)
        except ConfigError as error:
            refused[name] = str(error.received).removeprefix("{}: ").removeprefix(f"{name}, ")
            continue
        assert goes_on_alike(config, tmp_path / name), name
        works.append(name)
    text = PAGE.read_text(encoding="utf-8")
    listed = re.search(r"## What works\n(.*?)## What is refused", text, flags=re.DOTALL)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed.group(1)) == works
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", text[listed.end() :], flags=re.MULTILINE)
    assert dict(rows) == refused


@pytest.mark.parametrize("options", [{}, {"dampening": 0.2, "maximize": True}])
def test_fused_sgd_takes_up_parameters_that_are_thawed(options: dict[str, object]) -> None:
    config = OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.1, options=options)
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(8, 1, 8, 8, generator=draw) for _ in range(4)]
    weights = []
    for fused in (True, None):
        model = network()
        optimizer = build_optimizer(model, config, fused=fused)
        for number, batch in enumerate(inputs):
            model[0].requires_grad_(number >= 2)  # type: ignore[index]
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
        weights.append(model.state_dict())
    assert any(group["fused"] for group in build_optimizer(network(), config, fused=True).optimizers[0].param_groups)
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_steps_of_every_precision_take_up_parameters_that_are_thawed(precision: str) -> None:
    model = network()
    config = TrainingConfig(batch_size=8, optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.9))
    optimizer = build_optimizer(model, config.optimizer, fused=True)
    step = TrainingStep(model, CrossEntropy(), optimizer, config, Plan(precision=precision), torch.device("cpu"))  # type: ignore[arg-type]
    model[0].requires_grad_(False)  # type: ignore[index]
    step(torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,)))
    model[0].requires_grad_(True)  # type: ignore[index]
    before = model[0].weight.detach().clone()  # type: ignore[index, union-attr, operator]
    for _ in range(12):  # a scale of the loss that is too large takes steps to come down
        step(torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,)))
    assert step.num_skipped == 0
    assert not torch.equal(before, model[0].weight)  # type: ignore[index, union-attr, arg-type]


def test_a_thawed_parameter_whose_first_gradient_is_not_finite_is_trained_by_later_ones() -> None:
    model = network()
    config = OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, options={"dampening": 0.2})
    optimizer = build_optimizer(model, config, fused=True)
    for number, found_inf in enumerate([0.0, 1.0, 0.0]):
        model[0].requires_grad_(number > 0)  # type: ignore[index]
        optimizer.zero_grad()
        model(torch.randn(8, 1, 8, 8)).square().mean().backward()
        if found_inf:
            model[0].weight.grad.fill_(float("inf"))  # type: ignore[index, union-attr, operator]
        optimizer.optimizers[0].found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
        optimizer.step()
    tensors, _ = optimizer.state()
    assert all(torch.isfinite(tensor).all() for tensor in [*tensors.values(), *model.parameters()])
