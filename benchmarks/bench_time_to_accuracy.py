"""Time to the baseline's accuracy: each recipe's `fast` variant against its baseline, over seeds.

The baseline trains to its end; its final accuracy on the test split is the target. Then `fast` trains with that
target and stops where it is reached. The baseline's time is that of its training steps alone, evaluations left out;
the time of `fast` has its evaluations in it. Recipes and seeds already in the result file are kept, so that the work
can be done in parts.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arguments import names, numbers, parser
from record import Record, Table, commit, say

CLAIM = "time-to-accuracy"
RECIPES = ("mnist-mlp", "cifar10-simplecnn", "mnist-resnet50")
QUICK_EPOCHS = "epochs=2"
RESNET_GOAL, RESNET_SECONDS = 0.966, 240.0


def main() -> None:
    """Measure what is missing and publish all."""
    options = parser(__doc__ or "", rounds=1)
    options.add_argument("--recipe", type=names, default=list(RECIPES), help="which recipes, comma-separated")
    options.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="which seeds, comma-separated")
    options.add_argument("--plan", default="baseline", help="a plan file, for baseline and fast alike")
    options.add_argument("--again", action="store_true", help="measure anew what the result file has already")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.recipe, arguments.seeds = arguments.recipe[:1], arguments.seeds[:1]
    runs = _earlier(arguments)
    for recipe in arguments.recipe:
        for seed in arguments.seeds:
            key = f"{recipe} seed {seed}"
            if key in runs and not arguments.again:
                say(f"{key}: kept from {runs[key]['commit']}")
                continue
            runs[key] = _measure(recipe, seed, arguments)
            _record(runs, arguments).write(arguments)
    _record(runs, arguments).publish(arguments)


def _earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    """The runs of the result file, if there is one."""
    from upshift.core.environment import describe

    path = Record(claim=CLAIM, tables=(), summary={}, rounds={}).path(arguments, describe())
    if path is None or not path.is_file():
        return {}
    earlier: dict[str, Any] = json.loads(path.read_text())["rounds"]
    return earlier


def _measure(recipe: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        overrides = [QUICK_EPOCHS] if arguments.quick else []
        baseline = _train(recipe, None, seed, overrides, Path(scratch) / "baseline", arguments)
        accuracy = baseline["accuracy"]
        say(f"{recipe} seed {seed}: baseline {accuracy:.4f} in {baseline['train_seconds']:.1f} s")
        # The target is exact: one sample less and it is not reached.
        fast = _train(recipe, "fast", seed, [f"target.accuracy={accuracy!r}"], Path(scratch) / "fast", arguments)
    reached = fast["time_to_target_seconds"]
    say(
        f"{recipe} seed {seed}: fast {fast['accuracy']:.4f}, target {f'after {reached:.1f} s' if reached else 'MISSED'}"
    )
    return {
        "recipe": recipe,
        "seed": seed,
        "plan": arguments.plan,
        "commit": commit(),
        "baseline": baseline,
        "fast": fast,
        "ratio": baseline["train_seconds"] / reached if reached else None,
        "ratio_to_first_reach": baseline["first_reach_seconds"] / reached if reached else None,
    }


def _train(
    recipe: str, variant: str | None, seed: int, overrides: list[str], out: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    from upshift.core.records import read_jsonl
    from upshift.terminal import Terminal
    from upshift.workflows.train import train

    trained = train(
        recipe,
        variant=variant,
        overrides=overrides,
        plan=arguments.plan,
        seed=seed,
        out=out,
        data_dir=arguments.data_dir,
        observers=(Terminal(quiet=False),),
    )
    result = trained.result
    kept = ("epochs", "steps", "train_seconds", "evaluation_seconds", "time_to_target_seconds", "stopped")
    evaluations = [
        {"step": line["step"], "accuracy": line["eval_accuracy"]}
        for line in read_jsonl(trained.folder.metrics)
        if "eval_accuracy" in line
    ]
    accuracy = result["metrics"]["accuracy"]
    # The first evaluation as good as the last: what a baseline that stopped in time would have taken.
    first = next((e["step"] for e in evaluations if e["accuracy"] >= accuracy), result["steps"])
    return {key: result[key] for key in kept} | {
        "accuracy": accuracy,
        "evaluations": evaluations,
        "first_reach_seconds": result["train_seconds"] * first / result["steps"],
    }


def _record(runs: dict[str, Any], arguments: argparse.Namespace) -> Record:
    recipes = [name for name in RECIPES if any(run["recipe"] == name for run in runs.values())]
    recipes += sorted({run["recipe"] for run in runs.values()} - set(recipes))
    groups = {name: [run for run in runs.values() if run["recipe"] == name] for name in recipes}
    return Record(
        claim=CLAIM,
        tables=[_by_run(runs), _by_recipe(groups)],
        summary={name: _summary(group) for name, group in groups.items()},
        rounds=runs,
        aims=_aims(groups) if not arguments.quick else {},
        notes=["evaluated at the end of epochs and of the training: no time is shorter than up to the first of these"],
    )


def _summary(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds: the ratios' geometric mean; None where a seed did not reach its target."""
    ratios, first = [run["ratio"] for run in group], [run["ratio_to_first_reach"] for run in group]
    reached = [run["fast"]["time_to_target_seconds"] for run in group]
    return {
        "seeds": [run["seed"] for run in group],
        "num_reached": sum(seconds is not None for seconds in reached),
        "baseline_accuracy": _mean([run["baseline"]["accuracy"] for run in group]),
        "fast_accuracy": _mean([run["fast"]["accuracy"] for run in group]),
        "baseline_train_seconds": _mean([run["baseline"]["train_seconds"] for run in group]),
        "fast_seconds_to_target": None if None in reached else _mean(reached),
        "ratio": None if None in ratios else _geometric_mean(ratios),
        "ratio_to_first_reach": None if None in first else _geometric_mean(first),
    }


def _by_run(runs: dict[str, Any]) -> Table:
    rows = []
    for run in runs.values():
        baseline, fast = run["baseline"], run["fast"]
        rows.append(
            [
                f"{run['recipe']}, seed {run['seed']}",
                f"{baseline['accuracy']:.2%}",
                f"{baseline['train_seconds']:.1f}",
                f"{fast['accuracy']:.2%}",
                _number(fast["time_to_target_seconds"], ".1f"),
                _number(run["ratio"], ".1f", "×"),
            ]
        )
    columns = ("", "baseline", "its s", "fast", "s to the baseline's", "ratio")
    return Table(title="time to the baseline's final test accuracy", columns=columns, rows=rows)


def _by_recipe(groups: dict[str, list[dict[str, Any]]]) -> Table:
    rows = []
    for name, group in groups.items():
        total = _summary(group)
        rows.append(
            [
                name,
                f"{total['num_reached']} of {len(group)}",
                _number(total["ratio"], ".1f", "×"),
                _number(total["ratio_to_first_reach"], ".1f", "×"),
            ]
        )
    columns = ("", "seeds that reached it", "ratio", "against the baseline's first reach")
    return Table(title="over seeds (geometric means)", columns=columns, rows=rows)


def _aims(groups: dict[str, list[dict[str, Any]]]) -> dict[str, bool | None]:
    aims: dict[str, bool | None] = {}
    for name, group in groups.items():
        aims[f"{name}: fast reaches the baseline's accuracy sooner with every seed"] = all(
            run["ratio"] is not None and run["ratio"] > 1 for run in group
        )
    for run in groups.get("mnist-resnet50", ()):
        fast = run["fast"]
        seconds = fast["train_seconds"] + fast["evaluation_seconds"]
        aim = f"mnist-resnet50: fast reaches {RESNET_GOAL:.1%} within {RESNET_SECONDS:.0f} s, seed {run['seed']}"
        best = max(evaluation["accuracy"] for evaluation in fast["evaluations"])
        aims[aim] = best >= RESNET_GOAL and seconds <= RESNET_SECONDS
    return aims


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "not reached" if value is None else f"{value:{form}}{unit}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(_mean([math.log(value) for value in values]))


if __name__ == "__main__":
    main()
