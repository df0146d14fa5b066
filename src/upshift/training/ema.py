"""An exponential moving average of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class ExponentialMovingAverage:
    """Keeps the average of a model's parameters and swaps it in for evaluation.

    The decay grows from 0.1 as (1 + n) / (10 + n) up to `decay`, so that the average of a short run is not
    dominated by its random start (as in TensorFlow's ExponentialMovingAverage). Buffers are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self._names = list(self._parameters)
        self.num_updates = 0
        self.averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current parameters; call after each optimizer step."""
        self.num_updates += 1
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.averages.values()), [p.detach() for p in self._parameters.values()], 1.0 - decay)

    @torch.no_grad()
    def load(self, averages: dict[str, torch.Tensor], num_updates: int) -> None:
        """Take back a saved average."""
        for name, average in self.averages.items():
            average.copy_(averages[name])
        self.num_updates = num_updates

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model has the averaged parameters within this context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            current = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(current)
