"""A model and a loader of one's own, as small as they can be, for the tests of tuning without a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES = 48
BATCH = 16


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def loader(*tensors: torch.Tensor, **settings: Any) -> DataLoader[Any]:
    tensors = tensors or (torch.randn(SAMPLES, 4), torch.randint(0, 3, (SAMPLES,)))
    return DataLoader(TensorDataset(*tensors), **({"batch_size": BATCH} | settings))
