"""Multilayer perceptrons."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn


class MLP(nn.Module):
    """Fully connected layers with ReLU between them; images and texts are flattened first.

    Input (N, *input_shape), output logits (N, num_classes). With the defaults this is 784–128–64–10,
    109,386 parameters.

    Args:
        input_shape: Shape of a sample.
        num_classes: Number of logits.
        hidden: Width of each hidden layer.
        dropout: Share of hidden activations that are dropped while training (arXiv 1207.0580).
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        width = math.prod(input_shape)
        for index, hidden_width in enumerate(hidden, start=1):
            layers[f"fc{index}"] = nn.Linear(width, hidden_width)
            layers[f"relu{index}"] = nn.ReLU(inplace=True)
            if dropout > 0:
                layers[f"dropout{index}"] = nn.Dropout(dropout)
            width = hidden_width
        layers["head"] = nn.Linear(width, num_classes)
        self.layers = nn.Sequential(layers)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(inputs)
        return logits
