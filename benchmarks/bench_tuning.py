"""What tuning while training nets: `--plan auto` against `--plan baseline`, whole trainings in processes of their own.

A first run knows nothing: its tuner's memory and the compiler's cache are empty. A second run begins with what the
first run of the same round left. What counts is the wall time of all training steps, checks, switches and compiling
included; evaluations, data packing and start-up are left out, being the same for all. The overhead is what the tuner's
own account has as spent: checks, switches, compiling, and steps slower than the plan's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments import names, parser
from record import Record, Table, say

PLAIN, FIRST, SECOND = "baseline", "auto, first run", "auto, second run"
RUNS = (PLAIN, FIRST, SECOND)
RECIPES = ["digits", "mnist-mlp", "mnist-cnn", "cifar10-simplecnn"]
FULL = "full"
MOST_LOST, MOST_SPENT, SPENT_EPOCHS = 0.02, 0.03, 10
QUICK = (["digits"], ["1"])


@dataclass
class Job:
    """A recipe trained for so many epochs, and its runs by round."""

    recipe: str
    epochs: int
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in RUNS})
    round_seconds: float = 0.0

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.recipe}, {self.epochs} epoch{'s' if self.epochs > 1 else ''}"

    @property
    def num_rounds(self) -> int:
        """That are complete."""
        return len(self.runs[SECOND])

    def seconds(self, name: str) -> list[float]:
        """Of the steps of a run, by round."""
        return [float(run["train_seconds"]) for run in self.runs[name]]

    def spent_share(self, name: str) -> float:
        """The median share of a run that its tuner spent."""
        from upshift.core.stats import quantile

        return quantile([run["tuning"]["seconds"] / run["train_seconds"] for run in self.runs[name]], 0.5)


def main() -> None:
    """Measure and publish."""
    options = parser(__doc__ or "", rounds=6)
    options.add_argument("--recipe", type=names, default=RECIPES, help="which recipes, comma-separated")
    options.add_argument(
        "--epochs", type=names, default=["1", "10", FULL], help="lengths of the trainings; full is the recipe's own"
    )
    options.add_argument(
        "--minutes",
        type=float,
        default=22.0,
        help="after a first round of all, no round is begun that would end later: the cheapest trainings go first",
    )
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rounds, (arguments.recipe, arguments.epochs) = 1, QUICK
    jobs = _jobs(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        _measure(jobs, Path(scratch), arguments)
    _record(jobs, arguments).publish(arguments)


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    from upshift.recipes.registry import find_recipe

    jobs = []
    for name in arguments.recipe:
        lengths = [find_recipe(name)[0].epochs if length == FULL else int(length) for length in arguments.epochs]
        jobs += [Job(name, epochs) for epochs in dict.fromkeys(lengths)]
    return jobs


def _measure(jobs: list[Job], scratch: Path, arguments: argparse.Namespace) -> None:
    """A round of each, and then further rounds of the cheapest for as long as there is time."""
    deadline = time.monotonic() + 60 * arguments.minutes
    order = random.Random(0)
    for recipe in dict.fromkeys(job.recipe for job in jobs):
        say(f"{recipe}: a run that does not count, which packs the data")
        _train(PLAIN, Job(recipe, 1), scratch, None, arguments)
    for job in jobs:
        _round(job, order, scratch, arguments)
    for job in sorted(jobs, key=lambda job: job.round_seconds):
        while job.num_rounds < arguments.rounds and time.monotonic() + job.round_seconds < deadline:
            _round(job, order, scratch, arguments)


def _round(job: Job, order: random.Random, scratch: Path, arguments: argparse.Namespace) -> None:
    """Each run once: the baseline before, between or after the other two, of which the second needs the first."""
    turns = [FIRST, SECOND]
    turns.insert(order.randrange(3), PLAIN)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=scratch) as memory:
        results = {name: _train(name, job, scratch, Path(memory), arguments) for name in turns}
    if len({result["steps"] for result in results.values()}) > 1:
        raise AssertionError(f"{job.title}: the runs made different numbers of steps")
    for name, result in results.items():
        job.runs[name].append(_kept(result))
    job.round_seconds = time.monotonic() - start
    seconds = ", ".join(f"{name} {job.seconds(name)[-1]:.2f} s" for name in RUNS)
    say(f"{job.title}, round {job.num_rounds}: {seconds}")


def _train(name: str, job: Job, scratch: Path, memory: Path | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """A training in a process of its own, with the round's memory if it tunes and with none if not."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        own = Path(folder) if name == PLAIN or memory is None else memory
        cache = own / "cache"
        # The tuner's memory lies beside the packed data, which all share.
        for shared in ("packed", "datasets"):
            (scratch / shared).mkdir(exist_ok=True)
            if not (cache / shared).exists():
                cache.mkdir(exist_ok=True)
                (cache / shared).symlink_to(scratch / shared)
        command = [sys.executable, "-m", "upshift", "train", job.recipe, "--quiet", "--json"]
        command += ["--set", f"epochs={job.epochs}", "--set", f"evaluate_every={job.epochs}"]
        command += ["--plan", "baseline" if name == PLAIN else "auto", "--out", str(Path(folder) / "run")]
        command += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
        environment = {"UPSHIFT_CACHE_DIR": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(own / "inductor")}
        made = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(made.stdout)
    return result


def _kept(result: dict[str, Any]) -> dict[str, Any]:
    trials = result["plan"]["trials"]
    return {
        "train_seconds": result["train_seconds"],
        "steps": result["steps"],
        "accuracy": result["metrics"]["accuracy"],
        "tuning": result["tuning"],
        "trials": [
            {key: trial[key] for key in ("name", "verdict", "reason", "seconds") if key in trial} for trial in trials
        ],
    }


def _record(jobs: list[Job], arguments: argparse.Namespace) -> Record:
    from rounds import as_list, paired
    from upshift.core.stats import quantile

    rows, summary, aims = [], [], {}
    for job in jobs:
        ratios = {name: paired(job.seconds(name), job.seconds(PLAIN)) for name in (FIRST, SECOND)}
        medians = {name: quantile(job.seconds(name), 0.5) for name in RUNS}
        shares = {name: job.spent_share(name) for name in (FIRST, SECOND)}
        rows.append(
            [
                job.title,
                str(job.num_rounds),
                *(f"{medians[name]:.2f}" for name in RUNS),
                *(_ratio(ratios[name]) for name in (FIRST, SECOND)),
                *(f"{shares[name]:.1%}" for name in (FIRST, SECOND)),
            ]
        )
        summary.append(
            {
                "recipe": job.recipe,
                "epochs": job.epochs,
                "rounds": job.num_rounds,
                "seconds": medians,
                "times_as_fast": {name: as_list(ratio) for name, ratio in ratios.items()},
                "spent_share": shares,
            }
        )
        # Of fewer rounds nothing can be said about 2 %.
        is_known = job.num_rounds >= 6
        aim = f"{job.title}: a first run loses at most {MOST_LOST:.0%}"
        aims[aim] = ratios[FIRST].estimate >= 1 - MOST_LOST if is_known else None
        if job.epochs == SPENT_EPOCHS:
            aim = f"{job.title}: tuning spends less than {MOST_SPENT:.0%} of a first run"
            aims[aim] = shares[FIRST] < MOST_SPENT if not arguments.quick else None
    return Record(
        claim="tuning",
        tables=[
            Table(
                title="Seconds of training steps, tuning included, and what it spent",
                columns=("", "rounds", *RUNS, "first", "second", "first spent", "second spent"),
                rows=rows,
            )
        ],
        summary={"jobs": summary},
        rounds={f"{job.recipe}-{job.epochs}": job.runs for job in jobs},
        aims=aims,
    )


def _ratio(interval: Any) -> str:
    known = f" ({interval.low:.3f} to {interval.high:.3f})" if interval.low > 0 else ""
    return f"{interval.estimate:.3f}{known}"


if __name__ == "__main__":
    main()
