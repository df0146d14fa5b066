"""What single fields of a plan gain in training: steps by the plain plan and by others, in interleaved turns.

Each plan trains in a process of its own, with records on, as `upshift train` has it; its first turn, in which it
compiles, is told apart. These are the figures of docs/tune.md, and what the tuner's candidates rest on.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arguments import names, parser
from record import Record, say

if TYPE_CHECKING:
    from loops.plan_contest import PlanContest

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
            say("\n".join(found[name].table(name, "plan").lines()))
    Record(
        claim="plan-fields",
        tables=[measured.table(name, "plan") for name, measured in found.items()],
        summary={name: measured.summary() for name, measured in found.items()},
        rounds={name: measured.result.raw() for name, measured in found.items()},
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


def _measure(name: str, scratch: Path, arguments: argparse.Namespace) -> PlanContest:
    from loops.job import make_job
    from loops.plan_contest import Training, Way, plan_contest

    steps = QUICK_STEPS if arguments.quick else MODELS[name]
    is_image = make_job(name, arguments.data_dir, steps).dataset.info.kind == "image"
    ways = {title: Way(PLANS[title]) for title in arguments.plans if is_image or "channels_last" not in title}
    training = Training(name, steps, arguments.data_dir)
    return plan_contest(training, ways, scratch, plain=PLAIN, rounds=arguments.rounds, seconds=arguments.seconds)


if __name__ == "__main__":
    main()
