"""A recipe whose steps take long on the simulated clock, unless its convolutions are laid out channels last."""

from __future__ import annotations

import torch
from torch import nn

from simulated_clock import spend
from upshift import DataConfig, OptimizerConfig, Recipe


class Layered(nn.Module):
    """Convolutions, batch norm and dropout, slower in one of the two layouts.

    Args:
        seconds: How much longer a training step takes there.
        in_channels_last: Whether it is that layout in which it is slower.
    """

    def __init__(self, num_classes: int = 10, seconds: float = 0.006, in_channels_last: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, num_classes)
        self.seconds, self.in_channels_last = seconds, in_channels_last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        is_slow = self.conv.weight.is_contiguous() != self.in_channels_last
        spend(0.002 + (self.seconds if is_slow else 0.0))
        features = self.conv(torch.relu(self.norm(self.stem(images))))
        return self.head(self.dropout(features.mean((2, 3))))


RECIPE = Recipe(
    name="layered",
    model=Layered,
    data=DataConfig(source="digits"),
    epochs=20,
    log_every=1,
    optimizer=OptimizerConfig(lr=0.002, momentum=0.9),
)
