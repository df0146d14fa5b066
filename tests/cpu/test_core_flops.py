"""Operations and bytes of a step, against sums done by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from upshift.core import flops
from upshift.core.flops import StepCost, step_cost, with_update


def cost(
    model: nn.Module,
    inputs: torch.Tensor,
    *,
    make: Callable[..., torch.optim.Optimizer] | None = None,
    **options: float,
) -> StepCost:
    optimizer = make(model.parameters(), **options) if make else None

    def step() -> None:
        model(inputs).sum().backward()
        if optimizer:
            optimizer.step()

    return step_cost(model, step, optimizer=optimizer)


def test_a_linear_layer_by_hand() -> None:
    found = cost(nn.Linear(7, 5), torch.randn(3, 7))
    assert found == StepCost(
        flops=2 * (2 * 3 * 7 * 5),  # forward, and the gradient of the weight; none of the inputs
        parameter_bytes=4 * (7 * 5 + 5),
        trained_bytes=4 * (7 * 5 + 5),
        optimizer_state_bytes=0,
        saved_bytes=4 * 3 * 7,
        saved_parameter_bytes=0,  # only the gradient of the inputs would need the weight
        has_optimizer=False,
    )
    assert found.bytes_min == 4 * (40 + 2 * 21 + 40)


def test_layers_in_between_need_their_weights_again_and_the_gradient_of_their_inputs() -> None:
    model = nn.Sequential(nn.Linear(7, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False))
    found = cost(model, torch.randn(3, 7))
    assert found.flops == 2 * 3 * (2 * 7 * 5 + 3 * 5 * 2)
    assert found.saved_parameter_bytes == 4 * 5 * 2
    # The input, and the ReLU's output, which the ReLU and the layer after it both keep.
    assert found.saved_bytes == 4 * (3 * 7 + 3 * 5)


def test_a_convolution_by_hand() -> None:
    found = cost(nn.Conv2d(3, 8, kernel_size=3, padding=1), torch.randn(2, 3, 10, 10))
    assert found.flops == 2 * (2 * 2 * 8 * 100 * 3 * 9)
    assert found.saved_bytes == 4 * 2 * 3 * 100


@pytest.mark.parametrize(
    ("make", "options", "state_of_a_parameter"),
    [
        (torch.optim.SGD, {"lr": 0.1}, 0),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, 1),
        (torch.optim.Adam, {"lr": 0.1}, 2),
    ],
)
def test_the_optimizers_state_is_read_and_written(
    make: Callable[..., torch.optim.Optimizer], options: dict[str, float], state_of_a_parameter: int
) -> None:
    model = nn.Linear(70, 50, bias=False)
    found = cost(model, torch.randn(3, 70), make=make, **options)
    size = 4 * 70 * 50
    counters = 4 if make is torch.optim.Adam else 0  # Adam counts its steps in a tensor
    assert found.optimizer_state_bytes == size * state_of_a_parameter + counters
    assert found.uncounted == ()
    without = cost(nn.Linear(70, 50, bias=False), torch.randn(3, 70))
    assert found.bytes_min - without.bytes_min == 3 * size + 2 * found.optimizer_state_bytes


def test_the_step_is_run_once_and_as_it_would_be_without_counting() -> None:
    def trained(*, counts: bool) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1))
        optimizer = torch.optim.Adam(model.parameters())
        calls = []

        def step() -> None:
            calls.append(1)
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()

        for _ in range(2):
            step_cost(model, step, optimizer=optimizer) if counts else step()
        return torch.cat([value.flatten() for value in model.state_dict().values()]), len(calls)

    counted, calls = trained(counts=True)
    assert calls == 2 and torch.equal(counted, trained(counts=False)[0])


def test_micro_batches_keep_their_activations_one_after_the_other() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    data = torch.randn(8, 64)

    def accumulate(pieces: int) -> StepCost:
        return step_cost(model, lambda: [model(piece).sum().backward() for piece in data.chunk(pieces)])

    whole, pieces = accumulate(1), accumulate(4)
    assert pieces.flops == whole.flops and pieces.saved_bytes == whole.saved_bytes


def test_slices_of_data_that_stay_in_memory_count_by_their_own_size() -> None:
    resident = torch.randn(10_000, 7)
    assert cost(nn.Linear(7, 5), resident[30:33]).saved_bytes == 4 * 3 * 7
    assert cost(nn.Linear(7, 5), torch.randn(1, 7).expand(1000, 7)).saved_bytes <= 4 * 7 + 4 * 7000


def test_frozen_parts_get_no_gradient_and_tied_weights_are_one() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[0].weight.requires_grad_(False)
    model[2].weight = model[1].weight
    found = cost(model, torch.randn(4, 8))
    assert found.parameter_bytes == 4 * 2 * 64 and found.trained_bytes == 4 * 64
    # Three products forward, two gradients of weights, and one of inputs: that of the last layer.
    assert found.flops == 2 * 4 * 64 * (3 + 2 + 1)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_counts_whichever_kernel_computes_it(dropout: float) -> None:
    length, width = 20, 32
    model = nn.MultiheadAttention(width, 4, batch_first=True, dropout=dropout)
    inputs = torch.randn(8, length, width, requires_grad=True)

    def step() -> None:
        model(inputs, inputs, inputs, need_weights=False)[0].sum().backward()

    found = step_cost(model, step)
    projections = 3 * 2 * 8 * length * width * 4 * width
    products = 2 * 8 * length * length * width * 2
    # Backward, the products' gradients are twice as much; the fused kernel computes the scores again.
    backward = products * 2 + (products // 2 if dropout == 0 else 0)
    assert found.flops == projections + products + backward and found.uncounted == ()


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_layers_count_however_they_are_computed(kind: type[nn.RNNBase], gates: int, layers: int) -> None:
    model = kind(32, 64, num_layers=layers, batch_first=True)
    inputs = torch.randn(8, 20, 32, requires_grad=True)
    found = step_cost(model, lambda: model(inputs)[0].sum().backward())
    forward = 2 * 8 * 20 * gates * 64 * (32 + 64 + (layers - 1) * 128)
    assert found.flops == pytest.approx(3 * forward, rel=0.04)  # before the first position there is no gradient
    assert found.uncounted == ()


def test_weights_of_recurrent_layers_are_told_from_states_in_both_layouts() -> None:
    inputs, weights, bias, state = torch.Size((20, 8, 32)), [torch.Size((256, 32)), torch.Size((256, 64))], None, None
    bias, state = torch.Size((256,)), torch.Size((1, 8, 64))
    expected = 2 * 20 * 8 * 256 * (32 + 64)
    assert flops._recurrent(inputs, [*weights, bias, bias], 4, None, state, state) == expected
    assert flops._recurrent(inputs, *weights, bias, bias, state, state, False, []) == expected
    assert flops._recurrent_backward(inputs, [*weights, bias, bias], 4) == 2 * expected


def test_custom_operators_are_named_as_not_counted() -> None:
    @torch.library.custom_op("upshift_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_autograd(lambda context, gradient: gradient * 2)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return twice(self.layer(x)) + torch.fft.fft(self.layer(x)).real

    found = cost(Model(), torch.randn(2, 4))
    assert "upshift_tests::twice" in found.uncounted and "aten::_fft_r2c" in found.uncounted
    assert found.flops == 4 * (2 * 2 * 4 * 4)


def test_functions_with_a_backward_of_their_own_are_counted() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(context, x, weight):
            context.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(context, gradient):
            x, weight = context.saved_tensors
            return gradient @ weight.T, x.T @ gradient

    model = nn.ParameterList([nn.Parameter(torch.randn(4, 6))])
    inputs = torch.randn(3, 4, requires_grad=True)
    found = step_cost(model, lambda: Product.apply(inputs, model[0]).sum().backward())
    assert found.flops == 3 * (2 * 3 * 4 * 6)
    assert found.saved_bytes == 4 * 3 * 4 and found.saved_parameter_bytes == 4 * 4 * 6


def test_recomputed_activations_are_not_kept_and_their_operations_count_again() -> None:
    from torch.utils.checkpoint import checkpoint

    layers = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    inputs = torch.randn(16, 64, requires_grad=True)
    plain = step_cost(layers, lambda: layers(inputs).sum().backward())
    saving = step_cost(layers, lambda: checkpoint(layers, inputs, use_reentrant=False).sum().backward())
    assert saving.saved_bytes < plain.saved_bytes and saving.flops > plain.flops


def test_a_compiled_model_is_counted_as_it_is_without_compiling() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    inputs = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert cost(compiled, inputs) == cost(model, inputs)  # a warning would be an error
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_a_step_without_gradients_or_work_costs_what_it_does() -> None:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        only_forward = step_cost(model, lambda: model(torch.ones(2, 4)))
    assert only_forward.flops == 2 * 2 * 4 * 4 and only_forward.saved_bytes == 0
    assert step_cost(nn.Identity(), lambda: None).bytes_min == 0


def test_an_error_of_the_step_is_the_callers_and_leaves_nothing_behind() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(ZeroDivisionError):
        step_cost(model, lambda: 1 // 0)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        model(torch.ones(2, 4)).sum().backward()
    assert seen and cost(model, torch.ones(2, 4)).flops == 2 * 2 * 2 * 4 * 4


def test_tensors_without_a_storage_do_not_stop_the_count() -> None:
    model = nn.Linear(4, 4, bias=False)
    sparse = torch.eye(3, 4).to_sparse()

    def step() -> None:
        torch.sparse.mm(sparse, model.weight).sum().backward()

    assert step_cost(model, step).parameter_bytes == 64


def updated(optimizer: torch.optim.Optimizer, model: nn.Module, inputs: torch.Tensor) -> tuple[StepCost, StepCost]:
    """The cost of a step's passes, and of the step with its update; the optimizer has made a step before."""

    def passes() -> None:
        optimizer.zero_grad()
        model(inputs).sum().backward()

    passes()
    optimizer.step()
    found = step_cost(model, passes)
    return found, with_update(found, [optimizer])


def test_an_update_reads_and_writes_weights_gradients_and_state() -> None:
    model = nn.Linear(7, 5)
    before, found = updated(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, torch.randn(3, 7))
    weights = 4 * (7 * 5 + 5)
    assert found.has_optimizer and found.optimizer_state_bytes == weights
    assert found.bytes_min - before.bytes_min == 3 * weights + 2 * weights
    assert found.flops == before.flops and found.uncounted == ()


def test_the_products_of_an_update_are_counted_and_it_changes_nothing() -> None:
    model = nn.Linear(24, 16, bias=False)
    optimizer = torch.optim.Muon(model.parameters(), lr=0.1)
    weights = [parameter.clone() for parameter in model.parameters()]
    before, found = updated(optimizer, model, torch.randn(3, 24))
    # Five iterations of Newton and Schulz: X Xᵀ, its square, and that times X, with X of 16 by 24.
    assert found.flops - before.flops == 5 * 2 * (16 * 16 * 24 + 16**3 + 16 * 16 * 24)
    after = [parameter.clone() for parameter in model.parameters()]
    with_update(before, [optimizer])
    assert all(torch.equal(one, other) for one, other in zip(after, model.parameters(), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(after, weights, strict=True))


class Unready(torch.optim.SGD):
    """Of another package, and cannot make its step just like that."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        raise RuntimeError("a closure is needed")


def test_an_update_that_cannot_be_counted_is_named() -> None:
    model = nn.Linear(7, 5)
    found = step_cost(model, lambda: model(torch.randn(3, 7)).sum().backward())
    counted = with_update(found, [Unready(model.parameters(), lr=0.1)])
    assert counted.uncounted == ("Unready.step",) and counted.flops == found.flops and counted.has_optimizer
