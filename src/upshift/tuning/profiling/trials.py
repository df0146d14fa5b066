"""What an operator would take in another form: it is run so, on the tensors that it was just given."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from upshift.tuning.profiling.operators import Form, OperatorCall, is_image, is_permuted

NUM_REPEATS, ENOUGH_SECONDS = 4, 0.03
"""Calls of a trial, or fewer once they have taken this long."""
SMALLEST_CHANGE = 0.1
"""Share of an operator's time below which a difference is noise of so few calls."""


class AlternativeTrials:
    """Times operators beside the same on tensors of another form: float32, contiguous, channels_last.

    Each kind of call (operator, shapes, strides, dtypes) is tried once; its calls share the outcome. Operators that
    write to their arguments are tried on copies, those that draw random numbers not at all.

    Args:
        device: Where the operators run.
        budget_seconds: Begin no further trial when this is used up.
    """

    def __init__(self, device: torch.device, *, budget_seconds: float) -> None:
        self._device, self._left_seconds = device, budget_seconds
        self._known: dict[Any, Mapping[Form, float]] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], call: OperatorCall) -> OperatorCall:
        forms = _forms(call)
        if not forms or call.is_view:
            return call
        key = _signature(func, args, kwargs)
        if key not in self._known:
            start = time.perf_counter()
            self._known[key] = self._tried(func, args, kwargs, forms)
            self._left_seconds -= time.perf_counter() - start
        return replace(call, spared=self._known[key])

    def _tried(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], forms: Mapping[Form, Callable[[Any], Any]]
    ) -> Mapping[Form, float]:
        if "float32" in forms and func._overloadpacket is torch.ops.aten._to_copy:
            return {"float32": 1.0}  # a conversion from or to float64: with float32 there is none
        if torch.Tag.nondeterministic_seeded in func.tags or self._left_seconds <= 0:
            return {}
        with torch.no_grad():
            before = self._seconds(func, args, kwargs, lambda value: value)
            after = {form: self._seconds(func, args, kwargs, change) for form, change in forms.items()}
        return {
            form: _share_spared(before, seconds)
            for form, seconds in after.items()
            if before is not None and seconds is not None
        }

    def _seconds(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], changed: Callable[[Any], Any]
    ) -> float | None:
        """The best of a few calls with changed tensors; None where the operator does not take them."""
        copies = func._schema.is_mutable

        def change(value: Any) -> Any:
            new = changed(value)
            return new.clone() if copies and isinstance(new, torch.Tensor) else new

        try:
            new_args, new_kwargs = tree_map(change, args), tree_map(change, kwargs)
            func(*new_args, **new_kwargs)
            seconds: list[float] = []
            while len(seconds) < NUM_REPEATS and sum(seconds) < ENOUGH_SECONDS:
                self._synchronize()
                start = time.perf_counter()
                func(*new_args, **new_kwargs)
                self._synchronize()
                seconds.append(time.perf_counter() - start)
        except (RuntimeError, TypeError, ValueError):
            return None
        return min(seconds)

    def _synchronize(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def _forms(call: OperatorCall) -> dict[Form, Callable[[Any], Any]]:
    """The forms to try an operator in, with what each makes of an argument."""
    forms: dict[Form, Callable[[Any], Any]] = {}
    if call.is_float64:
        forms["float32"] = _as_float32
    if call.reads_permuted:
        forms["contiguous"] = _as_contiguous
    if call.reads_images:
        forms["channels_last"] = _as_channels_last
    return forms


def _share_spared(before: float, after: float) -> float:
    share = 1 - after / max(before, 1e-12)
    return share if abs(share) > SMALLEST_CHANGE else 0.0


def _as_float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
        return value.to(torch.float32)
    return torch.float32 if value is torch.float64 else value


def _as_contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, torch.Tensor) and is_permuted(value) else value


def _as_channels_last(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and is_image(value):
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _signature(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves, structure = tree_flatten((args, kwargs))
    described = tuple(
        (tuple(leaf.shape), leaf.stride(), leaf.dtype)
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided
        else type(leaf)
        for leaf in leaves
    )
    return func, str(structure), described
