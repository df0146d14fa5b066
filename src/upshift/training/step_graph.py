"""A step's model, loss and gradients as one compiled function.

`torch.compile(model)` makes two graphs, of the forward and of the backward pass, between which autograd runs, and cuts
the one in two so that little is kept for the other. As one graph of the function transform `torch.func.grad_and_value`
there is nothing to keep, and no autograd in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad_and_value

from upshift.errors import UpshiftError
from upshift.training.batches import Tree, at_least_single, call
from upshift.training.buffers import Buffers
from upshift.training.rng import restore_rng_state, rng_state


class StepGraphError(UpshiftError):
    """A model or loss that cannot be computed as one function of its parameters and buffers."""


class StepGraph:
    """Computes loss, outputs and gradients of batches of one shape.

    Args:
        model: On its device.
        loss: Of (outputs, labels): a mean over the batch.
        mode: Of torch.compile.
        autocast: Makes the context that the model is called in.
        device: Where.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        *,
        mode: str | None,
        autocast: Callable[[], AbstractContextManager[Any]],
        device: torch.device,
    ) -> None:
        self._model, self._loss, self._autocast, self._device = model, loss, autocast, device
        self._parameters = list(model.parameters())
        self._buffers = dict(model.named_buffers())
        self._take_trained()
        self._compiled = torch.compile(
            grad_and_value(self._value, has_aux=True), mode=mode, fullgraph=True, dynamic=False
        )

    def _take_trained(self) -> None:
        """Compute the gradients of those parameters from now on that are trained now."""
        self._are_trained = [weight.requires_grad for weight in self._parameters]
        self._trained: dict[str, torch.Tensor] = {
            name: weight for name, weight in self._model.named_parameters() if weight.requires_grad
        }
        self._is_checked = False

    def _value(
        self, trained: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor], inputs: Tree, labels: Tree
    ) -> tuple[torch.Tensor, Any]:
        with self._autocast():
            outputs = _called_with(self._model, (trained, buffers), inputs)
        outputs = at_least_single(outputs)
        return self._loss(outputs, labels), outputs

    def __call__(self, inputs: Tree, labels: Tree, *, share: float = 1.0) -> tuple[torch.Tensor, Any]:
        """Add a batch's gradients to those of the parameters.

        Args:
            inputs: Model-ready batch (N, …) on the device.
            labels: Class indices (N,), or whatever the loss takes.
            share: What the gradients are multiplied by: of a part of a batch, its share of the samples.

        Returns:
            The mean loss over the batch (scalar) and the outputs, neither part of an autograd graph.

        Raises:
            StepGraphError: The model or the loss does what a function of parameters and buffers cannot.
        """
        if [weight.requires_grad for weight in self._parameters] != self._are_trained:  # another stage of training
            self._take_trained()
        if not self._is_checked or self._has_hooks():
            self._check(inputs, labels)
            self._is_checked = True
        # The transform differentiates by itself: autograd outside it would have a graph of the gradients made.
        with torch.no_grad():
            gradients, (loss, outputs) = self._compiled(self._trained, self._buffers, inputs, labels)
            taken: set[int] = set()
            for name, parameter in self._trained.items():
                _add(parameter, gradients[name] if share == 1.0 else gradients[name] * share, taken)
        return loss, outputs

    def _has_hooks(self) -> bool:
        return any(weight._backward_hooks or weight._post_accumulate_grad_hooks for weight in self._trained.values())

    def _check(self, inputs: Tree, labels: Tree) -> None:
        """Make the step plainly once, and refuse what the function would do otherwise without an error."""
        parameters = self._trained.values()
        if self._has_hooks():
            raise StepGraphError("a parameter has a hook on its gradient, which one compiled graph would not call")
        buffers, generators = Buffers(self._model), rng_state(self._device)
        places = {name: id(buffer) for name, buffer in self._model.named_buffers()}
        gradients = [weight.grad for weight in parameters]
        try:
            with self._autocast():
                outputs = call(self._model, inputs)
            value = self._loss(at_least_single(outputs), labels)
            found = torch.autograd.grad(value, list(parameters), allow_unused=True)
            if any(gradient is None for gradient in found):
                raise StepGraphError("a parameter takes no part in the loss: its gradient would be 0 and not none")
            if places != {name: id(buffer) for name, buffer in self._model.named_buffers()}:
                raise StepGraphError("the model puts other tensors in the place of its buffers")
        finally:
            for weight, gradient in zip(parameters, gradients, strict=True):
                weight.grad = gradient
            buffers.restore()
            restore_rng_state(generators, self._device)


def _called_with(model: nn.Module, state: tuple[dict[str, torch.Tensor], ...], inputs: Tree) -> Any:
    """A model's outputs with other parameters and buffers than its own; see `batches.call`."""
    if isinstance(inputs, Mapping):
        return functional_call(model, state, (), dict(inputs))
    return functional_call(model, state, tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,))


def _add(parameter: torch.Tensor, gradient: torch.Tensor, taken: set[int]) -> None:
    """Add a gradient; one that lies in memory which is taken is copied: of a + b, the graph gives one tensor twice."""
    if parameter.grad is not None:
        parameter.grad += gradient
        return
    # Fused optimizers go through both as they lie in memory.
    if gradient.stride() != parameter.stride() or gradient.untyped_storage().data_ptr() in taken:
        gradient = torch.empty_like(parameter).copy_(gradient)
    taken.add(gradient.untyped_storage().data_ptr())
    parameter.grad = gradient
