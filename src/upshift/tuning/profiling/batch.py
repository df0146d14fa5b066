"""What a step gains from larger batches, by making some."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from upshift.tuning.profiling.rehearsal import Batch, Rehearsal

SMALL_BATCH = 64
"""Batches of at least so many samples are not called small: most published recipes begin there."""
NUM_ROUNDS = 16


@dataclass(frozen=True, kw_only=True)
class BatchScaling:
    """A step of the batch as it is beside one of a larger batch.

    Attributes:
        batch_size: Samples as it is.
        larger_batch_size: Samples of the other.
        seconds: Of a step as it is.
        ratio: Time of a step of the larger batch by that of a step as it is, measured side by side.
    """

    batch_size: int
    larger_batch_size: int
    seconds: float
    ratio: float

    @property
    def spared_share(self) -> float:
        """The share of a step that its samples would take less, were they part of the larger batch."""
        return max(0.0, 1 - self.ratio * self.batch_size / self.larger_batch_size)


def measure_scaling(rehearsal: Rehearsal, batches: Iterator[Batch], *, max_seconds: float) -> BatchScaling | None:
    """Time steps of a larger batch in turn with steps as they are, on batches that stay in memory.

    Args:
        rehearsal: Makes the steps.
        batches: Its batches, all of the same size.
        max_seconds: Begin no further round after this long.

    Returns:
        None where the batch is not small, or there are not samples enough.
    """
    size = rehearsal.config.batch_size
    larger = min(SMALL_BATCH, rehearsal.num_samples // 2) // size * size
    if size >= SMALL_BATCH or larger < 2 * size:
        return None
    parts = [next(batches) for _ in range(larger // size)]
    # Copies: batches of some loaders are views of a memory that they use again.
    small = [(inputs.clone(), labels.clone()) for inputs, labels in parts]
    large = torch.cat([inputs for inputs, _ in small]), torch.cat([labels for _, labels in small])
    other = rehearsal.with_batch_size(larger)
    few: list[float] = []
    ratios: list[float] = []
    start = time.perf_counter()
    try:
        for number in range(NUM_ROUNDS):
            more, as_it_is = _seconds(other, [large]), _seconds(rehearsal, small[:8])
            if number > 0:  # the first round warms up
                few.append(as_it_is)
                ratios.append(more / as_it_is)
            if number >= 3 and time.perf_counter() - start > max_seconds:
                break
    finally:
        other.release()
    return BatchScaling(
        batch_size=size,
        larger_batch_size=larger,
        seconds=statistics.median(few),
        ratio=statistics.median(ratios),
    )


def _seconds(rehearsal: Rehearsal, batches: list[Batch]) -> float:
    rehearsal.synchronize()
    start = time.perf_counter()
    for batch in batches:
        rehearsal.step(*batch)
    rehearsal.synchronize()
    return (time.perf_counter() - start) / len(batches)
