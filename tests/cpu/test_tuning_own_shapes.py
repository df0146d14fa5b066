"""Tuning models, batches and losses of any shape: a candidate is checked and raced with each of them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from own_models import BATCH, SAMPLES, loader, mlp
from torch import nn
from torch.nn import functional

import upshift
from upshift.tuning.own_loop import OwnLoop
from upshift.tuning.plan import Plan

BUDGET_SECONDS = 0.05
"""On the simulated clock: enough for whatever need not be compiled, which is expected to take longer than that."""
pytestmark = pytest.mark.usefixtures("simulated_clock")


@pytest.fixture(autouse=True)
def a_machine_without_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Precisions are candidates where this machine is fast in them: here none is."""
    monkeypatch.setattr("upshift.workflows.tune.limits", lambda device: None)
    monkeypatch.setattr("upshift.workflows.tune.fast_dtypes", lambda machine: ())


def tune(
    model: nn.Module,
    loss: Any = functional.cross_entropy,
    data: Any = None,
    *,
    candidate: str = "fused optimizer",
    more_parameters: Any = (),
    **settings: Any,
) -> Any:
    """Tune with an optimizer whose fused kernels are a candidate: it must be right with this model, and raced.

    Whatever the model is, its weights and buffers are left as they were.
    """
    data = list(loader() if data is None else data)  # no workers: loading is not what these are about
    optimizer = torch.optim.SGD([*model.parameters(), *more_parameters], lr=0.1, momentum=0.9)
    before = copy.deepcopy(model.state_dict())
    tuned = upshift.tune(
        model=model, loss=loss, data=data, optimizer=optimizer, **({"budget_seconds": BUDGET_SECONDS} | settings)
    )
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0, equal_nan=True)
    (trial,) = [trial for trial in tuned.plan.trials if trial["name"] == candidate]
    assert trial["verdict"] in ("adopted", "refused"), trial["reason"]
    assert trial["gradient_error"] < 1e-5, trial["reason"]
    assert trial["num_rounds"] >= 2, trial["reason"]
    return tuned


class TwoTowers(nn.Module):
    """Several inputs, and outputs of any kind."""

    def __init__(self, make: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)
        self.make = make

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
        return self.make(self.left(left), self.right(right))


class Pair(NamedTuple):
    logits: torch.Tensor
    other: torch.Tensor


@dataclass
class Outputs:
    logits: torch.Tensor
    other: torch.Tensor
    rank: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.rank = self.logits.dim()


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As those of transformers: a mapping whose values are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def logits_and_other(outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(outputs, dict):
        return outputs["logits"], outputs["other"]
    if isinstance(outputs, Outputs):
        return outputs.logits, outputs.other
    first, second = outputs
    return first, second


@pytest.mark.parametrize(
    "make",
    [
        lambda left, right: (left, right),
        lambda left, right: [left, right],
        lambda left, right: {"logits": left, "other": right},
        Pair,
        Outputs,
        lambda left, right: ModelOutput(logits=left, other=right),
    ],
    ids=["tuple", "list", "dict", "namedtuple", "dataclass", "model-output"],
)
def test_several_inputs_and_outputs_of_any_kind_reach_model_and_loss_as_they_are(make: Any) -> None:
    seen = []

    def loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        seen.append(type(outputs))
        logits, other = logits_and_other(outputs)
        return functional.cross_entropy(logits + other, targets)

    data = loader(torch.randn(SAMPLES, 4), torch.randn(SAMPLES, 2), torch.randint(0, 3, (SAMPLES,)))
    model = TwoTowers(make)
    tuned = tune(model, loss, data)
    assert isinstance(tuned.plan, Plan)
    assert set(seen) == {type(model(torch.randn(2, 4), torch.randn(2, 2)))}


def test_inputs_that_are_a_tuple_in_a_pair_are_positional_arguments() -> None:
    batch = ((torch.randn(BATCH, 4), torch.randn(BATCH, 2)), torch.randint(0, 3, (BATCH,)))
    tune(TwoTowers(lambda left, right: left + right), data=[batch])


class WithLoss(nn.Module):
    """As a model of transformers: named inputs, and the loss among the outputs."""

    def __init__(self, kind: Callable[..., Any]) -> None:
        super().__init__()
        self.net, self.kind = mlp(), kind

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> Any:
        logits = self.net(features)
        return self.kind(loss=functional.cross_entropy(logits, labels), logits=logits)


def named(batch: list[Any]) -> dict[str, torch.Tensor]:
    return {"features": torch.stack([x for x, _ in batch]), "labels": torch.stack([y for _, y in batch])}


@pytest.mark.parametrize("kind", [dict, ModelOutput])
def test_named_inputs_need_no_loss_where_the_outputs_hold_it(kind: Any) -> None:
    tune(WithLoss(kind), None, loader(collate_fn=named))


def test_a_loss_of_named_inputs_gets_the_whole_batch() -> None:
    keys = set()

    def loss(outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        keys.add(tuple(batch))
        return functional.cross_entropy(outputs["logits"], batch["labels"])

    tune(WithLoss(dict), loss, loader(collate_fn=named))
    assert keys == {("features", "labels")}


def test_one_tensor_a_batch_is_input_and_target() -> None:
    coder = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
    for data in ([torch.randn(BATCH, 4)] * 2, loader(torch.randn(SAMPLES, 4))):
        tune(coder, functional.mse_loss, data)


@dataclass
class Graph:
    nodes: torch.Tensor
    labels: torch.Tensor


class OfGraphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, graph: Graph) -> torch.Tensor:
        result: torch.Tensor = self.net(graph.nodes)
        return result


def test_a_batch_that_is_an_object_is_given_to_model_and_loss_as_one() -> None:
    data = [Graph(torch.randn(BATCH, 4), torch.randint(0, 3, (BATCH,)))]
    tune(OfGraphs(), lambda outputs, graph: functional.cross_entropy(outputs, graph.labels), data)


def test_frozen_parts_are_left_out_of_the_gradients_that_are_compared() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    tuned = tune(model)
    exact = [trial for trial in tuned.plan.trials if "gradient_error" in trial and trial["tier"] == "A"]
    assert exact and all(trial["gradient_error"] < 1e-5 for trial in exact)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.embed(tokens)).flatten(0, 1)
        return result


def test_tied_weights_stay_tied_in_the_copy() -> None:
    tokens = torch.randint(0, 11, (SAMPLES, 5))
    model = Tied()
    loop = OwnLoop(
        model,
        lambda outputs, targets: functional.cross_entropy(outputs, targets.flatten()),
        loader(tokens, tokens),
        torch.optim.Adam(model.parameters()),
    )
    assert loop.model.head.weight is loop.model.embed.weight
    assert loop.model.head.weight is not model.head.weight


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return 2 * gradient


class WithFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = Doubled.apply(self.net(x))
        return result


def test_custom_autograd_functions_are_tuned_like_any_other() -> None:
    tune(WithFunction())


def test_float64_models_stay_in_float64() -> None:
    seen = set()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.add(outputs.dtype)
        return functional.mse_loss(outputs, targets)

    tune(mlp().double(), loss, loader(torch.randn(SAMPLES, 4).double(), torch.randn(SAMPLES, 3).double()))
    assert seen == {torch.float64}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6), nn.Linear(6, 3)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.lstm(series)[0][-1])
        return result


def test_batches_whose_first_axis_is_time_are_taken_whole() -> None:
    lengths = [5, 9, 5, 12]  # longer than the first: nothing may be split there
    data = [(torch.randn(length, 7, 4), torch.randint(0, 3, (7,))) for length in lengths]
    tuned = tune(Recurrent(), data=data)
    assert [trial for trial in tuned.plan.trials if trial["verdict"] == "failed"] == []


def test_nothing_is_compiled_for_batches_that_change_their_shape() -> None:
    lengths = [5, 9, 6, 12]
    data = [(torch.randn(length, 7, 4), torch.randint(0, 3, (7,))) for length in lengths]
    assert OwnLoop(Recurrent(), functional.cross_entropy, data, None).job().changes_size
    assert not OwnLoop(mlp(), functional.cross_entropy, loader(), None).job().changes_size


def test_a_loss_with_parameters_of_its_own_is_copied_with_the_model() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(outputs * self.scale, targets)

    model, loss = mlp(), Weighted()
    tune(model, loss, more_parameters=loss.parameters())
    assert loss.scale.grad is None
    assert loss.scale.item() == 1.0


def test_a_loss_that_is_a_method_of_the_model_becomes_one_of_the_copy() -> None:
    class SelfJudging(nn.Sequential):
        def judge(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            penalty = sum(parameter.square().sum() for parameter in self.parameters())
            return functional.cross_entropy(outputs, targets) + 0.01 * penalty

    model = SelfJudging(*mlp())
    tune(model, model.judge)
    assert all(parameter.grad is None for parameter in model.parameters())
