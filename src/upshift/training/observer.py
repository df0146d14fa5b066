"""Who watches a training."""

from __future__ import annotations

from typing import Any, Protocol


class Observer(Protocol):
    """Who watches a training: the terminal, TensorBoard."""

    def on_start(self, *, steps_per_epoch: int, epochs: int, total_steps: int, step: int) -> None:
        """A training of at most `total_steps` begins, maybe after a resume at `step`."""
        ...

    def on_progress(self, *, step: int, epoch: int, batch: int) -> None: ...
    def on_record(self, record: dict[str, Any]) -> None: ...
    def on_note(self, note: str) -> None: ...
    def on_end(self) -> None: ...
