"""Small trainings that are tuned while they run, with models whose speed depends on how they are executed.

Their time passes on the simulated clock, which a test installs; see `simulated_clock`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simulated_clock import spend
from upshift.core.records import RunFolder
from upshift.training.config import OptimizerConfig, TrainingConfig
from upshift.training.execution import Execution
from upshift.training.loss import CrossEntropy
from upshift.training.rng import seed_everything
from upshift.training.trainer import Trainer
from upshift.tuning.candidates import Job, job_of
from upshift.tuning.config import TunerConfig
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import LiveSteps, TuningDone
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.trials import Trial
from upshift.tuning.tuner import Tuner

CPU = torch.device("cpu")
CLASSES = 5
STEP_SECONDS = 0.002
ANY_PRICE = TunerConfig(allowance_share=10.0)
"""A training of a second has no allowance to speak of."""


class Taking(nn.Identity):
    """A layer that does nothing but take its time.

    Args:
        seconds: Of each forward pass.
    """

    def __init__(self, seconds: float = STEP_SECONDS) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        spend(self.seconds)
        return inputs


def is_channels_last(module: nn.Conv2d) -> bool:
    """Whether its weights are laid out so."""
    return not module.weight.is_contiguous()


Trouble = Callable[[torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """Convolutions, batch norm, dropout; `slow` says in which layout it takes longer.

    Args:
        slow: "contiguous" or "channels_last"; None in neither.
        seconds: How much longer each forward pass takes there.

    Attributes:
        trouble: What becomes of the logits of a training step in channels_last, at the end of the forward pass.
        batches: Samples of each training batch that it saw in channels_last.
    """

    def __init__(self, slow: str | None = None, *, seconds: float = 0.01, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)
        self.slow, self.seconds = slow, seconds
        self.trouble: Trouble | None = None
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        layout = "channels_last" if is_channels_last(self.conv) else "contiguous"
        spend(STEP_SECONDS + (self.seconds if self.slow == layout else 0.0))
        features = self.conv(torch.relu(self.norm(self.stem(images))))
        logits = self.head(self.dropout(features.mean((2, 3))))
        if layout == "channels_last" and self.training:
            self.batches.append(len(images))
            if self.trouble is not None:
                return self.trouble(logits)
        return logits


def plainly(model: Net) -> Net:
    """A copy for training without a tuner, which has no trouble."""
    copied = copy.deepcopy(model)
    copied.trouble = None
    return copied


class Batches:
    """Random batches, the same each time; the last one of an epoch is smaller.

    Args:
        data_path: Where they come from.
        seconds: How long each is waited for.
    """

    def __init__(
        self,
        num_batches: int = 20,
        batch_size: int = 16,
        shape: tuple[int, ...] = (4, 6, 6),
        *,
        data_path: str = "resident",
        seconds: float = 0.0,
    ) -> None:
        self.num_batches, self.batch_size, self.shape = num_batches, batch_size, shape
        self.data_path, self.seconds = data_path, seconds

    def __len__(self) -> int:
        return self.num_batches

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index in range(start_batch, self.num_batches):
            generator = torch.Generator().manual_seed(1000 * epoch + index)
            size = self.batch_size if index < self.num_batches - 1 else self.batch_size // 2
            labels = torch.randint(0, CLASSES, (size,), generator=generator)
            inputs = torch.randn(size, *self.shape, generator=generator)
            spend(self.seconds)
            yield inputs + labels.reshape(-1, *(1 for _ in self.shape)) / CLASSES, labels


@dataclass
class Watched:
    """An observer that keeps the losses."""

    losses: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def on_start(self, *, steps_per_epoch: int, epochs: int, total_steps: int, step: int) -> None: ...
    def on_progress(self, *, step: int, epoch: int, batch: int) -> None: ...
    def on_end(self) -> None: ...

    def on_record(self, record: dict[str, Any]) -> None:
        self.losses.append(record["loss"])

    def on_note(self, note: str) -> None:
        self.notes.append(note)


@dataclass
class Trained:
    """What a training came to."""

    losses: list[float]
    notes: list[str]
    model: nn.Module
    tuner: Tuner | None
    trainer: Trainer

    @property
    def ledger(self) -> Ledger:
        assert self.tuner is not None
        return self.tuner.ledger

    @property
    def trials(self) -> dict[str, Trial]:
        return {trial.name: trial for trial in self.ledger.trials}

    @property
    def plan(self) -> Plan:
        assert self.tuner is not None
        return self.tuner.plan


def config(epochs: int, **changes: Any) -> TrainingConfig:
    """Of a short training that logs every step."""
    optimizer = OptimizerConfig(lr=0.002, momentum=0.9)
    return TrainingConfig(epochs=epochs, log_every=1, **{"optimizer": optimizer, **changes})


def job(model: nn.Module, batch_size: int = 16, **facts: Any) -> Job:
    """A job on one core, so that the number of threads is nothing to try."""
    return replace(job_of(model, CPU, batch_size), **{"num_cores": 1, "num_threads": 1, **facts})


def train(
    folder: Path,
    model: nn.Module,
    conductor: Tuner | LiveSteps | None = None,
    *,
    epochs: int = 10,
    loader: Any = None,
    plan: Execution = BASELINE,
    seed: int = 0,
    **changes: Any,
) -> Trained:
    """Train a model from its weights as they are."""
    loader = loader or Batches()
    watched = Watched()
    settings = config(epochs, batch_size=loader.batch_size, **changes)
    seed_everything(seed)
    trainer = Trainer(
        model,
        CrossEntropy(),
        loader,
        Batches(1),
        eval_split="test",
        config=settings,
        execution=plan,
        device=CPU,
        conductor=conductor,
    )
    with suppress(TuningDone):
        trainer.train(RunFolder(folder), (watched,))
    tuner = conductor if isinstance(conductor, Tuner) else None
    return Trained(watched.losses, watched.notes, model, tuner, trainer)


def tuned(
    folder: Path,
    model: nn.Module,
    *,
    tuner_config: TunerConfig = ANY_PRICE,
    loader: Any = None,
    plan: Plan = BASELINE,
    arguments: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    **training: Any,
) -> Trained:
    """Train a model and tune meanwhile.

    Args:
        arguments: Of the tuner.
        facts: Of the job.
        training: Arguments of `train`.
    """
    loader = loader or Batches()
    tuner = Tuner(
        plan,
        job=job(model, loader.batch_size, **(facts or {})),
        config=tuner_config,
        **(arguments or {}),
    )
    return train(folder, model, tuner, loader=loader, plan=plan, **training)


def assert_same_losses(one: list[float], other: list[float], *, relative: float = 1e-5) -> None:
    """Equal within round-off: some 1e-7, which training at a low rate hardly amplifies."""
    assert len(one) == len(other) > 0
    for step, (first, second) in enumerate(zip(one, other, strict=True), start=1):
        assert math.isclose(first, second, rel_tol=relative, abs_tol=1e-7), f"step {step}: {first} and {second}"
