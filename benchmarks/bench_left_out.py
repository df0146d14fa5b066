"""What was tried to make training steps faster, and is no candidate of the tuner: each against the same steps without.

Settings of torch, the dearest compile mode, and batches made on another thread are timed in interleaved turns, beside
a second copy of the plain steps, which tells how far the figures are to be trusted. Compiling in another process is
timed by what training loses: standing still while it compiles, or steps that are slower meanwhile, and then compiling
from the caches that the other process left. These are the figures of "Tried, and left out" in docs/tune.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments import names, parser
from record import Record, Table, say

PLAIN, AGAIN = "plain", "plain once more"
COMPILED = {"compile": "whole"}


@dataclass(frozen=True)
class Change:
    """Something that was tried: fields of the plan, or a setting of `loops.settings`."""

    plan: dict[str, Any] = field(default_factory=dict)
    setting: str | None = None


CHANGES = {
    PLAIN: Change(),
    AGAIN: Change(),
    "denormals flushed": Change(setting="denormals flushed"),
    "oneDNN off": Change(setting="oneDNN off"),
    "oneDNN deterministic": Change(setting="oneDNN deterministic"),
    "matmul precision medium": Change(setting="matmul precision medium"),
    "batches made ahead on a thread": Change(setting="read ahead"),
    "bf16": Change({"precision": "bf16"}),
    "compiled": Change(COMPILED),
    "compiled max-autotune": Change(COMPILED | {"compile_mode": "max-autotune-no-cudagraphs"}),
}
MODELS = {"cifar10-simplecnn": 40, "mnist-mlp": 200}
BASES = {"cifar10-simplecnn": {"memory_format": "channels_last"}}
QUICK_STEPS, QUICK_MODEL = 2, "mnist-mlp"
QUICK_CHANGES = [PLAIN, AGAIN, "denormals flushed", "batches made ahead on a thread"]
REST_TURNS = 5


def main() -> None:
    """Measure and publish."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left standing still for ever
    from upshift.errors import UpshiftError

    found, compiling = {}, list[dict[str, float]]()
    notes = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models:
            found[name] = _measure(name, Path(scratch), arguments)
            say("\n".join(_table(name, _steps(name, arguments), *found[name]).lines()))
        for index in range(arguments.compile_rounds):
            folder = Path(scratch) / f"compiling-{index}"
            say(f"compiling {arguments.compile_model}, round {index + 1}")
            try:
                compiling.append(_compile_both_ways(folder, index, arguments))
            except UpshiftError as error:  # what was measured until then is kept
                notes.append(f"compiling {arguments.compile_model}, round {index + 1}: {error}")
    tables = [_table(name, _steps(name, arguments), *measured) for name, measured in found.items()]
    Record(
        claim="left-out",
        tables=[*tables, *([_compiling_table(compiling, arguments)] if compiling else [])],
        summary={"settings": {name: _summary(*measured) for name, measured in found.items()}}
        | {"compiling": {arguments.compile_model: _medians(compiling)} if compiling else {}},
        rounds={name: result.raw() for name, (result, _, _) in found.items()} | {"compiling": compiling},
        notes=notes,
    ).publish(arguments)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=12)
    options.add_argument("--models", type=names, default=list(MODELS), help="which models, comma-separated")
    options.add_argument("--changes", type=names, default=list(CHANGES), help="which, comma-separated")
    options.add_argument("--seconds", type=float, default=60.0, help="of rounds a model, once there are 8")
    options.add_argument("--compile-model", default="cifar10-simplecnn", help="what is compiled in another process")
    options.add_argument(
        "--compile-steps",
        type=int,
        default=200,
        help="of a turn of it: so many that they take much longer than what lies between turns",
    )
    options.add_argument("--compile-rounds", type=int, default=3, help="how often each way; 0 leaves it out")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.compile_rounds = 2, min(1, arguments.compile_rounds)
        arguments.models, arguments.compile_model, arguments.changes = [QUICK_MODEL], QUICK_MODEL, QUICK_CHANGES
    arguments.changes = [PLAIN, *(name for name in arguments.changes if name != PLAIN)]
    for wanted, known, what in ((arguments.models, MODELS, "models"), (arguments.changes, CHANGES, "changes")):
        if unknown := sorted(set(wanted) - set(known)):
            options.error(f"--{what} must be of {'; '.join(known)}; received {'; '.join(unknown)}")
    return arguments


def _steps(name: str, arguments: argparse.Namespace) -> int:
    return QUICK_STEPS if arguments.quick else MODELS[name]


def _contestant(name: str, change: Change, steps: int, folder: Path, arguments: argparse.Namespace) -> Any:
    """A process that trains with the change; its compiler's caches lie in the folder."""
    from loops.processes import Contestant

    folder.mkdir(parents=True, exist_ok=True)
    plan = BASES.get(name, {}) | change.plan
    options = [name, "--steps", str(steps), "--job-steps", str(steps), "--plan", json.dumps(plan)]
    options += ["--setting", change.setting] if change.setting is not None else []
    options += ["--data-dir", str(arguments.data_dir.resolve())] if arguments.data_dir else []
    return Contestant("plan", options, {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}, folder / "log")


def _measure(name: str, scratch: Path, arguments: argparse.Namespace) -> tuple[Any, dict[str, str], dict[str, float]]:
    """The contest of a model's changes; why others failed; and the seconds of each first turn."""
    from loops.job import make_job
    from loops.processes import ContestantError
    from rounds import contest

    steps = _steps(name, arguments)
    make_job(name, arguments.data_dir, steps)  # so that the data are packed
    alive: dict[str, Any] = {}
    failures: dict[str, str] = {}
    try:
        for number, title in enumerate(arguments.changes):
            say(f"{name}: {title}")
            try:
                alive[title] = _contestant(name, CHANGES[title], steps, scratch / name / str(number), arguments)
            except ContestantError as error:
                failures[title] = str(error)
        first = {title: one.job["train_seconds"] for title, one in alive.items()}
        turns = {title: one.turn for title, one in alive.items()}
        return contest(turns, rounds=arguments.rounds, budget_seconds=arguments.seconds), failures, first
    finally:
        for one in alive.values():
            one.end()


def _compile_both_ways(folder: Path, index: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of training that compiling takes away, by either way; they take turns in going first."""
    from loops.job import make_job

    name = arguments.compile_model
    steps = make_job(name, arguments.data_dir, arguments.compile_steps).num_steps  # and so the data are packed
    found: dict[str, float] = {}
    ways = [_stand_still, _compile_elsewhere]
    for way in ways if index % 2 == 0 else reversed(ways):
        found |= way(name, steps, folder / way.__name__, arguments)
    return found


def _stand_still(name: str, steps: int, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    return {"standing still": _compile_seconds(name, steps, folder, arguments)}


def _compile_seconds(name: str, steps: int, folder: Path, arguments: argparse.Namespace) -> float:
    """Of the first turn in a new process, beyond those of a later one: compiling, with the caches of the folder."""
    one = _contestant(name, Change(COMPILED), steps, folder, arguments)
    try:
        return float(one.job["train_seconds"]) - statistics.median(one.turn() for _ in range(REST_TURNS))
    finally:
        one.end()


def _compile_elsewhere(name: str, steps: int, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Train while another process compiles, then compile from what it left."""
    training = _contestant(name, Change(), steps, folder / "training", arguments)
    failed: list[BaseException] = []

    def compile_it() -> None:
        try:
            _contestant(name, Change(COMPILED), steps, folder, arguments).end()
        except BaseException as error:
            failed.append(error)

    try:
        alone = statistics.median(training.turn() for _ in range(REST_TURNS))
        other = threading.Thread(target=compile_it)
        start = time.perf_counter()
        other.start()
        turns = []
        while other.is_alive():
            turns.append(training.turn())
        other.join()
        seconds = time.perf_counter() - start
    finally:
        training.end()
    if failed:
        raise failed[0]
    # Between its turns, training makes no steps that could be slower: what the others lost stands for all the time.
    slower = seconds * (1.0 - alone * len(turns) / sum(turns))
    return {
        "another process at work": seconds,
        "slower steps meanwhile": slower,
        "compiling from its caches": (again := _compile_seconds(name, steps, folder, arguments)),
        "another process, in all": slower + again,
    }


def _table(name: str, steps: int, result: Any, failures: dict[str, str], first: dict[str, float]) -> Table:
    from rounds import times

    rows = []
    for title in first:
        speed = "" if title == PLAIN else times(result.times_as_fast(title, PLAIN))
        rows.append([title, f"{result.median(title) / steps * 1e3:.3g}", speed, f"{first[title]:.1f}"])
    rows += [[title, "failed", reason[:60], ""] for title, reason in failures.items()]
    with_base = "".join(f", {value}" for value in BASES.get(name, {}).values())
    columns = ("tried", "ms a step", "speed of the plain steps", "first turn, s")
    return Table(title=f"{name}{with_base}, steps of a batch", columns=columns, rows=rows)


def _compiling_table(compiling: list[dict[str, float]], arguments: argparse.Namespace) -> Table:
    rows = [
        [part, f"{median:.1f}", f"{min(values):.1f} to {max(values):.1f}"]
        for part, median in _medians(compiling).items()
        for values in [[found[part] for found in compiling]]
    ]
    return Table(
        title=f"compiling {arguments.compile_model}: seconds that training loses, over {len(compiling)} rounds",
        columns=("", "median s", "from, to"),
        rows=rows,
    )


def _medians(compiling: list[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(found[part] for found in compiling) for part in compiling[0]}


def _summary(result: Any, failures: dict[str, str], first: dict[str, float]) -> dict[str, Any]:
    from rounds import as_list

    speeds = {title: as_list(result.times_as_fast(title, PLAIN)) for title in first if title != PLAIN}
    return {"times_the_plain_steps": speeds, "first_seconds": first, "failures": failures}


if __name__ == "__main__":
    main()
