"""Training against all peers: samples a second in steady state, and the seconds of whole jobs, tuning included.

The same model, data, batches, optimizer and number of steps by the articles' loop, a careful loop by hand with and
without torch.compile, Lightning, Accelerate, Keras 3 on three backends, and upshift with `--plan auto`. Each trains in
a process of its own. First a whole job from empty caches: set-up, compiling and tuning are in its time, imports and
evaluations are not. Then turns of steady state, interleaved, while the processes of the others stand still.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arguments import names, parser
from peers import ARTICLES, PEERS, SECOND, UPSHIFT, Measured, Peer, loss_notes, overview, raw, summary
from record import Record, say

REQUIREMENTS = "benchmarks/requirements-peers.txt"
MODELS = {
    # steps of a turn, steps of a whole job: on two cores about half a second and some seconds of the articles' loop
    "mnist-mlp": (200, 1870),
    "mnist-cnn": (60, 930),
    "cifar10-simplecnn": (40, 468),
    "cifar10-net": (10, 120),
    "cifar10-resnet18": (1, 8),
    "mnist-resnet50": (3, 24),
    "sst2-transformer": (3, 36),
}
QUICK_STEPS = (2, 4)
LEAST_OF_BEST, MOST_LOST, TIMES_BEST, TIMES_ARTICLES = 0.99, 0.02, 1.3, 2.5


def main() -> None:
    """Measure and publish."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no contestant is left standing still for ever
    missing = {key: peer for key, peer in PEERS.items() if key in arguments.peers and peer.missing}
    for key, peer in missing.items():
        say(f"{peer.title}: not installed: {', '.join(peer.missing)}; pip install -r {REQUIREMENTS}")
        arguments.peers.remove(key)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models:
            found.append(_measure(name, Path(scratch), arguments))
            say("\n".join(found[-1].table(missing).lines()))
    _record(found, missing, arguments).publish(arguments)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=6)
    options.add_argument("--models", type=names, default=list(MODELS), help="which models, comma-separated")
    options.add_argument("--peers", type=names, default=list(PEERS), help="which peers, comma-separated")
    options.add_argument("--steps", type=int, help="steps of a turn [default: by model]")
    options.add_argument("--job-steps", type=int, help="steps of a whole job [default: by model]")
    options.add_argument("--job-rounds", type=int, default=1, help="whole jobs of each; 6 give an interval")
    options.add_argument("--seconds", type=float, default=30.0, help="of steady rounds a model, once there are 8")
    options.add_argument("--tune-seconds", type=float, default=25.0, help="budget of `upshift tune` for steady state")
    arguments = options.parse_args()
    for wanted, known, what in ((arguments.models, MODELS, "models"), (arguments.peers, PEERS, "peers")):
        if unknown := sorted(set(wanted) - set(known)):
            options.error(f"--{what} must be of {', '.join(known)}; received {', '.join(unknown)}")
    if not {ARTICLES, UPSHIFT} <= set(arguments.peers):
        options.error(f"--peers must have {ARTICLES} and {UPSHIFT}, which all others are compared with")
    if arguments.quick:
        arguments.rounds, arguments.job_rounds, arguments.tune_seconds = 2, 1, 0.01
        arguments.steps, arguments.job_steps = (
            given or quick for given, quick in zip((arguments.steps, arguments.job_steps), QUICK_STEPS, strict=True)
        )
    return arguments


def _measure(name: str, scratch: Path, arguments: argparse.Namespace) -> Measured:
    from loops.job import make_job

    turn_steps, job_steps = MODELS[name]
    job = make_job(name, arguments.data_dir, arguments.steps or turn_steps)  # and so the data are packed
    measured = Measured(
        name=name,
        batch_size=job.recipe.batch_size,
        num_steps=job.num_steps,
        job_steps=arguments.job_steps or job_steps,
        limit_seconds=_limit_seconds(job),
    )
    say(f"{name}: turns of {measured.num_steps} steps, whole jobs of {measured.job_steps}")
    num_parameters = sum(parameter.numel() for parameter in job.model().parameters())
    with _contestants(measured, scratch / name, arguments) as alive:
        _check_models(measured, num_parameters)
        for key in list(alive):
            _first_turn(key, alive, measured)
        _steady_state(measured, alive, arguments)
    return measured


def _limit_seconds(job: Any) -> float:
    """The least that a step of a job takes on this machine, by its measured peaks."""
    from torch.nn import functional as F

    from upshift.core.flops import step_cost
    from upshift.core.limits import limits
    from upshift.core.roofline import share_of_limit
    from upshift.tuning.plan import BASELINE
    from upshift.workflows.datasets import make_loaders

    model = job.model()
    optimizer = job.optimizer(model)
    inputs, labels = next(iter(make_loaders(job.dataset, job.recipe, BASELINE, job.device, 0).train.epoch(0)))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    step()  # the optimizer's state is made in its first step
    cost = step_cost(model, step, optimizer=optimizer)
    return share_of_limit(cost, 1.0, limits(job.device), "fp32").limit_seconds


@contextlib.contextmanager
def _contestants(measured: Measured, scratch: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run the whole jobs; gives the processes of the last round, which stand still."""
    from loops.processes import Contestant, ContestantError

    alive: dict[str, Contestant] = {}
    order = random.Random(0)
    options = [measured.name, "--steps", str(measured.num_steps), "--job-steps", str(measured.job_steps)]
    options += ["--tune-seconds", str(arguments.tune_seconds)]
    options += ["--data-dir", str(arguments.data_dir.resolve())] if arguments.data_dir else []
    try:
        for round_number in range(1, arguments.job_rounds + 1):
            is_last = round_number == arguments.job_rounds
            keys = [key for key in arguments.peers if key not in measured.failures]
            order.shuffle(keys)
            for key in keys:
                folder = scratch / f"{key}-{round_number}"
                environment = _environment(PEERS[key], folder)
                again = [SECOND] if key == UPSHIFT else []
                for run in (key, *again):  # upshift's second run begins with what the first one left in its caches
                    try:
                        contestant = Contestant(key, options, environment, folder / f"{run}.log")
                    except ContestantError as error:
                        measured.failures[run] = str(error)
                        say(f"{PEERS[key].title} failed: {error}")
                        break
                    facts = contestant.job | {"process_seconds": contestant.process_seconds}
                    measured.jobs.setdefault(run, []).append(facts)
                    say(f"{run}: a whole job in {facts['job_seconds']:.1f} s")
                    if is_last and run == key:
                        alive[key] = contestant
                    else:
                        contestant.end()
        yield alive
    finally:
        for contestant in alive.values():
            contestant.end()


def _environment(peer: Peer, folder: Path) -> dict[str, str]:
    """Caches of its own, empty but for the packed data, which all share."""
    from upshift.core.files import cache_folder

    cache = folder / "cache"
    cache.mkdir(parents=True)
    for shared in ("packed", "datasets"):
        (cache_folder() / shared).mkdir(parents=True, exist_ok=True)
        (cache / shared).symlink_to((cache_folder() / shared).resolve())
    caches = {
        "UPSHIFT_CACHE_DIR": cache,
        "TORCHINDUCTOR_CACHE_DIR": folder / "inductor",
        "KERAS_HOME": folder / "keras",
    }
    return {name: str(path) for name, path in caches.items()} | peer.environment


def _check_models(measured: Measured, num_parameters: int) -> None:
    """All must train as many parameters: else they would not be the same model."""
    for key, jobs in measured.jobs.items():
        for job in jobs:
            if job["num_parameters"] != num_parameters:
                raise AssertionError(f"{measured.name}: {key} trains {job['num_parameters']}, not {num_parameters}")


def _first_turn(key: str, alive: dict[str, Any], measured: Measured) -> None:
    """A turn that does not count: before it upshift looks for the plan of its steady state."""
    from loops.processes import ContestantError

    try:
        alive[key].turn()
    except ContestantError as error:
        measured.failures[key] = str(error)
        alive.pop(key).end()


def _steady_state(measured: Measured, alive: dict[str, Any], arguments: argparse.Namespace) -> None:
    from rounds import contest

    if not alive:
        return
    turns = {key: contestant.turn for key, contestant in alive.items()}
    measured.contest = contest(turns, rounds=arguments.rounds, budget_seconds=arguments.seconds)
    measured.losses = {key: contestant.turns[-1]["loss"] for key, contestant in alive.items()}
    for key, timing in measured.contest.timings.items():
        if timing.failure is not None:
            measured.failures[key] = timing.failure
    if UPSHIFT in alive:
        measured.facts = alive[UPSHIFT].turns[-1]["facts"]


def _record(found: list[Measured], missing: dict[str, Peer], arguments: argparse.Namespace) -> Record:
    complete = [one for one in found if {ARTICLES, UPSHIFT} < set(one.steady)]
    notes = [_versions()]
    notes += [f"{peer.title}: not installed; pip install -r {REQUIREMENTS}" for peer in missing.values()]
    for one in found:
        notes += [f"{one.name}: {key} failed: {reason}" for key, reason in one.failures.items()]
        notes += loss_notes(one)
    if arguments.job_rounds < 6:
        notes.append(f"whole jobs were run {arguments.job_rounds}× each: too few for an interval")
    figures = {one.name: summary(one) for one in found}
    if complete:
        figures["geometric_means"] = {
            "upshift_times_best_peer": _geometric_mean([one.against_best().estimate for one in complete]),
            "upshift_times_articles": _geometric_mean(
                [one.times_as_fast(UPSHIFT, ARTICLES).estimate for one in complete]
            ),
        }
    return Record(
        claim="training-peers",
        tables=[*(one.table(missing) for one in found), overview(complete)],
        summary=figures,
        rounds={one.name: raw(one) for one in found},
        aims=_aims(found, complete, missing, arguments),
        notes=notes,
    )


def _aims(
    found: list[Measured], complete: list[Measured], missing: dict[str, Peer], arguments: argparse.Namespace
) -> dict[str, bool | None]:
    is_measured = not arguments.quick and arguments.rounds >= 6
    aims: dict[str, bool | None] = {}
    for one in complete:
        others = [key for key in one.jobs if key not in (UPSHIFT, SECOND)]
        worst = min(one.job_times_as_fast(UPSHIFT, key).estimate for key in others)
        aims[f"{one.name}: steady state at least {LEAST_OF_BEST:g} of the best"] = (
            one.against_best().estimate >= LEAST_OF_BEST
        )
        aims[f"{one.name}: no whole job quicker than upshift's by more than {MOST_LOST:.0%}"] = worst >= 1 - MOST_LOST
    if complete:
        best = _geometric_mean([one.against_best().estimate for one in complete])
        articles = _geometric_mean([one.times_as_fast(UPSHIFT, ARTICLES).estimate for one in complete])
        # Of some of the models or peers it would be another claim.
        is_whole = len(complete) == len(found) == len(MODELS) and not missing and len(arguments.peers) == len(PEERS)
        aims[f"geometric mean at least {TIMES_BEST:g}× the best peer"] = best >= TIMES_BEST if is_whole else None
        aims[f"geometric mean at least {TIMES_ARTICLES:g}× the articles' loop"] = (
            articles >= TIMES_ARTICLES if is_whole else None
        )
    return aims if is_measured else dict.fromkeys(aims)


def _versions() -> str:
    """Of the peers' packages, which the record's environment does not have."""
    from importlib.metadata import distributions

    wanted = ("lightning", "accelerate", "keras", "tensorflow", "tensorflow-cpu", "jax")
    installed = {one.metadata["Name"].lower().replace("_", "-"): one.version for one in distributions()}
    return "with " + ", ".join(f"{name} {installed[name]}" for name in wanted if name in installed)


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


if __name__ == "__main__":
    main()
