"""What tuning while training nets: `--plan auto` against `--plan baseline`, whole trainings in processes of their own.

A first run knows nothing: its tuner's memory and the compiler's cache are empty. A second run begins with what the
first run of the same round left. What counts is the wall time of all training steps, checks, switches and compiling
included; evaluations and data packing are left out, being the same for all. The overhead is what the tuner's own
account has as spent: checks, switches, compiling, and steps slower than the plan's. A second run's extra work is that,
and what its start and end take longer than the baseline's.

All built-in recipes are trained for one epoch, for ten and for their own number, each length once. So that a round of
all of them takes a known share of `--minutes`, trainings that would last too long end after fewer steps: these are
named by their steps, and are trainings of that length to the tuner too.
"""

from __future__ import annotations

import argparse
import json
import math
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
FULL = "full"
MOST_LOST, MOST_SPENT, SPENT_EPOCHS, MOST_EXTRA_SECONDS = 0.02, 0.03, 10, 1.0
FIRST_ROUND_SHARE, LEAST_CUT_SECONDS = 0.65, 5.0
"""Of the minutes, what a round of all may take, and the shortest that a training is cut to for it."""
TRIAL_STEPS, TRIAL_SECONDS = (10, 400), 2.0
"""Steps of a first trial of a recipe's speed, and of another one where the first took less time than this."""
FEWEST_ROUNDS = 6
"""Of fewer, nothing can be said about 2 % of a time."""
QUICK = (["digits"], ["1"])


class TrainingError(Exception):
    """A training ended with an error: what it wrote on stderr."""


@dataclass
class Job:
    """A recipe trained for so many epochs, and its runs by round."""

    recipe: str
    epochs: int
    max_steps: int | None = None
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in RUNS})
    round_seconds: float = 0.0

    @property
    def title(self) -> str:
        """For tables."""
        if self.max_steps is not None:
            return f"{self.recipe}, {self.max_steps} steps"
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

    def net_shares(self, name: str) -> list[float]:
        """Of each run, the share of its time that its tuner's account says was won, less what was spent."""
        return [run["tuning"]["net_seconds"] / run["train_seconds"] for run in self.runs[name]]

    def extra_seconds(self) -> float:
        """Median of what a second run spent in its steps, and outside of them more than the baseline did."""
        from upshift.core.stats import quantile

        pairs = zip(self.runs[SECOND], self.runs[PLAIN], strict=False)
        extra = [run["tuning"]["seconds"] + run["other_seconds"] - plain["other_seconds"] for run, plain in pairs]
        return quantile(extra, 0.5)


@dataclass(frozen=True)
class Speed:
    """How long trainings of a recipe take by the plain plan.

    Attributes:
        step_seconds: Of a step.
        other_seconds: Of all else in a process: imports, data, evaluations.
        steps_per_epoch: By its batch size.
    """

    step_seconds: float
    other_seconds: float
    steps_per_epoch: int


def main() -> None:
    """Measure and publish."""
    from upshift.recipes.registry import recipe_names

    options = parser(__doc__ or "", rounds=FEWEST_ROUNDS)
    options.add_argument(
        "--recipe", type=names, default=list(recipe_names()), help="which recipes, comma-separated, of built-in ones"
    )
    options.add_argument(
        "--epochs", type=names, default=["1", "10", FULL], help="lengths of the trainings; full is the recipe's own"
    )
    options.add_argument(
        "--minutes",
        type=float,
        default=24.0,
        help="a first round of all takes two thirds of it, with trainings cut as it must be; then the cheapest go on, "
        "and no round is begun that would end later",
    )
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.minutes, (arguments.recipe, arguments.epochs) = 1, 1.0, QUICK
    deadline = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as scratch:
        speeds, notes = _speeds(Path(scratch), arguments)
        jobs = _jobs(speeds, deadline - time.monotonic(), arguments)
        notes += _cuts(jobs, speeds)
        notes += _measure(jobs, deadline, Path(scratch), arguments)
    _record([job for job in jobs if job.num_rounds], notes, arguments).publish(arguments)


def _speeds(scratch: Path, arguments: argparse.Namespace) -> tuple[dict[str, Speed], list[str]]:
    """How fast each recipe trains, by runs that do not count and pack the data; and which could not be trained."""
    speeds: dict[str, Speed] = {}
    notes = []
    for recipe in arguments.recipe:
        say(f"{recipe}: a run that does not count, which packs the data")
        try:
            speeds[recipe] = _speed(recipe, scratch, arguments)
        except TrainingError as error:
            notes.append(f"{recipe} is left out: {_last_line(error)}")
            say(notes[-1])
    if not speeds:
        raise TrainingError("; ".join(notes))
    return speeds, notes


def _speed(recipe: str, scratch: Path, arguments: argparse.Namespace) -> Speed:
    from upshift.recipes.registry import find_recipe

    result: dict[str, Any] = {}
    for max_steps in TRIAL_STEPS:
        result = _train(PLAIN, Job(recipe, 1, max_steps), scratch, None, arguments)
        if result["train_seconds"] > TRIAL_SECONDS:
            break
    steps_per_epoch = math.ceil(result["data"]["num_train"] / find_recipe(recipe)[0].batch_size)
    step_seconds = result["train_seconds"] / result["steps"]
    return Speed(step_seconds, result["other_seconds"] + result["evaluation_seconds"], steps_per_epoch)


def _jobs(speeds: dict[str, Speed], seconds: float, arguments: argparse.Namespace) -> list[Job]:
    """Each recipe for each length, cut so that a round of all takes its share of the time; equal ones once."""
    from upshift.recipes.registry import find_recipe

    lengths = {
        (recipe, find_recipe(recipe)[0].epochs if length == FULL else int(length)): speeds[recipe]
        for recipe in speeds
        for length in arguments.epochs
    }
    longest = _longest(lengths, FIRST_ROUND_SHARE * seconds)
    jobs: dict[str, Job] = {}
    for (recipe, epochs), speed in lengths.items():
        steps = max(1, round(longest / speed.step_seconds))
        is_cut = steps < epochs * speed.steps_per_epoch
        job = Job(recipe, epochs, steps if is_cut else None)
        jobs.setdefault(job.title, job)
    return list(jobs.values())


def _longest(lengths: dict[tuple[str, int], Speed], seconds: float) -> float:
    """Seconds of steps that the longest training may have, for a round of all to take so long."""

    def round_seconds(longest: float) -> float:
        whole = {
            (recipe, min(longest, epochs * speed.steps_per_epoch * speed.step_seconds)): speed.other_seconds
            for (recipe, epochs), speed in lengths.items()
        }
        return len(RUNS) * sum(steps + other for (_, steps), other in whole.items())

    low, high = LEAST_CUT_SECONDS, max(LEAST_CUT_SECONDS, seconds)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if round_seconds(middle) < seconds else (low, middle)
    return low


def _cuts(jobs: list[Job], speeds: dict[str, Speed]) -> list[str]:
    """Which trainings are shorter than was asked for."""
    cut = [
        f"{job.title} (of {speeds[job.recipe].steps_per_epoch:,} an epoch)" for job in jobs if job.max_steps is not None
    ]
    if not cut:
        return []
    return [f"cut, as longer ones do not fit into the time of this benchmark: {'; '.join(cut)}"]


def _measure(jobs: list[Job], deadline: float, scratch: Path, arguments: argparse.Namespace) -> list[str]:
    """A round of each, and then further rounds of the cheapest for as long as there is time; which have failed."""
    order = random.Random(0)
    failures: dict[str, str] = {}

    def measure(job: Job) -> bool:
        try:
            _round(job, order, scratch, arguments)
        except TrainingError as error:  # what was measured of it and of others is kept
            failures[job.title] = f"{job.title} failed in round {job.num_rounds + 1}: {_last_line(error)}"
            say(failures[job.title])
        return job.title not in failures

    for job in sorted(jobs, key=lambda job: job.max_steps is not None):
        measure(job)
    for job in sorted((job for job in jobs if job.title not in failures), key=lambda job: job.round_seconds):
        while job.num_rounds < arguments.rounds and time.monotonic() + job.round_seconds < deadline:
            if not measure(job):
                break
    if not any(job.num_rounds for job in jobs):
        raise TrainingError("; ".join(failures.values()))
    return list(failures.values())


def _last_line(error: TrainingError) -> str:
    """Of a traceback, the error; else the first line."""
    said = str(error).splitlines()
    return said[-1 if said[0].startswith("Traceback") else 0]


def _round(job: Job, order: random.Random, scratch: Path, arguments: argparse.Namespace) -> None:
    """Each run once: the baseline before, between or after the other two, of which the second needs the first."""
    turns = [FIRST, SECOND]
    turns.insert(order.randrange(3), PLAIN)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=scratch) as memory:
        results = {name: _train(name, job, scratch, Path(memory), arguments) for name in turns}
    if len({result["steps"] for result in results.values()}) > 1:
        raise TrainingError("the runs made different numbers of steps")
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
        command += ["--set", f"max_steps={job.max_steps}"] if job.max_steps is not None else []
        command += ["--plan", "baseline" if name == PLAIN else "auto", "--out", str(Path(folder) / "run")]
        command += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
        environment = {"UPSHIFT_CACHE_DIR": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(own / "inductor")}
        start = time.perf_counter()
        made = subprocess.run(command, env=os.environ | environment, capture_output=True, check=False, text=True)
        seconds = time.perf_counter() - start
    if made.returncode != 0:
        raise TrainingError(made.stderr.strip() or f"exit status {made.returncode}")
    result: dict[str, Any] = json.loads(made.stdout)
    return result | {"other_seconds": seconds - result["train_seconds"] - result["evaluation_seconds"]}


def _kept(result: dict[str, Any]) -> dict[str, Any]:
    trials = result["plan"]["trials"]
    return {
        "train_seconds": result["train_seconds"],
        "evaluation_seconds": result["evaluation_seconds"],
        "other_seconds": result["other_seconds"],
        "steps": result["steps"],
        "accuracy": result["metrics"]["accuracy"],
        "tuning": result["tuning"],
        "trials": [
            {key: trial[key] for key in ("name", "verdict", "reason", "seconds") if key in trial} for trial in trials
        ],
    }


def _record(jobs: list[Job], notes: list[str], arguments: argparse.Namespace) -> Record:
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
                f"{min(job.net_shares(FIRST)):+.1%}",
                f"{job.extra_seconds():.2f}",
            ]
        )
        summary.append(
            {
                "recipe": job.recipe,
                "epochs": job.epochs,
                "max_steps": job.max_steps,
                "rounds": job.num_rounds,
                "seconds": medians,
                "times_as_fast": {name: as_list(ratio) for name, ratio in ratios.items()},
                "spent_share": shares,
                "net_share": {name: job.net_shares(name) for name in (FIRST, SECOND)},
                "extra_seconds": job.extra_seconds(),
            }
        )
        aims |= _aims(job, ratios[FIRST].estimate, shares[FIRST], arguments)
    return Record(
        claim="tuning",
        tables=[
            Table(
                title="Seconds of training steps, tuning included, and what it spent",
                columns=(
                    *("", "rounds", *RUNS, "first", "second", "first spent", "second spent"),
                    *("first net, worst", "second extra, s"),
                ),
                rows=rows,
            )
        ],
        summary={"jobs": summary},
        rounds={job.title: job.runs for job in jobs},
        aims=aims,
        notes=notes,
    )


def _aims(job: Job, first_ratio: float, first_spent: float, arguments: argparse.Namespace) -> dict[str, bool | None]:
    """What was aimed at for a training; None where it cannot be said."""
    aims = {
        f"{job.title}: a first run loses at most {MOST_LOST:.0%}": (
            first_ratio >= 1 - MOST_LOST if job.num_rounds >= FEWEST_ROUNDS else None
        ),
        f"{job.title}: no first run's own account is below -{MOST_LOST:.0%}": (
            min(job.net_shares(FIRST)) >= -MOST_LOST if not arguments.quick else None
        ),
        f"{job.title}: a second run makes less than {MOST_EXTRA_SECONDS:g} s of extra work": (
            job.extra_seconds() < MOST_EXTRA_SECONDS if not arguments.quick else None
        ),
    }
    if job.epochs == SPENT_EPOCHS and job.max_steps is None:
        aim = f"{job.title}: tuning spends less than {MOST_SPENT:.0%} of a first run"
        aims[aim] = first_spent < MOST_SPENT if not arguments.quick else None
    return aims


def _ratio(interval: Any) -> str:
    known = f" ({interval.low:.3f} to {interval.high:.3f})" if interval.low > 0 else ""
    return f"{interval.estimate:.3f}{known}"


if __name__ == "__main__":
    main()
