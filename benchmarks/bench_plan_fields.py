"""What single fields of a plan gain in training: steps by the plain plan and by others, in interleaved turns.

Each plan trains in a process of its own, with records on, as `upshift train` has it; its first turn, in which it
compiles, is told apart. These are the figures of docs/tune.md, and what the tuner's candidates rest on.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from arguments import names, parser
from record import Record, Table, say

PLAIN = "plain"
PLANS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "one thread": {"num_threads": 1},
    "freed memory kept": {"keep_freed_memory": True},
    "channels_last": {"memory_format": "channels_last"},
    "channels_last + kept": {"memory_format": "channels_last", "keep_freed_memory": True},
    "compiled": {"compile": "whole"},
    "compiled step": {"compile": "step"},
    "compiled step + kept": {"compile": "step", "keep_freed_memory": True},
    "compiled step + channels_last + kept": {
        "compile": "step",
        "memory_format": "channels_last",
        "keep_freed_memory": True,
    },
    "compiled max-autotune": {"compile": "whole", "compile_mode": "max-autotune-no-cudagraphs"},
    "bf16": {"precision": "bf16"},
}
USUAL = [name for name in PLANS if name not in ("compiled max-autotune", "bf16")]
MODELS = {"mnist-mlp": 200, "mnist-cnn": 40, "cifar10-simplecnn": 40, "cifar10-net": 10, "sst2-transformer": 3}
QUICK_STEPS = 2


def main() -> None:
    """Measure and publish."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left standing still for ever
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models:
            found[name] = _measure(name, Path(scratch), arguments)
            say("\n".join(_table(name, _steps(name, arguments), *found[name]).lines()))
    Record(
        claim="plan-fields",
        tables=[_table(name, _steps(name, arguments), *measured) for name, measured in found.items()],
        summary={name: _summary(*measured) for name, measured in found.items()},
        rounds={name: result.raw() for name, (result, _, _) in found.items()},
    ).publish(arguments)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=12)
    options.add_argument("--models", type=names, default=list(MODELS), help="which models, comma-separated")
    options.add_argument("--plans", type=names, default=USUAL, help="which plans, comma-separated")
    options.add_argument("--seconds", type=float, default=40.0, help="of rounds a model, once there are 8")
    arguments = options.parse_args()
    arguments.plans = [PLAIN, *(name for name in arguments.plans if name != PLAIN)]
    for wanted, known, what in ((arguments.models, MODELS, "models"), (arguments.plans, PLANS, "plans")):
        if unknown := sorted(set(wanted) - set(known)):
            options.error(f"--{what} must be of {', '.join(known)}; received {', '.join(unknown)}")
    if arguments.quick:
        arguments.rounds = 2
    return arguments


def _measure(name: str, scratch: Path, arguments: argparse.Namespace) -> tuple[Any, dict[str, str], dict[str, float]]:
    """The contest of a model's plans; why others failed; and the seconds of each first turn."""
    from loops.job import make_job
    from loops.processes import Contestant, ContestantError
    from rounds import contest

    steps = _steps(name, arguments)
    job = make_job(name, arguments.data_dir, steps)  # and so the data are packed
    alive: dict[str, Contestant] = {}
    failures: dict[str, str] = {}
    try:
        for title in arguments.plans:
            if "channels_last" in title and job.dataset.info.kind != "image":
                continue
            say(f"{name}: {title}")
            folder = scratch / name / title.replace(" ", "-")
            folder.mkdir(parents=True)
            options = [name, "--steps", str(steps), "--job-steps", str(steps), "--plan", json.dumps(PLANS[title])]
            options += ["--data-dir", str(arguments.data_dir.resolve())] if arguments.data_dir else []
            environment = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
            try:
                alive[title] = Contestant("plan", options, environment, folder / "log")
            except ContestantError as error:
                failures[title] = str(error)
        first = {title: one.job["train_seconds"] for title, one in alive.items()}
        turns = {title: one.turn for title, one in alive.items()}
        return contest(turns, rounds=arguments.rounds, budget_seconds=arguments.seconds), failures, first
    finally:
        for one in alive.values():
            one.end()


def _steps(name: str, arguments: argparse.Namespace) -> int:
    return QUICK_STEPS if arguments.quick else MODELS[name]


def _table(name: str, steps: int, result: Any, failures: dict[str, str], first: dict[str, float]) -> Table:
    from rounds import times

    rows = []
    for title in first:
        speed = "" if title == PLAIN else times(result.times_as_fast(title, PLAIN))
        rows.append([title, f"{result.median(title) / steps * 1e3:.3g}", speed, f"{first[title]:.1f}"])
    rows += [[title, "failed", reason[:60], ""] for title, reason in failures.items()]
    columns = ("plan", "ms a step", "speed of the plain plan", "first turn, s")
    return Table(title=f"{name}, steps of a batch", columns=columns, rows=rows)


def _summary(result: Any, failures: dict[str, str], first: dict[str, float]) -> dict[str, Any]:
    from rounds import as_list

    speeds = {title: as_list(result.times_as_fast(title, PLAIN)) for title in first if title != PLAIN}
    return {"times_the_plain_plan": speeds, "first_seconds": first, "failures": failures}


if __name__ == "__main__":
    main()
