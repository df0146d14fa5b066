"""Between the loop that makes steps and who changes, while it does, how they are executed."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from upshift.training.batches import Tree
from upshift.training.step import TrainingStep


class Conducted(Protocol):
    """A loop that makes training steps."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def step(self) -> TrainingStep: ...
    @property
    def loader(self) -> Any:
        """Where batches come from."""
        ...

    @property
    def steps_made(self) -> int: ...
    @property
    def remaining_steps(self) -> int:
        """Steps to the end, if nothing ends the training before."""
        ...

    def use_loader(self, loader: Any) -> None:
        """Take the following batches from another loader of the same batches."""
        ...

    def note(self, note: str) -> None:
        """Say something that the user should know."""
        ...


class Conductor(Protocol):
    """Who changes, between two steps, how the next ones are executed: a tuner that measures on live steps."""

    def before_step(self, loop: Conducted, inputs: Tree, labels: Tree) -> None:
        """A batch is there, and the step of it comes next."""
        ...

    def after_step(self, loop: Conducted, *, step_seconds: float, data_seconds: float) -> None:
        """A step was made; `data_seconds` is how long the loop waited for its batch."""
        ...

    def before_pause(self, loop: Conducted) -> None:
        """The loop will do something else than steps: evaluate, or save."""
        ...

    def on_error(self, loop: Conducted, error: Exception) -> bool:
        """A step or its batch raised; True where the next attempt is executed otherwise, so that it may go through.

        A step that was skipped, as its loss was not finite, is told of as a `NonFiniteLossError`; if the answer is
        False, the loop goes on.
        """
        ...

    def on_end(self, loop: Conducted) -> None:
        """The last step was made, or training was stopped."""
        ...
