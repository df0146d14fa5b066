"""Memory over a training step: what lives when, and what holds most of it at the peak."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from upshift.tuning.profiling.operators import Phase
from upshift.tuning.profiling.rehearsal import SOURCE_FILE, Batch, Rehearsal
from upshift.tuning.profiling.sites import current_frame, find_caller

MAX_POINTS = 240
NUM_HOLDERS = 5


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What made memory that lives at the peak.

    Attributes:
        name: The operator that made it.
        site: The line of code that called it, or "".
        num_bytes: That live at the peak.
    """

    name: str
    site: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryProfile:
    """The memory of tensors over a step, in bytes. What kernels take and give back within a call is not seen.

    Attributes:
        parameters: Of the model's parameters and buffers.
        gradients: Of the gradients after the backward pass.
        optimizer_state: Of what the optimizer keeps.
        peak: The most that lives at a time, all of the above included.
        peak_by_phase: The most in "forward", "backward" and "optimizer".
        timeline: (phase, bytes) after operators of the step, in order.
        holders: What the step made that lives at the peak, largest first.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    peak: int
    peak_by_phase: dict[str, int]
    timeline: tuple[tuple[str, int], ...]
    holders: tuple[Holder, ...]

    def to_json(self) -> dict[str, Any]:
        """The profile as a JSON object."""
        return asdict(self)


class MemoryLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operators make from their making to their end, while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, tuple[int, str, str]] = {}
        self._now = 0
        self._is_after_backward = False
        self.timeline: list[tuple[Phase, int]] = []
        self.peak = 0
        self.at_peak: list[tuple[int, str, str]] = []

    def begin_forward(self) -> None:
        """A forward pass begins."""
        self._is_after_backward = False

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """These were there before: views of them, and what writes to them, make no new memory."""
        for tensor in tensors:
            self._live.setdefault(_storage(tensor)._cdata, (0, "", ""))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "profiler":
            return out
        name = f"{func.namespace}::{func._schema.name.split('::')[-1]}"
        given = _sizes(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                storage = _storage(leaf)
                # What an operator was given and returns is as old as it is: it is not made here.
                if storage._cdata not in given:
                    self._add(storage, name)
        if torch._C._current_autograd_node() is not None:
            self._is_after_backward = True
            phase: Phase = "backward"
        else:
            phase = "optimizer" if self._is_after_backward else "forward"
        self.timeline.append((phase, self._now))
        if self._now > self.peak:
            self.peak, self.at_peak = self._now, [entry for entry in self._live.values() if entry[0]]
        return out

    def _add(self, storage: torch.UntypedStorage, name: str) -> None:
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()
        site = find_caller(current_frame(3), up_to=SOURCE_FILE).site
        self._live[key] = (size, name, str(site or ""))
        self._now += size
        # The Python object of a storage lives as long as the memory itself.
        weakref.finalize(storage, self._remove, key).atexit = False

    def _remove(self, key: int) -> None:
        size, _, _ = self._live.pop(key, (0, "", ""))
        self._now -= size


def profile_memory(rehearsal: Rehearsal, batches: Iterator[Batch]) -> MemoryProfile:
    """Make one step, which is not compiled, and follow its memory."""
    model, optimizers = rehearsal.model, rehearsal.optimizer.optimizers
    weights = [*model.parameters(), *model.buffers()]
    inputs, labels = next(batches)
    # Gradients of the step before are dropped at the beginning of this one.
    rehearsal.optimizer.zero_grad()
    kept = [leaf for optimizer in optimizers for leaf in tree_leaves(list(optimizer.state.values()))]
    state = [leaf for leaf in kept if isinstance(leaf, torch.Tensor)]
    log = MemoryLog()
    log.know(chain(weights, state, (inputs, labels)))
    hook = model.register_forward_pre_hook(lambda module, inputs: log.begin_forward())
    try:
        with rehearsal.uncompiled(), log:
            rehearsal.step(inputs, labels)
    finally:
        hook.remove()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    before = sum(_sizes(chain(weights, state, (inputs, labels))).values())
    phases = {phase: max((size for at, size in log.timeline if at == phase), default=0) for phase in _PHASES}
    return MemoryProfile(
        parameters=sum(_sizes(weights).values()),
        gradients=sum(_sizes(gradients).values()),
        optimizer_state=sum(_sizes(state).values()),
        peak=before + log.peak,
        peak_by_phase={phase: before + size for phase, size in phases.items()},
        timeline=tuple((phase, before + size) for phase, size in _thinned(log.timeline)),
        holders=_holders(log.at_peak),
    )


_PHASES: tuple[Phase, ...] = ("forward", "backward", "optimizer")


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _sizes(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of each storage, once."""
    strided = (tensor for tensor in tensors if tensor.layout is torch.strided)
    return {_storage(tensor)._cdata: _storage(tensor).nbytes() for tensor in strided}


def _thinned(timeline: list[tuple[Phase, int]]) -> list[tuple[Phase, int]]:
    """At most `MAX_POINTS` points, the largest of each stretch, so that no peak is lost."""
    length = -(-len(timeline) // MAX_POINTS)
    stretches = (timeline[start : start + length] for start in range(0, len(timeline), length or 1))
    return [max(stretch, key=lambda point: point[1]) for stretch in stretches]


def _holders(entries: list[tuple[int, str, str]]) -> tuple[Holder, ...]:
    sizes: dict[tuple[str, str], int] = {}
    for size, name, site in entries:
        sizes[name, site] = sizes.get((name, site), 0) + size
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:NUM_HOLDERS]
    return tuple(Holder(name=name, site=site, num_bytes=size) for (name, site), size in largest)
