"""What a training step costs, whatever machine it runs on: operations, and bytes that it cannot avoid to move."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

_WITHOUT_ARITHMETIC = ("aten", "prim", "prims", "profiler", "c10d", "_c10d_functional")
"""Namespaces of operators that do little arithmetic, with the exceptions below."""
_WITHOUT_FORMULA = ("_transformer_encoder_layer_fwd", "_native_multi_head_attention", "_fft_", "linalg_", "_cdist_")
"""Operators of torch itself that do much arithmetic and are not counted, by the beginning of their names."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one training step takes at least.

    Attributes:
        flops: Floating-point operations of matrix products, convolutions, attention and recurrent layers, forward
            and backward, and of an optimizer that makes such products; a multiplication with its addition counts as
            two. Element-wise work, norms, pooling, embeddings and other optimizers count as none: it is memory that
            limits these.
        parameter_bytes: Size of all parameters of the model.
        trained_bytes: Size of those that get a gradient; their gradients are as large.
        optimizer_state_bytes: Size of the optimizer's state.
        saved_bytes: Size of the tensors that the forward pass kept for the backward pass, inputs among them, each
            storage once: the activations. Parameters are not among them.
        saved_parameter_bytes: Size of the parameters that the backward pass read again.
        has_optimizer: Whether `bytes_min` has the optimizer's part.
        uncounted: Operators that ran and whose operations are not in `flops`, by name: custom operators, and those
            of torch that do much arithmetic and have no formula.
    """

    flops: int
    parameter_bytes: int
    trained_bytes: int
    optimizer_state_bytes: int
    saved_bytes: int
    saved_parameter_bytes: int
    has_optimizer: bool
    uncounted: tuple[str, ...] = ()

    @property
    def bytes_min(self) -> int:
        """Bytes that the step reads and writes at least.

        Parameters are read once by the forward pass and, where it needs them, once by the backward pass;
        activations and gradients are written once and read once; the optimizer reads and writes parameters and
        state. It bounds from below what any implementation moves that keeps the same tensors for the backward
        pass, however well its kernels are fused: whatever lives between two kernels is left out. A compiled
        step that computes activations anew instead of keeping them can do with less. Only what does not fit
        into the caches has to go through memory.
        """
        passes = self.parameter_bytes + self.saved_parameter_bytes + 2 * self.saved_bytes + self.trained_bytes
        # The optimizer reads gradients, and reads and writes parameters and state.
        return passes + (3 * self.trained_bytes + 2 * self.optimizer_state_bytes if self.has_optimizer else 0)


def step_cost(
    model: nn.Module,
    run_step: Callable[[], object],
    *,
    optimizer: torch.optim.Optimizer | None = None,
) -> StepCost:
    """Count a step's operations, by PyTorch's own counter, and the bytes that it has to move.

    The step is run once, with all that it does: a step of a training that goes on is one of its steps. It runs
    eagerly even where the model is compiled, as fused kernels cannot be looked into.

    What the counter cannot see is not counted and cannot be named either: kernels that are launched past
    PyTorch's dispatcher, as extensions do that were not registered as operators.

    Args:
        model: Its parameters and, by running it, its activations.
        run_step: One step: forward, backward and, if the optimizer is given, its step.
        optimizer: What `run_step` steps with.

    Raises:
        RuntimeError: From `run_step`, where the model uses transforms of `torch.func`, which forbid to watch the
            tensors that are kept for the backward pass.
    """
    parameters = set(model.parameters())
    kept = _KeptTensors({_storage_key(parameter) for parameter in parameters})
    names = _OperatorNames()
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=_formulas())
    with _eagerly(), counter, names, torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        run_step()
    return StepCost(
        flops=int(counter.get_total_flops()),
        parameter_bytes=sum(map(_num_bytes, parameters)),
        trained_bytes=sum(_num_bytes(parameter) for parameter in parameters if parameter.requires_grad),
        optimizer_state_bytes=_state_bytes(optimizer) if optimizer is not None else 0,
        saved_bytes=kept.num_bytes,
        saved_parameter_bytes=kept.num_parameter_bytes,
        has_optimizer=optimizer is not None,
        uncounted=names.uncounted(set(counter.flop_registry)),
    )


def with_update(cost: StepCost, optimizers: Sequence[torch.optim.Optimizer]) -> StepCost:
    """The cost of a step's forward and backward pass with that of updating the weights.

    The state of the optimizers is as large as it is now: they have made a step or more. Those of torch make no products
    of matrices, but for Muon; of any other, a step is made by a copy, whose gradients are zero; it may draw random
    numbers.

    Args:
        cost: Of the passes.
        optimizers: What updates the weights.
    """
    flops, uncounted = cost.flops, set(cost.uncounted)
    for optimizer in optimizers:
        kind = type(optimizer)
        if kind.__module__.startswith("torch.optim.") and kind is not torch.optim.Muon:
            continue
        try:
            flops += _update_flops(optimizer)
        except Exception:  # of a lack of memory, of code of another package
            uncounted.add(f"{kind.__name__}.step")
    return replace(
        cost,
        flops=flops,
        optimizer_state_bytes=sum(map(_state_bytes, optimizers)),
        has_optimizer=True,
        uncounted=tuple(sorted(uncounted)),
    )


def _update_flops(optimizer: torch.optim.Optimizer) -> int:
    copied = copy.deepcopy(optimizer)
    for group in copied.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    with flop_counter.FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        copied.step()
    return int(counter.get_total_flops())


class _Kept:
    """A tensor that autograd holds; it can be watched when it is let go."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class _KeptTensors:
    """Adds up the tensors that autograd keeps, a storage once for as long as it is kept.

    Addresses are used again by later tensors, so that a storage is known again only while a tensor of it is
    held: this counts who holds it.

    Args:
        parameters: Storages of the parameters.
    """

    def __init__(self, parameters: set[tuple[torch.device, int] | None]) -> None:
        self._parameters = parameters
        self._holders: Counter[tuple[torch.device, int]] = Counter()
        self.num_bytes = 0
        self.num_parameter_bytes = 0

    def pack(self, tensor: torch.Tensor) -> _Kept:
        kept = _Kept(tensor)
        key = _storage_key(tensor)
        if key is not None:
            if not self._holders[key]:
                size = min(_num_bytes(tensor), tensor.untyped_storage().nbytes())
                if key in self._parameters:
                    self.num_parameter_bytes += size
                else:
                    self.num_bytes += size
            self._holders[key] += 1
            weakref.finalize(kept, self._release, key).atexit = False
        return kept

    @staticmethod
    def unpack(kept: _Kept) -> torch.Tensor:
        return kept.tensor

    def _release(self, key: tuple[torch.device, int]) -> None:
        self._holders[key] -= 1


class _OperatorNames(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers which operators ran."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._seen.add(func._overloadpacket)
        return func(*args, **(kwargs or {}))

    def uncounted(self, counted: set[Any]) -> tuple[str, ...]:
        """Names of those that do arithmetic for which there is no formula."""
        names = set()
        for operator in self._seen - counted:
            namespace, _, name = operator._qualified_op_name.partition("::")
            if namespace not in _WITHOUT_ARITHMETIC or name.startswith(_WITHOUT_FORMULA):
                names.add(f"{namespace}::{name}")
        return tuple(sorted(names))


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    # Without the compiler nothing is compiled, and to import it takes seconds.
    has_compiler = "torch._dynamo" in sys.modules
    stance = torch.compiler.set_stance("force_eager") if has_compiler else contextlib.nullcontext()
    with warnings.catch_warnings(), stance:
        # Of the counter's own hooks, about modules that are compiled: they are not, here.
        warnings.filterwarnings("ignore", message=".*when there are global hooks on modules", category=UserWarning)
        yield


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """Each operator that has one, with its formula: the operations of a call, of its arguments and `out_val`."""
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=_formulas())
    return dict(counter.flop_registry)


def _formulas() -> dict[Any, Callable[..., int]]:
    """Operators that PyTorch 2.13 has no formula for: attention on the CPU and recurrent layers."""
    formulas: dict[str, Callable[..., int]] = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
        "mkldnn_rnn_layer": _recurrent,
        "mkldnn_rnn_layer_backward": _recurrent_backward,
        "_cudnn_rnn": _recurrent,
        "_cudnn_rnn_backward": _recurrent_backward,
    }
    missing = {getattr(torch.ops.aten, name): formula for name, formula in formulas.items()}
    return {operator: formula for operator, formula in missing.items() if operator not in flop_counter.flop_registry}


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(flop_counter.sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(flop_counter.sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


def _recurrent(inputs: Any, *arguments: Any, **_: Any) -> int:
    """Each weight matrix is multiplied with the inputs or states of every sample and position.

    `inputs` is (positions, samples, features) or (tokens, features), then weights follow, one by one (oneDNN) or
    as a list (cuDNN), and then states, which have three dimensions.
    """
    listed = arguments[0] if isinstance(arguments[0], list | tuple) and not _is_shape(arguments[0]) else arguments[:4]
    matrices = [shape for shape in listed if _is_shape(shape) and len(shape) == 2]
    return int(2 * math.prod(inputs[:-1]) * sum(math.prod(shape) for shape in matrices))


def _recurrent_backward(inputs: Any, *arguments: Any, **_: Any) -> int:
    """Twice the forward pass: the gradients of the inputs, and those of the weights."""
    return 2 * _recurrent(inputs, *arguments)


def _is_shape(value: Any) -> bool:
    return isinstance(value, torch.Size)


def _storage_key(tensor: torch.Tensor) -> tuple[torch.device, int] | None:
    """A storage's place; None for tensors without one of their own, as sparse ones or those of a subclass."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None
    return (tensor.device, address) if address else None


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(
        _num_bytes(value)
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
