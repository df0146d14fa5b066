"""Training throughput of mnist-mlp and cifar10-simplecnn: upshift, the articles' loop, Lightning, Accelerate.

All train the same model from the same weights on the same data, in batches of 64 by plain SGD, for the same number
of steps, in rounds of random order in one process. Counted is the time from asking for the first batch to the end of
the last step: nobody's set-up, compilation or evaluation is in it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from arguments import names, parser
from record import Record, Table, say

PLANS = Path(__file__).parent / "plans"
ARTICLES, BY_HAND, BASELINE = "the articles' loop", "resident tensors, by hand", "upshift"
RECIPES = {
    # steps a turn; the aim against the articles' loop; the plan that the aims are of; plan files beside the baseline
    "mnist-mlp": (300, 5.0, BASELINE, ("one-thread", "compile")),
    "cifar10-simplecnn": (
        100,
        1.8,
        f"{BASELINE} --plan channels-last-compile",
        ("channels-last", "compile", "channels-last-compile"),
    ),
}
QUICK_STEPS = 3
MAX_LOSS_DIFFERENCE = 0.05


def main() -> None:
    """Measure and publish."""
    options = parser(__doc__ or "", rounds=15)
    options.add_argument("--recipes", type=names, default=list(RECIPES), help="which recipes")
    options.add_argument("--steps", type=int, help="steps a turn [default: some seconds of the slowest]")
    options.add_argument("--budget", type=float, default=120.0, help="seconds of rounds a recipe, after 8 rounds")
    options.add_argument("--plans", type=names, help="plan files, by path or name in plans/ [default: by recipe]")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.steps = 2, QUICK_STEPS
        arguments.plans = arguments.plans or ["channels-last"]
    # What Inductor cached in earlier runs must not shorten the compile time that is reported.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        found = [_measure(name, arguments) for name in arguments.recipes]
    Record(
        claim="training-throughput",
        tables=[part["table"] for part in found],
        summary={name: part["summary"] for name, part in zip(arguments.recipes, found, strict=True)},
        rounds={name: part["rounds"] for name, part in zip(arguments.recipes, found, strict=True)},
        aims={aim: reached for part in found for aim, reached in part["aims"].items()},
        notes=[note for part in found for note in part["notes"]],
    ).publish(arguments)


def _measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    from loops.job import Turn, make_job
    from rounds import as_list, contest, times

    steps, aim, best, _ = RECIPES[name]
    job = make_job(name, arguments.data_dir, arguments.steps or steps)
    say(f"{name}: {job.num_steps} steps of {job.recipe.batch_size} a turn")
    losses: dict[str, float] = {}

    def seconds_of(contender: str, turn: Turn) -> float:
        losses[contender] = turn.loss
        return turn.seconds

    loops = _contenders(job, _plans(name, arguments))
    turns = {key: (lambda key=key, loop=loop: seconds_of(key, loop())) for key, loop in loops.items()}
    result = contest(turns, rounds=arguments.rounds, budget_seconds=arguments.budget)
    against = {key: result.times_as_fast(key, ARTICLES) for key in loops}
    rate = {key: job.num_samples / result.median(key) for key in loops}
    peers = [key for key in ("Lightning", "Accelerate") if key in loops]
    best = best if best in loops else BASELINE  # --plans may leave it out
    ahead = {key: result.times_as_fast(best, key) for key in (*peers, BY_HAND, BASELINE)}
    rows = [[key, f"{rate[key]:,.0f}", times(against[key]), f"{losses[key]:.4f}"] for key in loops]
    summary = {
        key: {
            "samples_per_second": rate[key],
            "times_the_articles_loop": as_list(against[key]),
            "mean_loss": losses[key],
            "first_seconds": result.first_seconds[key],
        }
        for key in loops
    }
    summary[best]["times"] = {key: as_list(ratio) for key, ratio in ahead.items()}
    aims = {f"{name}: {best}: at least {aim:g}× the articles' loop": against[best].estimate >= aim}
    aims |= {f"{name}: {best}: faster than {key}": ahead[key].low > 1 for key in peers}
    return {
        "table": Table(
            title=f"{name}, batches of {job.recipe.batch_size}: training samples a second",
            columns=("", "samples/s", f"speed of {ARTICLES}", "mean loss"),
            rows=rows,
        ),
        "summary": summary,
        "rounds": {"num_steps": job.num_steps, "batch_size": job.recipe.batch_size, "turns": result.raw()},
        "aims": aims if arguments.rounds >= 6 else dict.fromkeys(aims),
        "notes": _notes(name, job.recipe.batch_size, losses),
    }


def _plans(name: str, arguments: argparse.Namespace) -> dict[str, Path]:
    """Plan files by the name that they get in the table."""
    wanted = arguments.plans if arguments.plans is not None else RECIPES[name][3]
    paths = [PLANS / f"{plan}.json" if (PLANS / f"{plan}.json").is_file() else Path(plan) for plan in wanted]
    return {f"{BASELINE} --plan {path.stem}": path for path in paths}


def _contenders(job: Any, plans: dict[str, Path]) -> dict[str, Any]:
    from loops.articles import ArticlesLoop
    from loops.resident import ResidentLoop
    from loops.upshift_trainer import UpshiftTrainer
    from upshift.tuning.plan import load_plan

    loops: dict[str, Any] = {ARTICLES: ArticlesLoop(job)}
    try:
        from loops.lightning_trainer import LightningTrainer

        loops["Lightning"] = LightningTrainer(job)
    except ImportError as error:
        say(f"left out: {error}")
    try:
        from loops.accelerate_loop import AccelerateLoop

        loops["Accelerate"] = AccelerateLoop(job)
    except ImportError as error:
        say(f"left out: {error}")
    loops[BY_HAND] = ResidentLoop(job)
    loops[BASELINE] = UpshiftTrainer(job, load_plan("baseline"))
    return loops | {key: UpshiftTrainer(job, load_plan(path)) for key, path in plans.items()}


def _notes(name: str, batch_size: int, losses: dict[str, float]) -> list[str]:
    """A loop whose loss is another does not do the same training."""
    expected = losses[ARTICLES]
    return [
        f"{name}: {key} came to a mean loss of {loss:.4f}, the articles' loop to {expected:.4f}"
        for key, loss in losses.items()
        if abs(loss / expected - 1) > MAX_LOSS_DIFFERENCE
    ]


if __name__ == "__main__":
    main()
