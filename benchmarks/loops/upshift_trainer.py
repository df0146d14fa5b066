"""upshift's own training, as `upshift train` sets it up: loaders by a plan, records and TensorBoard on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from loops.job import SEED, FirstBatches, Job, Turn
from upshift.core.records import RunFolder, read_jsonl
from upshift.training.loss import CrossEntropy
from upshift.training.progress import Progress
from upshift.training.tensorboard import TensorBoardObserver
from upshift.training.trainer import Loader, Trainer
from upshift.tuning.plan import Plan
from upshift.workflows.datasets import make_loaders


class UpshiftTrainer:
    """The Trainer with a plan. A turn's seconds are the `train_seconds` that it reports of itself."""

    def __init__(self, job: Job, plan: Plan) -> None:
        self._job, self._plan = job, plan
        self._loaders = make_loaders(job.dataset, job.recipe, plan, job.device, SEED)
        self._train: Loader = self._loaders.train
        self._model = job.model(plan)
        self._num_steps = job.num_steps
        self._trainer: Trainer | None = None

    def __call__(self, num_steps: int | None = None) -> Turn:
        num_steps = num_steps or self._job.num_steps
        if num_steps != self._num_steps:
            self._num_steps, self._trainer = num_steps, None
        threads = torch.get_num_threads()
        torch.set_num_threads(self._plan.num_threads or threads)
        try:
            return self._turn()
        finally:
            torch.set_num_threads(threads)  # the other contenders have the default

    def read_by(self, reader: Callable[[Loader], Loader]) -> None:
        """Have the batches come through a loader of one's own, from the first turn on."""
        self._train = reader(self._train)

    def _turn(self) -> Turn:
        if self._trainer is None:
            self._trainer = self.make()
        else:
            self._begin_again(self._trainer)
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            seconds = self._trainer.train(run, (TensorBoardObserver(run.tensorboard),)).progress.train_seconds
            records = list(read_jsonl(run.metrics))
        steps = [0, *(record["step"] for record in records)]
        weighted = (record["loss"] * (record["step"] - before) for record, before in zip(records, steps, strict=False))
        return Turn(seconds, sum(weighted) / self._num_steps)

    def _begin_again(self, trainer: Trainer) -> None:
        """Start a trainer anew: one that is made anew would compile anew, which no training does in its middle."""
        self._job.reset(self._model)
        vars(trainer.progress).update(vars(Progress()))
        for optimizer in trainer._optimizer.optimizers:
            optimizer.state.clear()
        trainer._best, trainer._last_checkpoint_step = {}, 0
        trainer.step.execute(self._plan)

    def make(self) -> Trainer:
        """A trainer of one turn. It monitors on one batch, which is not in the time."""
        return Trainer(
            self._job.reset(self._model),
            self._job.recipe.loss or CrossEntropy(self._job.recipe.label_smoothing),
            FirstBatches(self._train, self._num_steps),
            FirstBatches(self._loaders.monitor, 1),
            eval_split=self._loaders.monitor_split,
            config=self._job.recipe,
            execution=self._plan,
            device=self._job.device,
        )
