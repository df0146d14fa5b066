"""`run`: the main job, from a recipe to a report on a faster, verified model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upshift.core.files import write_json
from upshift.errors import OptimizeInterrupted, UpshiftError
from upshift.inference.config import SearchConfig
from upshift.inference.defaults import MAX_DROP
from upshift.recipes.recipe import Recipe
from upshift.training.observer import Observer
from upshift.tuning.plan import Plan
from upshift.workflows.arguments import verb
from upshift.workflows.optimize import optimize
from upshift.workflows.report import report
from upshift.workflows.train import TrainedRun, train


@dataclass(frozen=True)
class CompletedRun(TrainedRun):
    """A run that was trained, optimized for inference and reported on.

    Attributes:
        report: Its `report.html`.
    """

    report: Path


@verb
def run(
    recipe: str | Path | Recipe,
    *,
    variant: str | None = None,
    overrides: Sequence[str] = (),
    plan: str | Path | Plan = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    data: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    allow: Sequence[str] = (),
    max_drop: float = MAX_DROP,
    observers: Sequence[Observer] = (),
    on_data_progress: Callable[[str, int, int], None] | None = None,
    on_event: Callable[[str], None] | None = None,
) -> CompletedRun:
    """Train, optimize for inference, verify and report; see `train` and `optimize` for the arguments."""
    SearchConfig(max_drop=max_drop)  # what optimize would refuse is refused before hours of training
    trained = train(
        recipe,
        variant=variant,
        overrides=overrides,
        plan=plan,
        seed=seed,
        out=out,
        resume=resume,
        data=data,
        data_dir=data_dir,
        skip_bad=skip_bad,
        allow=allow,
        observers=observers,
        on_data_progress=on_data_progress,
    )
    result = trained.folder.load_result()
    result["command"] = _run_command(result["command"], max_drop)
    write_json(trained.folder.result, result)
    try:
        optimize(
            trained.path,
            max_drop=max_drop,
            data=data,
            data_dir=data_dir,
            seed=seed,
            trust_code=True,  # it is the recipe that was just named
            on_event=on_event,
        )
    except OptimizeInterrupted as stop:
        raise OptimizeInterrupted(f"{stop}, and write the page with upshift report {trained.path}") from None
    except Exception:
        # What hours of training came to is shown all the same.
        with contextlib.suppress(UpshiftError):
            report(trained.path)
        raise
    return CompletedRun(trained.folder, trained.folder.load_result(), trained.model, report(trained.path))


def _run_command(command: list[str], max_drop: float) -> list[str]:
    """The command of the training as that of the whole run."""
    if not command:
        return []
    drop = [] if max_drop == MAX_DROP else ["--max-drop", str(max_drop)]
    return [command[0], "run", *command[2:], *drop]
