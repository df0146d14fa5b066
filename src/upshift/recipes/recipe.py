"""The recipe: what is to be learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from upshift.data.config import AugmentConfig, DataConfig
from upshift.errors import ConfigError, shown
from upshift.training.config import TrainingConfig

Loss = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingConfig):
    """What is to be learned: model, data, loss, optimizer, schedule, batch size, epochs, target.

    Attributes:
        name: What the run is called.
        description: One sentence for `upshift recipes`.
        model: Factory of the model, called with `model_args`. Its output for a batch of inputs is
            a tensor of logits of shape (N, num_classes).
        model_args: Keyword arguments of the factory.
        data: The dataset.
        augment: How training images are varied and normalised.
        loss: Loss of (outputs, labels), a mean over the batch; None is cross-entropy with
            `label_smoothing`.
        variants: Named sets of overrides, as {"fast": {"optimizer.lr": 0.1}}.
    """

    name: str
    description: str = ""
    model: Callable[..., nn.Module]
    model_args: Mapping[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: Loss | None = None
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.model) or isinstance(self.model, nn.Module):
            raise ConfigError(
                "recipe.model must be a function or class that makes a torch.nn.Module, not a model itself",
                received=shown(self.model),
                hint='for example model=MyNetwork, model_args={"width": 64}',
            )
        super().__post_init__()
        if self.loss is not None and self.label_smoothing:
            raise ConfigError(
                "label_smoothing must be 0 with a loss of one's own",
                received=self.label_smoothing,
                hint="smooth within the loss",
            )
        if not self.name or any(part in self.name for part in ("/", "\\", "\0")) or self.name.startswith("."):
            raise ConfigError(
                "recipe.name must be usable as a folder name", received=repr(self.name), hint="letters, digits, - and _"
            )
