"""What upshift's training costs over a bare loop of the same steps, for cifar10-simplecnn.

The bare loop has the same loader, model, fused optimizer and loss, and nothing else: no metrics, no records. Against
it stands the Trainer with all that `upshift train` has on: metrics, metrics.jsonl, TensorBoard, progress bars on a
terminal, signals, the check of each loss, and checkpoints as by default. Its time is the whole of `train()` but the
evaluations: start and last checkpoint are in it, though a turn is but half an epoch, where a training has ten.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arguments import parser
from record import Record, Table

RECIPE, NUM_STEPS, QUICK_STEPS = "cifar10-simplecnn", 390, 3
BARE, UPSHIFT, STEPS_ONLY = "bare loop", "upshift, all of train()", "upshift, steps only"
MAX_OVERHEAD = 0.03


def main() -> None:
    """Measure and publish."""
    options = parser(__doc__ or "", rounds=20)
    options.add_argument("--recipe", default=RECIPE, help="which recipe")
    options.add_argument("--steps", type=int, default=NUM_STEPS, help="steps a turn")
    options.add_argument("--budget", type=float, default=160.0, help="seconds of rounds, after 8 rounds")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.steps = 2, QUICK_STEPS
    with terminal():
        measured = _measure(arguments)
    measured.publish(arguments)


def _measure(arguments: Any) -> Record:
    from loops.job import make_job
    from loops.upshift_trainer import UpshiftTrainer
    from rounds import contest
    from upshift.core.timing import TimingResult, speedup
    from upshift.tuning.plan import BASELINE

    job = make_job(arguments.recipe, arguments.data_dir, arguments.steps)
    subject = _Everything(UpshiftTrainer(job, BASELINE))
    result = contest({BARE: BareLoop(job), UPSHIFT: subject}, rounds=arguments.rounds, budget_seconds=arguments.budget)
    num_rounds = len(result.timings[UPSHIFT].rounds)
    steps_only = TimingResult([[seconds] for seconds in subject.step_seconds[-num_rounds:]])
    ratios = {
        UPSHIFT: speedup(result.timings[UPSHIFT], result.timings[BARE]),
        STEPS_ONLY: speedup(steps_only, result.timings[BARE]),
    }
    seconds = {BARE: result.median(BARE), UPSHIFT: result.median(UPSHIFT)}
    seconds[STEPS_ONLY] = sorted(subject.step_seconds[-num_rounds:])[num_rounds // 2]
    overhead = {name: [ratio.estimate - 1, ratio.low - 1, ratio.high - 1] for name, ratio in ratios.items()}
    rows = [[BARE, f"{job.num_samples / seconds[BARE]:,.0f}", ""]]
    for name, (estimate, low, high) in overhead.items():
        rows.append([name, f"{job.num_samples / seconds[name]:,.0f}", f"{estimate:+.2%} ({low:+.2%} to {high:+.2%})"])
    aim = f"{arguments.recipe}: overhead at most {MAX_OVERHEAD:.0%}"
    return Record(
        claim="overhead",
        tables=[
            Table(
                title=f"{arguments.recipe}, batches of {job.recipe.batch_size}, {job.num_steps} steps a turn",
                columns=("", "samples/s", "overhead"),
                rows=rows,
            )
        ],
        summary={"recipe": arguments.recipe, "overhead": overhead[UPSHIFT], "overhead_of_steps": overhead[STEPS_ONLY]},
        rounds={"num_steps": job.num_steps, "turns": result.raw(), "step_seconds": subject.step_seconds},
        aims={aim: overhead[UPSHIFT][0] <= MAX_OVERHEAD if num_rounds >= 6 else None},
    )


class BareLoop:
    """The steps and nothing else."""

    def __init__(self, job: Any) -> None:
        from loops.job import SEED
        from upshift.tuning.plan import BASELINE
        from upshift.workflows.datasets import make_loaders

        self._job = job
        self._loader = make_loaders(job.dataset, job.recipe, BASELINE, job.device, SEED).train
        self._model = job.model()

    def __call__(self) -> float:
        from torch.nn import functional as F

        from loops.job import FirstBatches

        model = self._job.reset(self._model)
        optimizer = self._job.optimizer(model, fused=True)
        batches = FirstBatches(self._loader, self._job.num_steps).epoch(0)
        start = time.perf_counter()
        for images, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        self._job.synchronize()
        return time.perf_counter() - start


class _Everything:
    """The Trainer with a progress bar; keeps the time in steps beside that of all."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.step_seconds: list[float] = []

    def __call__(self) -> float:
        from upshift.core.records import RunFolder
        from upshift.terminal import Terminal
        from upshift.training.tensorboard import TensorBoardObserver

        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            observers = (Terminal(quiet=False), TensorBoardObserver(run.tensorboard))
            trainer = self._trainer.make()
            start = time.perf_counter()
            progress = trainer.train(run, observers).progress
            seconds = time.perf_counter() - start
        self.step_seconds.append(progress.train_seconds)
        return float(seconds - progress.evaluation_seconds)


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """A terminal on stderr for upshift to draw its bars on; a process of its own reads what it draws."""
    master, slave = os.openpty()
    with subprocess.Popen(["cat"], stdin=master, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:
        os.close(master)
        try:
            with open(slave, "w") as screen, contextlib.redirect_stderr(screen):
                yield
        finally:
            reader.kill()


if __name__ == "__main__":
    main()
