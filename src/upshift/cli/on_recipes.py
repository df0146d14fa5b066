"""The verbs that take a recipe: run, recipes, train, tune, profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from upshift.cli import stdout
from upshift.cli.options import (
    AllowOption,
    DataDirOption,
    JsonOption,
    MaxDropOption,
    OutOption,
    PlanOption,
    QuietOption,
    RecipeArgument,
    ResumeOption,
    SeedOption,
    SetOption,
    SkipBadOption,
    TargetOption,
    UnusedSeedOption,
    VariantOption,
)
from upshift.cli.verb import Show, after, answer, field_overrides, print_lines
from upshift.terminal import Terminal
from upshift.workflows.defaults import MAX_DROP


def _training(
    recipe: RecipeArgument,
    variant: VariantOption = None,
    set_: SetOption = None,
    target: TargetOption = None,
    plan: PlanOption = "auto",
    seed: SeedOption = 0,
    out: OutOption = None,
    resume: ResumeOption = False,
    data_dir: DataDirOption = None,
    skip_bad: SkipBadOption = False,
    allow: AllowOption = None,
) -> dict[str, Any]:
    """The options of the verbs that train, as the arguments of their workflows."""
    return {
        "recipe": recipe,
        "variant": variant,
        "overrides": field_overrides(set_, target),
        "plan": plan,
        "seed": seed,
        "out": out,
        "resume": resume,
        "data_dir": data_dir,
        "skip_bad": skip_bad,
        "allow": allow or [],
    }


@after(_training)
def run(
    training: dict[str, Any],
    max_drop: MaxDropOption = MAX_DROP,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> Show:
    """Train, optimize for inference, verify, and write a report."""
    from upshift.workflows.report import summary_lines
    from upshift.workflows.run import run as run_workflow

    terminal = Terminal(quiet=quiet)
    completed = run_workflow(
        **training,
        max_drop=max_drop,
        observers=(terminal,),
        on_data_progress=terminal.on_data,
        on_event=terminal.on_event,
    )
    return answer(
        completed.result,
        as_json,
        lambda: print_lines(summary_lines(completed.result, report=completed.report, width=stdout.width())),
    )


def recipes(seed: UnusedSeedOption = 0, as_json: JsonOption = False, quiet: QuietOption = False) -> Show:
    """List the built-in recipes."""
    from upshift.workflows.recipes import recipes as recipes_workflow

    listed = recipes_workflow()

    def table() -> None:
        names = max(len(item["name"]) for item in listed) + 2
        for item in listed:
            variants = f" [variants: {', '.join(item['variants'])}]" if item["variants"] else ""
            stdout.print_text(stdout.beside(item["name"], names, item["description"] + variants))

    return answer(listed, as_json, table)


@after(_training)
def train(training: dict[str, Any], as_json: JsonOption = False, quiet: QuietOption = False) -> Show:
    """Train a recipe's model and evaluate it on the test split."""
    from upshift.workflows.report import summary_lines
    from upshift.workflows.train import train as train_workflow

    terminal = Terminal(quiet=quiet)
    trained = train_workflow(**training, observers=(terminal,), on_data_progress=terminal.on_data)
    return answer(trained.result, as_json, lambda: print_lines(summary_lines(trained.result, width=stdout.width())))


def tune(
    recipe: RecipeArgument,
    variant: VariantOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The plan file to write.")] = Path("plan.json"),
    budget: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin no further candidate after this long.")
    ] = None,
    data_dir: DataDirOption = None,
    skip_bad: SkipBadOption = False,
    allow: AllowOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> Show:
    """Find the fastest plan of a recipe's training steps, and save it."""
    from upshift.workflows.report import tuning_lines
    from upshift.workflows.tune import tune as tune_workflow

    terminal = Terminal(quiet=quiet)
    tuned = tune_workflow(
        recipe,
        variant=variant,
        overrides=set_ or [],
        seed=seed,
        out=out,
        budget_seconds=budget,
        data_dir=data_dir,
        skip_bad=skip_bad,
        allow=allow or [],
        on_data_progress=terminal.on_data,
        on_trial=terminal.on_event,
    )
    return answer(tuned.result, as_json, lambda: print_lines(tuning_lines(tuned.result, width=stdout.width())))


def profile(
    recipe: RecipeArgument,
    variant: VariantOption = None,
    set_: SetOption = None,
    plan: Annotated[str, typer.Option(metavar="baseline|FILE", help="How steps are executed.")] = "baseline",
    seed: SeedOption = 0,
    steps: Annotated[int, typer.Option(help="Steps to time, in at most 20 seconds.")] = 50,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it is written [default: runs/RECIPE-profile-TIME].")
    ] = None,
    data_dir: DataDirOption = None,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> Show:
    """Tell where the time of a training goes, and what to do about it."""
    from upshift.workflows.profile import profile as profile_workflow
    from upshift.workflows.profile import profile_lines

    terminal = Terminal(quiet=quiet)
    profiled = profile_workflow(
        recipe,
        variant=variant,
        overrides=set_ or [],
        plan=plan,
        seed=seed,
        num_steps=steps,
        out=out,
        data_dir=data_dir,
        skip_bad=skip_bad,
        on_data_progress=terminal.on_data,
        on_progress=terminal.on_data,
        on_event=terminal.on_event,
    )
    return answer(
        profiled.result,
        as_json,
        lambda: print_lines(profile_lines(profiled.result, page=profiled.page, width=stdout.width())),
    )
