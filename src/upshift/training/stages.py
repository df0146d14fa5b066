"""Staged training: which stage an epoch is in, and what is frozen in it."""

from __future__ import annotations

import fnmatch

from torch import nn

from upshift.errors import ConfigError
from upshift.training.config import StageConfig


class Stages:
    """The stages of a training, for a model.

    Raises:
        ConfigError: A pattern matches no parameter, or a stage leaves none to train.
    """

    def __init__(self, model: nn.Module, stages: tuple[StageConfig, ...]) -> None:
        self._stages = stages
        # Parameters that the model itself freezes stay frozen.
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        names = list(self._trainable)
        for stage in stages:
            for pattern in stage.freeze:
                if not fnmatch.filter(names, pattern):
                    raise ConfigError(
                        "stages.freeze must match parameters of the model",
                        received=repr(pattern),
                        hint=f"its parameters are {', '.join(names[:6])}…",
                    )
            if names and all(_matches(name, stage.freeze) for name in names):
                raise ConfigError(
                    "a stage must leave some parameters to train",
                    received=f"freeze={stage.freeze}",
                    hint="narrow the patterns",
                )

    def enter(self, epoch: int) -> StageConfig | None:
        """Freeze what the stage of an epoch freezes, and give the stage; None where there are no stages."""
        stage = self._at(epoch)
        self._freeze(stage.freeze if stage else ())
        return stage

    def leave(self) -> None:
        """Let everything be trained again that was at the start."""
        self._freeze(())

    def _at(self, epoch: int) -> StageConfig | None:
        for stage in self._stages:
            if epoch < stage.epochs:
                return stage
            epoch -= stage.epochs
        return None

    def _freeze(self, patterns: tuple[str, ...]) -> None:
        for name, parameter in self._trainable.items():
            parameter.requires_grad_(not _matches(name, patterns))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
