"""What was tried to make training steps faster, and is no candidate of the tuner: each against the same steps without.

Settings of torch, the dearest compile mode, and batches made on another thread are timed in interleaved turns, beside
a second copy of the plain steps, which tells how far the figures are to be trusted. Compiling in another process is
timed by what training loses: standing still while it compiles, or steps that are slower meanwhile, and then compiling
from the caches that the other process left. These are the figures of "Tried, and left out" in docs/tune.md.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arguments import names, parser
from record import Record, Table, say

if TYPE_CHECKING:
    from loops.plan_contest import PlanContest, Training

PLAIN, AGAIN = "plain", "plain once more"
COMPILED = {"compile": "whole"}
CHANGES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    AGAIN: {},
    "denormals flushed": {"setting": "denormals flushed"},
    "oneDNN off": {"setting": "oneDNN off"},
    "oneDNN deterministic": {"setting": "oneDNN deterministic"},
    "matmul precision medium": {"setting": "matmul precision medium"},
    "batches made ahead on a thread": {"setting": "read ahead"},
    "bf16": {"plan": {"precision": "bf16"}},
    "compiled": {"plan": COMPILED},
    "compiled max-autotune": {"plan": COMPILED | {"compile_mode": "max-autotune-no-cudagraphs"}},
}
"""Of a way to train, see `loops.plan_contest.Way`, what is other than that of the plain steps."""
MODELS = {"cifar10-simplecnn": 40, "mnist-mlp": 200}
BASES = {"cifar10-simplecnn": {"memory_format": "channels_last"}}
QUICK_STEPS, QUICK_MODEL = 2, "mnist-mlp"
QUICK_CHANGES = [PLAIN, AGAIN, "denormals flushed", "batches made ahead on a thread"]
REST_TURNS = 5
COMPILE_STEPS = 2
"""That another process makes to compile all that a step needs: it has nothing else to do."""


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
            say("\n".join(_table(name, found[name]).lines()))
        for index in range(arguments.compile_rounds):
            folder = Path(scratch) / f"compiling-{index}"
            say(f"compiling {arguments.compile_model}, round {index + 1}")
            try:
                compiling.append(_compile_both_ways(folder, index, arguments))
            except UpshiftError as error:  # what was measured until then is kept
                notes.append(f"compiling {arguments.compile_model}, round {index + 1}: {error}")
    tables = [_table(name, measured) for name, measured in found.items()]
    Record(
        claim="left-out",
        tables=[*tables, *([_compiling_table(compiling, arguments)] if compiling else [])],
        summary={"settings": {name: measured.summary() for name, measured in found.items()}}
        | {"compiling": {arguments.compile_model: _medians(compiling)} if compiling else {}},
        rounds={name: measured.result.raw() for name, measured in found.items()} | {"compiling": compiling},
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


def _measure(name: str, scratch: Path, arguments: argparse.Namespace) -> PlanContest:
    from loops.plan_contest import Training, Way, plan_contest

    base, changes = BASES.get(name, {}), {title: CHANGES[title] for title in arguments.changes}
    ways = {title: Way(**change | {"plan": base | change.get("plan", {})}) for title, change in changes.items()}
    training = Training(name, QUICK_STEPS if arguments.quick else MODELS[name], arguments.data_dir)
    return plan_contest(training, ways, scratch, plain=PLAIN, rounds=arguments.rounds, seconds=arguments.seconds)


def _compile_both_ways(folder: Path, index: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of training that compiling takes away, by either way; they take turns in going first."""
    from loops.job import make_job
    from loops.plan_contest import Training

    name, data_dir = arguments.compile_model, arguments.data_dir
    steps = make_job(name, data_dir, arguments.compile_steps).num_steps  # and so the data are packed
    training = Training(name, steps, data_dir)
    found: dict[str, float] = {}
    ways = [_stand_still, _compile_elsewhere]
    for way in ways if index % 2 == 0 else reversed(ways):
        found |= way(training, folder / way.__name__)
    return found


def _stand_still(training: Training, folder: Path) -> dict[str, float]:
    return {"standing still": _compile_seconds(training, folder)}


def _compile_seconds(training: Training, folder: Path) -> float:
    """Of the first turn in a new process, beyond those of a later one: compiling, with the caches of the folder."""
    from loops.plan_contest import Way

    one = training.contestant(Way(COMPILED), folder)
    try:
        return float(one.job["train_seconds"]) - statistics.median(one.turn() for _ in range(REST_TURNS))
    finally:
        one.end()


def _compile_elsewhere(training: Training, folder: Path) -> dict[str, float]:
    """Train while another process compiles, then compile from what it left."""
    from loops.plan_contest import Way

    trainee = training.contestant(Way(), folder / "training")
    failed: list[BaseException] = []

    def compile_it() -> None:
        try:
            training.contestant(Way(COMPILED), folder, first_steps=COMPILE_STEPS).end()
        except BaseException as error:
            failed.append(error)

    other = threading.Thread(target=compile_it)
    try:
        alone = statistics.median(trainee.turn() for _ in range(REST_TURNS))
        start = time.perf_counter()
        other.start()
        turns = []
        while other.is_alive():
            turns.append(trainee.turn())
        seconds = time.perf_counter() - start
    finally:
        trainee.end()
        if other.ident is not None:
            other.join()  # what it compiles would disturb what is timed next
    if failed:
        raise failed[0]
    # Between its turns, training makes no steps that could be slower: what the others lost stands for all the time.
    slower = seconds * (1.0 - alone * len(turns) / sum(turns))
    return {
        "another process at work": seconds,
        "slower steps meanwhile": slower,
        "compiling from its caches": (again := _compile_seconds(training, folder)),
        "another process, in all": slower + again,
    }


def _table(name: str, measured: PlanContest) -> Table:
    base = ", ".join([name, *map(str, BASES.get(name, {}).values())])
    return measured.table(base, "tried")


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


if __name__ == "__main__":
    main()
