"""Whether memory is what binds a training: whether a step had to be split for it, or leaves little of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from upshift.core.environment import available_memory_bytes, memory_bytes

LEAST_FREE_SHARE = 0.1
"""Of the memory: with less than this left, caches of files and of allocators are thrown away again and again."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """What a step needs of the memory, and what there is.

    Attributes:
        num_parts: Micro-batches that a step had to be split into after running out of memory; 1 where it was not.
        saved_bytes: Activations that a step keeps for its backward pass; 0 if unknown.
        free_bytes: Of memory between two steps; 0 where `saved_bytes` is.
        total_bytes: Of memory; 0 likewise.
    """

    num_parts: int = 1
    saved_bytes: int = 0
    free_bytes: int = 0
    total_bytes: int = 0

    @property
    def binds(self) -> bool:
        """Whether a step that keeps fewer activations could be made otherwise."""
        return self.num_parts > 1 or self._leaves_too_little

    @property
    def _leaves_too_little(self) -> bool:
        return self.saved_bytes > 0 and self.free_bytes - self.saved_bytes < LEAST_FREE_SHARE * self.total_bytes

    @property
    def reason(self) -> str:
        """Why fewer activations may help."""
        if self.num_parts > 1:
            return f"a batch had to be split into {self.num_parts} parts to fit in memory"
        mib = 2**20
        return (
            f"a step keeps {self.saved_bytes / mib:,.0f} MiB of activations "
            f"where {self.free_bytes / mib:,.0f} MiB are free"
        )


def step_memory(device: torch.device, *, num_parts: int, saved_bytes: int) -> StepMemory:
    """What a step needs of a device's memory as it is now, between two steps.

    Args:
        device: Where activations are kept.
        num_parts: See `StepMemory`.
        saved_bytes: See `StepMemory`.
    """
    if not saved_bytes:  # what is free decides nothing then, and asking takes a millisecond
        return StepMemory(num_parts=num_parts)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # What torch holds of the device without using it is as good as free.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free, total = available_memory_bytes(), memory_bytes()
    return StepMemory(num_parts=num_parts, saved_bytes=saved_bytes, free_bytes=free, total_bytes=total)
