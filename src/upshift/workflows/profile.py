"""`profile`: where the time of a recipe's training goes, how far from the machine's limit, what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from upshift.core import environment
from upshift.core.files import finite, write_bytes, write_json
from upshift.core.limits import known_limits, limits
from upshift.core.reference import refuse_while_importing
from upshift.data.augment import augments
from upshift.data.torch_datasets import DatasetSplit, input_and_label
from upshift.errors import ConfigError
from upshift.recipes.recipe import Recipe
from upshift.reports.profile_lines import profile_lines as profile_lines
from upshift.training.loss import CrossEntropy
from upshift.training.rng import seed_everything
from upshift.tuning.plan import Plan, load_plan
from upshift.tuning.profiling.advice import Advice, advise
from upshift.tuning.profiling.attribution import Roofline
from upshift.tuning.profiling.job import PROFILED, Job
from upshift.tuning.profiling.measure import Measurement, ProfileConfig, measure
from upshift.tuning.profiling.rehearsal import Rehearsal
from upshift.tuning.undisturbed import torch_settings_put_back
from upshift.workflows.arguments import verb
from upshift.workflows.folders import open_run_folder, refuse_folder
from upshift.workflows.preparation import Prepared, prepare_training

PROFILE_VERSION = 1
RECORD, PAGE, TRACE = "profile.json", "profile.html", "trace.json.gz"


@dataclass(frozen=True)
class ProfiledTraining:
    """A profile of a training.

    Attributes:
        path: The folder with `profile.json`, `profile.html`, `trace.json.gz`, and plans that the advice names.
        result: The content of `profile.json`.
    """

    path: Path
    result: dict[str, Any]

    @property
    def page(self) -> Path:
        """The page that shows it."""
        return self.path / PAGE


@verb
def profile(
    recipe: str | Path | Recipe,
    *,
    variant: str | None = None,
    overrides: Sequence[str] = (),
    plan: str | Path | Plan = "baseline",
    seed: int = 0,
    out: str | Path | None = None,
    num_steps: int = 50,
    data: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    on_data_progress: Callable[[str, int, int], None] | None = None,
    on_progress: Callable[[str, int, int], None] = lambda description, done, total: None,
    on_event: Callable[[str], None] = lambda text: None,
) -> ProfiledTraining:
    """Make steps of a recipe's training and tell where their time goes, and what to do about it.

    The weights that the steps come to are thrown away.

    Args:
        recipe: A built-in name, a Python file, "package.module:RECIPE", or a `Recipe`.
        variant: One of the recipe's variants, such as "fast".
        overrides: Fields to change, as "optimizer.lr=0.1".
        plan: "baseline", a plan file, or a `Plan`: how the steps are executed.
        seed: Of the weights, the order of samples, augmentation and dropout.
        out: The folder to write to, new or empty; `runs/<recipe>-profile-<time>` when None.
        num_steps: Steps that are timed, at least three; fewer are made where they take longer than 20 seconds.
        data: torch map-style datasets to use instead of the recipe's: {"train": …, "test": …} and
            optionally "validation".
        data_dir: Where named datasets are looked for.
        skip_bad: Leave bad rows of the data out, instead of refusing.
        on_data_progress: Called with (description, done, total) while data are packed.
        on_progress: Called with (description, done, total) while steps are timed.
        on_event: Told what goes on, in words.

    Raises:
        BadInputError: Something of the above cannot be served; nothing was written.
    """
    refuse_while_importing("profile")
    if num_steps < 3:
        raise ConfigError("num_steps must be at least 3", received=num_steps, hint="50 is the usual value")
    chosen = load_plan(plan)
    refuse_folder(Path(out) if out else None, can_resume=False)
    prepared = prepare_training(
        recipe,
        variant=variant,
        overrides=overrides,
        plan=chosen,
        seed=seed,
        data=data,
        data_dir=data_dir,
        skip_bad=skip_bad,
        on_data_progress=on_data_progress,
    )
    name = None if isinstance(recipe, Recipe) or data is not None else str(recipe)
    options = _options(variant, seed, data_dir, skip_bad)
    with open_run_folder(f"{prepared.recipe.name}-profile", Path(out) if out else None, resume=False) as folder:
        notes = [*prepared.dataset.notes]
        roofline = _roofline(prepared, notes, on_event)
        seed_everything(seed)
        measured = _measure(prepared, roofline, folder.path / TRACE, num_steps, on_progress)
        job = Job(
            recipe=name,
            options=options,
            settings=tuple(overrides),
            data_handed_over=data is not None,
            plan=prepared.plan,
            plan_argument=None if isinstance(plan, Plan) else str(plan),
            data_path=prepared.loaders.train.data_path,
            augments=augments(prepared.recipe.augment),
            num_cores=environment.num_usable_cores(),
            folder=folder.path if out is None else Path(out),
        )
        advice = advise(measured, job)
        _write_plans(advice, job)
        result: dict[str, Any] = finite(_record(prepared, measured, advice, job, plan, notes, folder.path))
        write_json(folder.path / RECORD, result)
        _write_page(result, folder.path / PAGE)
    return ProfiledTraining(folder.path, result)


def _roofline(prepared: Prepared, notes: list[str], on_event: Callable[[str], None]) -> Roofline:
    """What this machine can do in the plan's precision."""
    known = known_limits(prepared.device)
    if known is None or known.was_busy:
        on_event("measuring what this machine can do at best")
    machine, precision = limits(prepared.device), prepared.plan.precision
    if machine.was_busy:
        notes.append(
            "the machine's limits were measured while other programs used it: operators may be further from them"
        )
    peak = machine.peak_flops(precision if precision in machine.matmul_flops else "fp32")
    return Roofline(flops_per_second=peak, bytes_per_second=machine.memory_bytes_per_second)


@torch_settings_put_back()
def _measure(
    prepared: Prepared, roofline: Roofline, trace: Path, num_steps: int, on_progress: Callable[[str, int, int], None]
) -> Measurement:
    recipe, plan = prepared.recipe, prepared.plan
    rehearsal = Rehearsal(
        prepared.model,
        recipe.loss or CrossEntropy(recipe.label_smoothing),
        prepared.loaders.train,
        config=recipe,
        execution=plan,
        device=prepared.device,
    )
    split = prepared.dataset.splits["train"]
    make_item: Callable[[int], object] | None = None
    if isinstance(split, DatasetSplit):
        dataset = split.inputs.dataset

        def make_item(row: int) -> object:
            return input_and_label(dataset, row)

    try:
        return measure(
            rehearsal,
            is_compiled=plan.compile != "none",
            roofline=roofline,
            trace=trace,
            config=ProfileConfig(num_steps=num_steps),
            make_item=make_item,
            num_items=len(split),
            on_progress=on_progress,
        )
    finally:
        rehearsal.release()


def _options(variant: str | None, seed: int, data_dir: str | Path | None, skip_bad: bool) -> dict[str, Any]:
    """Those that are not as they are when nothing is said."""
    given = {"variant": variant, "seed": seed, "data_dir": data_dir and str(data_dir), "skip_bad": skip_bad}
    return {name: value for name, value in given.items() if value}


def _write_plans(advice: Sequence[Advice], job: Job) -> None:
    """The plan files that the commands of the advice name."""
    if job.recipe is None:
        return
    for item in advice:
        if item.plan is not None and item.plan_name is not None:
            # The evidence is of the plan that was profiled, and not of this one.
            changed = replace(job.plan, **item.plan, environment={}, trials=(), subject=None)
            changed.save(job.plan_file(item.plan_name))
    if job.needs_profiled_plan and any(str(job.plan_file(PROFILED)) in item.command for item in advice):
        job.plan.save(job.plan_file(PROFILED))


def _record(
    prepared: Prepared,
    measured: Measurement,
    advice: Sequence[Advice],
    job: Job,
    plan: str | Path | Plan,
    notes: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """The content of `profile.json`."""
    recipe, loader = prepared.recipe, prepared.loaders.train
    return {
        "version": PROFILE_VERSION,
        "recipe": recipe.name,
        "variant": prepared.record.variant,
        "seed": prepared.seed,
        "plan": prepared.plan.to_json(),
        "device": prepared.device.type,
        "data_path": loader.data_path,
        "num_parameters": sum(parameter.numel() for parameter in prepared.model.parameters()),
        "breakdown": measured.breakdown.to_json(),
        "operators": [asdict(row) for row in measured.rows],
        "roofline": asdict(measured.roofline) if measured.roofline else None,
        "memory": measured.memory.to_json(),
        "timeline": asdict(measured.times),
        "items": measured.items.to_json() if measured.items else None,
        "scaling": asdict(measured.scaling) if measured.scaling else None,
        "advice": [item.to_json() for item in advice],
        "notes": [*notes, *measured.notes],
        "environment": environment.describe(),
        "command": [] if isinstance(plan, Plan) else job.words("profile", "--plan", str(plan)),
        "run_dir": str(folder),
    }


def _write_page(result: Mapping[str, Any], path: Path) -> None:
    from upshift.reports.profile_page import render_profile

    write_bytes(path, render_profile(result).encode())
