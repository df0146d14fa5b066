"""Settings of torch that are no field of a plan, and batches made on another thread: tried, and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from loops.job import Job, Turn
from loops.upshift_trainer import UpshiftTrainer
from upshift.training.trainer import Loader
from upshift.tuning.plan import Plan

READ_AHEAD = "read ahead"
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Setting:
    """A setting of torch, and whether it holds."""

    make: Callable[[], object]
    holds: Callable[[], bool]


def _flushes_denormals() -> bool:
    # On all threads: each has a mode of its own, which it takes over from the one that starts it.
    return not (torch.full((200_000,), 1e-38) * 1e-3).any()


def _switch_onednn(name: str, value: bool) -> None:
    setattr(torch.backends.mkldnn, name, value)


SETTINGS = {
    "denormals flushed": Setting(lambda: torch.set_flush_denormal(True), _flushes_denormals),
    "oneDNN off": Setting(lambda: _switch_onednn("enabled", False), lambda: not torch._C._get_mkldnn_enabled()),
    "oneDNN deterministic": Setting(
        lambda: _switch_onednn("deterministic", True), lambda: torch._C._get_mkldnn_deterministic()
    ),
    "matmul precision medium": Setting(
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.get_float32_matmul_precision() == "medium",
    ),
}


def begin(setting: str | None) -> None:
    """Make a setting, if it is one of torch, before this process has started any thread."""
    if setting in SETTINGS:
        SETTINGS[setting].make()


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
            self._trainer.read_by(lambda loader: SettingLoader(loader, SETTINGS[setting]))

    def __call__(self, num_steps: int | None = None) -> Turn:
        return self._trainer(num_steps)


class SettingLoader:
    """A loader that makes a setting before the first batch of an epoch: the plan, which comes first, has its own.

    Raises:
        RuntimeError: A step was made, and the setting does not hold.
    """

    def __init__(self, loader: Loader, setting: Setting) -> None:
        self._loader, self._setting = loader, setting

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None) -> Batches:
        """The batches of an epoch; see `upshift.data.loaders.Loader.epoch`."""
        self._setting.make()
        batches = self._loader.epoch(epoch, start_batch=start_batch, image_size=image_size)
        for index, batch in enumerate(batches):
            if index == 1 and not self._setting.holds():
                raise RuntimeError("steps are made without the setting that they are timed with")
            yield batch


class ReadAhead:
    """A loader that makes the next batch of another on a thread, while a step is made."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None) -> Batches:
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
