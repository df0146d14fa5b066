"""Evaluations that memory bounds: they are made again with smaller batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias, TypeVar

import torch

from upshift.errors import ConfigError
from upshift.training.metrics import within
from upshift.training.step import is_out_of_memory

T = TypeVar("T")
Batches: TypeAlias = Iterable[tuple[torch.Tensor, torch.Tensor]]


def within_memory(
    evaluate: Callable[[Batches], T],
    batches: Callable[[], Batches],
    *,
    largest: int | None,
    note: Callable[[str], object],
) -> tuple[T, int | None]:
    """Evaluate, with half the samples at a time as often as memory does not suffice.

    Args:
        evaluate: What is made of the batches.
        batches: Gives them from the first on, at each call.
        largest: Samples that are known to fit; None where nothing is known.
        note: Told of what did not fit.

    Returns:
        What `evaluate` gave, and the samples that fitted; None where no batch had to be cut.

    Raises:
        ConfigError: One sample at a time is already too much.
    """
    while True:
        try:
            return evaluate(within(batches(), largest)), largest
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except block: the error's traceback holds the tensors that were too many.
        size = next(iter(batches()))[1].shape[0]
        tried = min(largest or size, size)
        if tried == 1:
            raise ConfigError(
                "one sample must fit in memory",
                received="out of memory in an evaluation of one sample at a time",
                hint="use a smaller model or image size, or a device with more memory",
            )
        largest = math.ceil(tried / 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        note(f"out of memory in an evaluation: at most {largest} samples are evaluated at a time")
