"""What tuning while training nets: `--plan auto` against `--plan baseline`, whole trainings in processes of their own.

A first run knows nothing: its tuner's memory and the compiler's cache are empty. A second run begins with what a
first one found. What counts is the wall time of all training steps, checks, switches and compiling included;
evaluations, data packing and start-up are left out, being the same for all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arguments import names, numbers, parser
from record import Record, Table, say

PLAIN, FIRST, SECOND = "baseline", "auto, first run", "auto, second run"
RECIPES = ["digits", "mnist-mlp", "mnist-cnn", "cifar10-simplecnn"]
MOST_LOST = 0.02


def main() -> None:
    """Measure and publish."""
    options = parser(__doc__ or "", rounds=6)
    options.add_argument("--recipe", type=names, default=RECIPES, help="which recipes, comma-separated")
    options.add_argument("--epochs", type=numbers, default=[1, 10], help="lengths of the trainings, comma-separated")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.recipe, arguments.epochs = 1, ["digits"], [1]
    jobs = [(recipe, epochs) for recipe in arguments.recipe for epochs in arguments.epochs]
    with tempfile.TemporaryDirectory() as scratch:
        measured = [_measure(recipe, epochs, Path(scratch), arguments) for recipe, epochs in jobs]
    _record(measured, arguments).publish(arguments)


def _measure(recipe: str, epochs: int, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from rounds import contest

    results: dict[str, list[dict[str, Any]]] = {PLAIN: [], FIRST: [], SECOND: []}

    def turn(name: str) -> Callable[[], float]:
        def run() -> float:
            result = _train(name, recipe, epochs, scratch / f"{recipe}-{epochs}", arguments)
            results[name].append(result)
            return float(result["train_seconds"])

        return run

    # The warm-up turn of each fills the second run's memory.
    found = contest({name: turn(name) for name in results}, rounds=arguments.rounds)
    kept = {name: [_kept(result) for result in made[1:]] for name, made in results.items()}
    ratios = {name: found.times_as_fast(name, PLAIN) for name in (FIRST, SECOND)}
    say(f"{recipe}, {epochs} epochs: {ratios}")
    return {
        "recipe": recipe,
        "epochs": epochs,
        "seconds": {name: found.median(name) for name in results},
        "times_as_fast": {name: [ratio.estimate, ratio.low, ratio.high] for name, ratio in ratios.items()},
        "runs": kept,
    }


def _train(name: str, recipe: str, epochs: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    memory = folder / "memory"
    if name == FIRST:
        memory = Path(tempfile.mkdtemp(dir=_made(folder)))
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(memory / "inductor")}
    # The tuner's memory lies beside the packed data, which all share.
    cache = folder.parent / "cache"
    tuning = cache / "tuning-v1"
    shutil.rmtree(tuning, ignore_errors=True)
    if name == SECOND and (memory / "tuning").is_dir():
        shutil.copytree(memory / "tuning", tuning)
    command = [sys.executable, "-m", "upshift", "train", recipe, "--set", f"epochs={epochs}", "--quiet", "--json"]
    command += ["--set", f"evaluate_every={epochs}", "--plan", "baseline" if name == PLAIN else "auto"]
    command += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    with tempfile.TemporaryDirectory(dir=_made(folder)) as run:
        command += ["--out", str(Path(run) / "run")]
        environment |= {"UPSHIFT_CACHE_DIR": str(cache)}
        made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    if name == SECOND and tuning.is_dir():
        shutil.rmtree(memory / "tuning", ignore_errors=True)
        shutil.copytree(tuning, memory / "tuning")
    if name == FIRST:
        shutil.rmtree(memory, ignore_errors=True)
    result: dict[str, Any] = json.loads(made.stdout)
    return result


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _kept(result: dict[str, Any]) -> dict[str, Any]:
    trials = result["plan"]["trials"]
    return {
        "train_seconds": result["train_seconds"],
        "accuracy": result["metrics"]["accuracy"],
        "tuning": result["tuning"],
        "trials": [
            {key: trial[key] for key in ("name", "verdict", "reason", "seconds") if key in trial} for trial in trials
        ],
    }


def _record(measured: list[dict[str, Any]], arguments: argparse.Namespace) -> Record:
    rows, aims = [], {}
    for job in measured:
        name = f"{job['recipe']}, {job['epochs']} epoch{'s' if job['epochs'] > 1 else ''}"
        first, second = job["times_as_fast"][FIRST], job["times_as_fast"][SECOND]
        rows.append(
            [name, *(f"{job['seconds'][run]:.2f}" for run in (PLAIN, FIRST, SECOND)), _ratio(first), _ratio(second)]
        )
        if arguments.rounds >= 6:
            aims[f"{name}: a first run loses at most {MOST_LOST:.0%}"] = first[0] >= 1 - MOST_LOST
    return Record(
        claim="tuning",
        tables=[
            Table(
                title="Seconds of training steps, tuning included, and times as fast as the baseline",
                columns=("", PLAIN, FIRST, SECOND, "first", "second"),
                rows=rows,
            )
        ],
        summary={"jobs": [{key: job[key] for key in job if key != "runs"} for job in measured]},
        rounds={f"{job['recipe']}-{job['epochs']}": job["runs"] for job in measured},
        aims=aims,
    )


def _ratio(interval: list[float]) -> str:
    estimate, low, high = interval
    return f"{estimate:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
