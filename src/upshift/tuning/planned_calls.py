"""How a module is called by a plan: compiled, under autocast, with recomputed activations; its class stays."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from upshift.training.batches import at_least_single, map_tensors, shapes
from upshift.training.execution import AUTOCAST_DTYPES, CUDA_GRAPH_MODES, recomputed, repeated_blocks

if TYPE_CHECKING:
    from upshift.tuning.plan import Plan

Forward = Callable[..., Any]

MAX_COMPILED_SHAPES = 2
"""Shapes of a model's inputs that it is compiled for; others run eagerly."""
COMPILED_SHARE = 0.25
"""Of the calls so far, which must be of a shape for it to be compiled for."""


def call_as_planned(model: nn.Module, plan: Plan) -> None:
    """Call a model as a plan says from now on, and no longer as an earlier plan said.

    An instance attribute `forward` is put before that of the class, on the model and on the blocks that repeat in it:
    the modules stay the objects that they are, with their classes, parameters, hooks and state-dict keys.
    """
    call_plainly(model)
    is_compiled = _Fits() if plan.compile != "none" else None
    if plan.activation_checkpointing or plan.compile == "regional":
        for block in repeated_blocks(model):
            block.forward = BlockForward(
                block.forward,
                block=block,
                compiled=_compiled(block.forward, plan) if plan.compile == "regional" else None,
                fits=is_compiled,
                recompute=plan.activation_checkpointing,
            )
    if plan.compile != "none" or plan.precision in AUTOCAST_DTYPES:
        model.forward = ModelForward(
            model.forward,
            model=model,
            compiled=_compiled(model.forward, plan) if plan.compile == "whole" else None,
            fits=is_compiled,
            autocast=AUTOCAST_DTYPES.get(plan.precision),
            records_graphs=plan.compile_mode in CUDA_GRAPH_MODES,
        )


def call_plainly(model: nn.Module) -> None:
    """Take back what `call_as_planned` did."""
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, PlannedForward):
            forward.remove_from(module)


def _compiled(forward: Forward, plan: Plan) -> Forward:
    # Compiled dropout would draw other masks than eager dropout. As an option and not for the whole process: what else
    # the user compiles stays as it is.
    options: dict[str, Any] = {"fallback_random": True}
    if plan.compile_mode is not None:
        options |= torch._inductor.list_mode_options(plan.compile_mode)
    compiled: Forward = torch.compile(forward, dynamic=False, options=options)
    return compiled


class _Fits:
    """Whether a call's inputs are of shapes that are compiled for: those of a good part of the calls.

    A single sample to try the model out, the smaller last batch of an epoch and texts of every length would each be
    compiled once more.
    """

    def __init__(self) -> None:
        self._num_calls = 0
        self._counts: Counter[object] = Counter()
        self._compiled: set[object] = set()
        self.now = False

    def look(self, inputs: Any) -> None:
        """Note the inputs of the call that begins."""
        key = shapes(inputs)
        if len(self._compiled) < MAX_COMPILED_SHAPES:
            self._num_calls += 1
            self._counts[key] += 1
            if self._counts[key] > 1 and self._counts[key] >= COMPILED_SHARE * self._num_calls:
                self._compiled.add(key)
        self.now = key in self._compiled


class PlannedForward(ABC):
    """Stands for a module's `forward`, as an attribute of the instance.

    A copy of the module, and what is pickled of it, gets the `forward` that was there before: compiled code and what
    belongs to another module's call cannot go with it.
    """

    def __init__(self, forward: Forward) -> None:
        functools.update_wrapper(self, forward)  # frameworks read the names of its parameters
        if hasattr(forward, "__code__"):
            self.__code__ = forward.__code__  # torch.export reads where it was written
        self._forward = forward

    @abstractmethod
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The module's outputs."""

    def remove_from(self, module: nn.Module) -> None:
        """Give a module the `forward` back that it had."""
        if _method_of_class(self._forward) is None:
            module.forward = self._forward
        else:
            del module.__dict__["forward"]

    def __reduce__(self) -> tuple[Any, ...]:
        method = _method_of_class(self._forward)
        return (functools.partial, (self._forward,)) if method is None else (getattr, (method.__self__, "forward"))


def _method_of_class(forward: Forward) -> MethodType | None:
    """A module's `forward` where it is the method of its class; None for one that was set on the instance."""
    if isinstance(forward, MethodType) and forward.__func__ is getattr(type(forward.__self__), "forward", None):
        return forward
    return None


class BlockForward(PlannedForward):
    """The `forward` of a block that repeats in a model."""

    def __init__(
        self, forward: Forward, *, block: nn.Module, compiled: Forward | None, fits: _Fits | None, recompute: bool
    ) -> None:
        super().__init__(forward)
        # Not found by its `forward`, which may be a function that somebody has put there.
        self._block, self._compiled, self._fits, self._recompute = block, compiled, fits, recompute

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        forward = self._forward
        if self._compiled is not None and self._fits is not None and self._fits.now:
            forward = self._compiled
        if self._recompute and torch.is_grad_enabled():
            forward = recomputed(forward, self._block)
        return forward(*arguments, **named)


class ModelForward(PlannedForward):
    """The `forward` of a whole model; in evaluation it is compiled for nothing."""

    def __init__(
        self,
        forward: Forward,
        *,
        model: nn.Module,
        compiled: Forward | None,
        fits: _Fits | None,
        autocast: torch.dtype | None,
        records_graphs: bool,
    ) -> None:
        super().__init__(forward)
        self._model, self._compiled, self._fits, self._dtype = model, compiled, fits, autocast
        self._records_graphs = records_graphs

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        forward = self._forward
        if self._fits is not None and self._model.training and torch.is_grad_enabled():
            self._fits.look((arguments, named))
            try:
                if self._fits.now and self._compiled is not None:
                    forward = self._compiled
                outputs = self._call(forward, arguments, named)
                return map_tensors(_kept, outputs) if self._fits.now and self._records_graphs else outputs
            finally:
                self._fits.now = False
        return self._call(forward, arguments, named)

    def _call(self, forward: Forward, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._dtype is None:
            return forward(*arguments, **named)
        parameter = next(self._model.parameters(), None)
        with torch.autocast("cpu" if parameter is None else parameter.device.type, self._dtype):
            outputs = forward(*arguments, **named)
        return at_least_single(outputs)


def _kept(output: torch.Tensor) -> torch.Tensor:
    """An output that lasts: what a CUDA graph gives lies in memory that its next replay overwrites."""
    return output.clone() if output.is_cuda else output
