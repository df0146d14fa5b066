"""Settings of torch that are no field of a plan, and batches made on another thread: tried, and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from loops.job import Job, Turn
from loops.upshift_trainer import UpshiftTrainer
from upshift.training.trainer import Loader
from upshift.tuning.plan import Plan

READ_AHEAD = "read ahead"


def _flush_denormals() -> None:
    if not torch.set_flush_denormal(True):
        raise RuntimeError("this processor cannot flush denormal numbers")


def _without_onednn() -> None:
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]


def _deterministic_onednn() -> None:
    torch.backends.mkldnn.deterministic = True  # type: ignore[assignment]


def _medium_precision() -> None:
    torch.set_float32_matmul_precision("medium")


SETTINGS: dict[str, Callable[[], None]] = {
    "denormals flushed": _flush_denormals,
    "oneDNN off": _without_onednn,
    "oneDNN deterministic": _deterministic_onednn,
    "matmul precision medium": _medium_precision,
}


class SettingTrainer:
    """upshift's own training by a plan, with a setting.

    Args:
        job: What is trained.
        plan: How.
        setting: One of `SETTINGS`, `READ_AHEAD`, or none.
    """

    def __init__(self, job: Job, plan: Plan, setting: str | None) -> None:
        self._trainer = UpshiftTrainer(job, plan)
        if setting == READ_AHEAD:
            self._trainer.read_by(ReadAhead)
        elif setting is not None:
            SETTINGS[setting]()

    def __call__(self, num_steps: int | None = None) -> Turn:
        return self._trainer(num_steps)


class ReadAhead:
    """A loader that makes the next batch of another on a thread, while a step is made."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch; see `upshift.data.loaders.Loader.epoch`."""
        batches = self._loader.epoch(epoch, start_batch=start_batch, image_size=image_size)

        def make() -> tuple[torch.Tensor, torch.Tensor] | None:
            # A copy: some loaders use the memory of a batch again for the next one.
            batch = next(batches, None)
            return None if batch is None else (batch[0].clone(), batch[1].clone())

        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(make)
            while (batch := waiting.result()) is not None:
                waiting = thread.submit(make)
                yield batch
