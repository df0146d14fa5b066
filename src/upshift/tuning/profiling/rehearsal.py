"""Steps of the real training, one at a time, for whoever wants to time or watch them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeAlias

import torch
from torch import nn

from upshift.training.config import TrainingConfig
from upshift.training.ema import ExponentialMovingAverage
from upshift.training.metrics import RunningMetrics
from upshift.training.optimizers import build_optimizer
from upshift.training.schedules import learning_rate_factor
from upshift.training.stages import Stages
from upshift.training.step import Loss, TrainingStep, is_out_of_memory
from upshift.training.trainer import LINES_PER_EPOCH, MIN_STEPS_A_LINE, Loader
from upshift.tuning.plan import Plan

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]

SOURCE_FILE = __file__
"""Frames of this file on a stack tell where a training's own code ends and the program that profiles it begins."""

MOST_STEPS = 20
"""Times as many steps as were asked for, at most, to fill the shortest time."""


@dataclass
class StepTimes:
    """Seconds of each step.

    Attributes:
        data: How long the loop waited for the batch.
        step: How long the step took; on an accelerator until it was launched, and a share of what was still queued.
        starts: When the wait for the batch began, from the first one on.
    """

    data: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)


class Rehearsal:
    """The training of a model as the trainer would do it, without records, checkpoints and evaluations.

    What a step does is what the trainer's does: the learning rate, forward, backward and update by
    `TrainingStep`, the average of the weights, the running metrics. The model is trained in place.

    Args:
        model: On its device.
        loss: Loss of (logits, labels), a mean over the batch.
        loader: Batches to learn from.
        config: What training does; the first of its stages is rehearsed.
        execution: How it is executed.
        device: Where batches arrive and the model lies.

    Raises:
        BadInputError: The optimizer or the stages do not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        loader: Loader,
        *,
        config: TrainingConfig,
        execution: Plan,
        device: torch.device,
    ) -> None:
        self.model, self.device, self.loader, self.config = model, device, loader, config
        self._loss, self._execution = loss, execution
        stage = Stages(model, config.stages).enter(0)
        self._image_size = stage.image_size if stage else None
        self.optimizer = build_optimizer(model, config.optimizer, fused=execution.fused_optimizer)
        self.training_step = TrainingStep(model, loss, self.optimizer, config, execution, device)
        self._ema = ExponentialMovingAverage(model, config.ema_decay) if config.ema_decay else None
        self._metrics = RunningMetrics()
        self._total_steps = min(config.epochs * len(loader), config.max_steps or sys.maxsize)
        self._log_every = config.log_every or max(MIN_STEPS_A_LINE, len(loader) // LINES_PER_EPOCH)
        self.num_steps = 0
        model.train()

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, its last batch counted as full."""
        return len(self.loader) * self.config.batch_size

    def batches(self) -> Generator[Batch, None, None]:
        """Batches of one epoch after another, without end."""
        for epoch in count():
            yield from self.loader.epoch(epoch, image_size=self._image_size)

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Make one step of training, as far as the host goes: an accelerator may still be at work after it."""
        factor = learning_rate_factor(
            self.config.schedule, min(self.num_steps, self._total_steps - 1), self._total_steps
        )
        self.optimizer.set_learning_rate(factor)
        loss, outputs = self._within_memory(inputs, labels)
        if self._ema is not None and not self.training_step.skipped:
            self._ema.update()
        self._metrics.update(loss, outputs, labels)
        self.num_steps += 1
        if self.num_steps % self._log_every == 0:
            self._metrics.take()

    def _within_memory(self, inputs: torch.Tensor, labels: torch.Tensor) -> Batch:
        while True:
            try:
                return self.training_step(self.training_step.prepare(inputs), labels)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block: the error's traceback holds the tensors of the failed step.
            self.training_step.halve_micro_batch()

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """The steps of this context run operator by operator, for whoever follows each of them."""
        if self._execution.compile == "none":
            yield
            return
        self.training_step.execute(replace(self._execution, compile="none", compile_mode=None))
        try:
            yield
        finally:
            self.training_step.execute(self._execution)

    def release(self) -> None:
        """Put back the settings of the process that the execution changed."""
        self.training_step.release()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def with_batch_size(self, batch_size: int) -> Rehearsal:
        """The same training of the same model in batches of another size."""
        config = replace(self.config, batch_size=batch_size)
        return Rehearsal(
            self.model, self._loss, self.loader, config=config, execution=self._execution, device=self.device
        )

    def warm_up(self, batches: Iterator[Batch], *, num_steps: int, max_seconds: float) -> None:
        """Make steps that are not timed: at least two, as the first one allocates what the others use again."""
        start = time.perf_counter()
        for done in range(num_steps):
            if done >= 2 and time.perf_counter() - start > max_seconds:
                break
            self.step(*next(batches))
        self.synchronize()

    def time_steps(
        self,
        batches: Iterator[Batch],
        *,
        num_steps: int,
        max_seconds: float,
        min_seconds: float = 0.0,
        on_step: Callable[[int], None] = lambda done: None,
    ) -> StepTimes:
        """Time steps of training with the waits between them.

        Args:
            batches: From `batches`.
            num_steps: So many, or more where they are done before `min_seconds`.
            max_seconds: Begin no further step after this long, and after at least three.
            min_seconds: Go on for so long, up to `MOST_STEPS` times as many steps.
            on_step: Called with the number of steps done of those asked for, outside what is timed.
        """
        times, clock = StepTimes(), time.perf_counter
        self.synchronize()
        first = clock()
        for done in range(MOST_STEPS * num_steps):
            spent = clock() - first
            if (done >= 3 and spent > max_seconds) or (done >= num_steps and spent > min_seconds):
                break
            start = clock()
            batch = next(batches)
            ready = clock()
            self.step(*batch)
            end = clock()
            times.starts.append(start - first)
            times.data.append(ready - start)
            times.step.append(end - ready)
            if done < num_steps:
                on_step(done + 1)
        # An accelerator is behind its host by what is queued: a synchronisation a step would be another training.
        start = clock()
        self.synchronize()
        behind = (clock() - start) / len(times.step)
        times.step = [seconds + behind for seconds in times.step]
        return times
