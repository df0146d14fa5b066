"""Every operator of a training step: what it is, what it works on, and which line of code called it.

Operators are seen where autograd has done its part and the kernels are about to be called (a TorchDispatchMode), so
that the names are ATen's, forward and backward alike. An operator of the backward pass belongs to the line of the
forward pass that made its autograd node: the two have one sequence number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal, TypeAlias, TypedDict

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from upshift.core.flops import flop_formulas
from upshift.tuning.profiling.rehearsal import SOURCE_FILE, Batch, Rehearsal
from upshift.tuning.profiling.sites import Site, current_frame, find_caller

Form: TypeAlias = Literal["float32", "contiguous", "channels_last"]
"""Another form of an operator's tensors."""
Phase: TypeAlias = Literal["forward", "backward", "optimizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCall:
    """One call of an operator.

    Attributes:
        name: As "aten::mm".
        phase: Of the step.
        site: The line of the user's code that it belongs to; None where that is torch's or upshift's own.
        invocation: Number of the call of the site's function within the step; 0 without a site.
        module: Which torch module that line called, if any, called the operator; 0 if none did.
        flops: Floating-point operations; 0 where PyTorch's counter has no formula (all but products, convolutions
            and attention).
        num_bytes: What it reads and writes at least: each tensor once.
        is_pointwise: Whether it works element by element.
        is_view: Whether it only describes memory anew.
        reads_back: Whether the host waits for a value of it.
        is_float64: Whether it reads or writes a float64 tensor of more than one element.
        changes_layout: Whether it copies a tensor into another order of memory and does nothing else.
        reads_permuted: Whether it reads a tensor whose memory is in an order of no usual layout.
        reads_images: Whether it computes on tensors (N, C, H, W) whose memory is not in channels_last.
        spared: Share of its time that another form of it spares, by running it so (below 0 where it takes longer);
            forms that were not tried are missing.
    """

    name: str
    phase: Phase
    site: Site | None
    invocation: int
    module: int
    flops: int
    num_bytes: int
    is_pointwise: bool
    is_view: bool
    reads_back: bool
    is_float64: bool
    changes_layout: bool
    reads_permuted: bool
    reads_images: bool
    spared: Mapping[Form, float] = field(default_factory=dict)


Trial: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any], "OperatorCall"], "OperatorCall"]
"""Given an operator, its arguments and the record of its call, the record with what another form would spare."""


@dataclass(frozen=True, slots=True)
class _Place:
    site: Site | None
    invocation: int
    module: int


class OperatorLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down each operator while it is entered.

    Args:
        trial: Asked for each call; None asks nobody.
    """

    def __init__(self, trial: Trial | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trial = trial
        self._calls: list[OperatorCall] = []
        self._places: dict[int, _Place] = {}
        self._frames: dict[int, tuple[int, FrameType]] = {}
        self._is_after_backward = False

    def begin_forward(self) -> None:
        """A forward pass begins: the one of the step, or of its next micro-batch."""
        self._is_after_backward = False

    def take(self) -> list[OperatorCall]:
        """The calls since the last time, in order."""
        calls, self._calls = self._calls, []
        self._places, self._frames = {}, {}
        return calls

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace != "profiler":
            phase, place = self._place()
            call = OperatorCall(
                phase=phase,
                site=place.site,
                invocation=place.invocation,
                module=place.module,
                **describe(func, args, kwargs, out),
            )
            self._calls.append(call if self._trial is None else self._trial(func, args, kwargs, call))
        return out

    def _place(self) -> tuple[Phase, _Place]:
        """The phase of the step, and where in the code."""
        caller = find_caller(current_frame(2), up_to=SOURCE_FILE)
        place = _Place(caller.site, self._invocation(caller.frame), caller.module)
        node = torch._C._current_autograd_node()
        if node is not None:
            self._is_after_backward = True
            # Python of the backward pass (an autograd.Function of the user's) is on the stack itself.
            return "backward", place if place.site else self._places.get(node._sequence_nr(), place)
        if self._is_after_backward:
            return "optimizer", place
        self._places.setdefault(torch.autograd._get_sequence_nr() - 1, place)
        return "forward", place

    def _invocation(self, frame: FrameType | None) -> int:
        if frame is None:
            return 0
        # The frame is kept to the end of the step: another one could get its id otherwise.
        number, _ = self._frames.setdefault(id(frame), (len(self._frames) + 1, frame))
        return number


class _Facts(TypedDict):
    name: str
    flops: int
    num_bytes: int
    is_pointwise: bool
    is_view: bool
    reads_back: bool
    is_float64: bool
    changes_layout: bool
    reads_permuted: bool
    reads_images: bool


def describe(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> _Facts:
    """What can be told of a call of an ATen operator from its arguments and outputs."""
    read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    is_view = bool(func.is_view) or func._overloadpacket in _DESCRIBE_MEMORY
    on_host = all(tensor.device.type == "cpu" for tensor in read)
    tags = func.tags
    changes_layout = _changes_layout(func, read, written)
    return {
        "name": f"{func.namespace}::{func._schema.name.split('::')[-1]}",
        "flops": _flops(func, args, kwargs, out),
        "num_bytes": 0 if is_view else sum(num_bytes(tensor) for tensor in (*read, *written)),
        "is_pointwise": torch.Tag.pointwise in tags,
        "is_view": is_view,
        "reads_back": torch.Tag.data_dependent_output in tags
        or (not on_host and (torch.Tag.dynamic_output_shape in tags or any(t.device.type == "cpu" for t in written))),
        "is_float64": any(tensor.dtype == torch.float64 and tensor.numel() > 1 for tensor in (*read, *written)),
        "changes_layout": changes_layout,
        "reads_permuted": not is_view and any(is_permuted(tensor) for tensor in read),
        "reads_images": not is_view and not changes_layout and any(is_image(tensor) for tensor in read),
    }


_DESCRIBE_MEMORY = {torch.ops.aten.detach, torch.ops.aten._unsafe_view, torch.ops.aten._reshape_alias}
_COPIES = {torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._to_copy, torch.ops.aten.contiguous}


def num_bytes(tensor: torch.Tensor) -> int:
    """Bytes of memory that a tensor's elements lie in; an expanded one has fewer than elements."""
    if tensor.layout is not torch.strided:
        return 0
    own = tensor.numel() * tensor.element_size()
    return min(own, tensor.untyped_storage().nbytes())


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    count = _formulas().get(func._overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))


_formulas = functools.cache(flop_formulas)


def memory_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """The dimensions from the one that steps furthest through memory to the one that steps least; no expanded ones."""
    if tensor.layout is not torch.strided:
        return ()
    strides = tensor.stride()
    dims = [dim for dim in range(tensor.dim()) if tensor.shape[dim] > 1 and strides[dim] > 0]
    return tuple(sorted(dims, key=lambda dim: strides[dim], reverse=True))


def is_permuted(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is in the order of no usual layout: neither row by row nor channels_last."""
    if tensor.layout is not torch.strided or tensor.numel() < 2:
        return False
    order = memory_order(tensor)
    if order == tuple(sorted(order)):
        return False
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = layouts.get(tensor.dim())
    return layout is None or not tensor.is_contiguous(memory_format=layout)


def is_image(tensor: torch.Tensor) -> bool:
    """Whether a tensor (N, C, H, W) lies row by row, where channels_last would be another order."""
    return (
        tensor.dim() == 4
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_contiguous(memory_format=torch.channels_last)
    )


def _changes_layout(func: Any, read: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> bool:
    if func._overloadpacket not in _COPIES or not read or not written:
        return False
    source, target = read[-1], written[0]
    alike = source.shape == target.shape and source.dtype == target.dtype and source.device == target.device
    before, after = memory_order(source), memory_order(target)
    return alike and set(before) == set(after) and before != after


def log_step(rehearsal: Rehearsal, batch: Batch, trial: Trial) -> list[OperatorCall]:
    """Make a step and write down its operators, in order."""
    log = OperatorLog(trial)
    hook = rehearsal.model.register_forward_pre_hook(lambda module, inputs: log.begin_forward())
    try:
        with log:
            rehearsal.step(*batch)
    finally:
        hook.remove()
    return log.take()
