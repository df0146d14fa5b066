"""One contestant in a process of its own: it trains a whole job, and then as many turns as it is asked for.

Started as `python -m loops.contestant PEER RECIPE …` by `loops.processes`. It writes a line of JSON for the job, and
one for each line that it reads; everything else that is printed goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  # an optimizer's first step imports it: seconds that are to be in nobody's time

from loops.job import Job, Turn, make_job

Loop = Callable[..., Turn]


def main() -> None:
    """Serve until stdin ends."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("peer", choices=MAKERS)
    options.add_argument("recipe")
    options.add_argument("--data-dir", type=Path)
    options.add_argument("--steps", type=int, required=True)
    options.add_argument("--job-steps", type=int, required=True)
    options.add_argument("--tune-seconds", type=float)
    options.add_argument("--plan", default="{}", help="fields of the contestant `plan`, as JSON")
    options.add_argument("--setting", help="of the contestant `plan`: one of loops.settings")
    arguments = options.parse_args()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(document: dict[str, Any]) -> None:
        finite = {key: None if value != value else value for key, value in document.items()}
        print(json.dumps(finite, allow_nan=False), file=answers, flush=True)

    make = MAKERS[arguments.peer](arguments)  # imports the peer: that is in nobody's time
    job = make_job(arguments.recipe, arguments.data_dir, arguments.steps)
    start = time.perf_counter()
    loop = make(job)
    whole = getattr(loop, "train", loop)(arguments.job_steps)
    seconds = time.perf_counter() - start - getattr(loop, "evaluation_seconds", 0.0)
    num_parameters = getattr(loop, "num_parameters", sum(parameter.numel() for parameter in job.model().parameters()))
    answer(
        {
            "job_seconds": seconds,
            "train_seconds": whole.seconds,
            "loss": whole.loss,
            "num_parameters": num_parameters,
            "num_steps": job.num_steps,
            "facts": getattr(loop, "facts", {}),
        }
    )
    for _ in sys.stdin:
        turn = loop()
        answer({"seconds": turn.seconds, "loss": turn.loss, "facts": getattr(loop, "facts", {})})


def _articles(_: argparse.Namespace) -> Callable[[Job], Loop]:
    from loops.articles import ArticlesLoop

    return ArticlesLoop


def _careful(_: argparse.Namespace) -> Callable[[Job], Loop]:
    from loops.careful import CarefulLoop

    return CarefulLoop


def _compiled(_: argparse.Namespace) -> Callable[[Job], Loop]:
    from loops.careful import CarefulLoop

    return lambda job: CarefulLoop(job, compiled=True)


def _lightning(_: argparse.Namespace) -> Callable[[Job], Loop]:
    from loops.lightning_trainer import LightningTrainer

    return LightningTrainer


def _accelerate(_: argparse.Namespace) -> Callable[[Job], Loop]:
    from loops.accelerate_loop import AccelerateLoop

    return AccelerateLoop


def _keras(_: argparse.Namespace) -> Callable[[Job], Loop]:
    from loops.keras_trainer import KerasTrainer

    return KerasTrainer


def _upshift(arguments: argparse.Namespace) -> Callable[[Job], Loop]:
    from torch.utils.tensorboard import SummaryWriter

    from loops.upshift_job import UpshiftJob

    with tempfile.TemporaryDirectory() as folder:
        SummaryWriter(folder).close()  # imports the rest of what `train` writes with: TensorFlow too, where that is
    return lambda job: UpshiftJob(job, arguments.data_dir, arguments.tune_seconds)


def _plan(arguments: argparse.Namespace) -> Callable[[Job], Loop]:
    from loops.settings import SettingTrainer, begin
    from upshift.tuning.plan import Plan

    begin(arguments.setting)
    plan = Plan(**json.loads(arguments.plan))
    return lambda job: SettingTrainer(job, plan, arguments.setting)


MAKERS = {
    "articles": _articles,
    "careful": _careful,
    "careful-compiled": _compiled,
    "lightning": _lightning,
    "accelerate": _accelerate,
    "keras-tensorflow": _keras,
    "keras-jax": _keras,
    "keras-torch": _keras,
    "upshift": _upshift,
    "plan": _plan,
}
"""What to import for a contestant: gives what makes its loop."""


if __name__ == "__main__":
    main()
