"""The order of an epoch: which sample is where, from the seed and the epoch's number alone."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

from upshift.errors import ConfigError

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Inputs and labels."""

ORDER_STREAM = 0
"""Tells the order's random numbers from those of the augmentation, which follow from the same seed and epoch."""


def epoch_order(seed: int, epoch: int, num_samples: int) -> torch.Tensor:
    """The order of an epoch's samples: a permutation that follows from (seed, epoch) alone, int64 (N,)."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, ORDER_STREAM])))
    return torch.from_numpy(generator.permutation(num_samples))


def checked_batch_size(batch_size: int, num_samples: int, *, training: bool) -> int:
    """The batch size to use: as asked for training, at most the split for evaluation.

    Raises:
        ConfigError: It is below 1, or larger than the training split.
    """
    if batch_size < 1:
        raise ConfigError("batch_size must be at least 1", received=batch_size, hint="64 is a usual value")
    if training and batch_size > num_samples:
        raise ConfigError(
            f"batch_size must be at most the {num_samples} samples of the training split",
            received=batch_size,
            hint=f"--set batch_size={num_samples} or less",
        )
    return min(batch_size, num_samples)
