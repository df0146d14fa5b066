"""What a report is made from: the records of one run, read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from upshift.core.files import read_json
from upshift.core.records import RunFolder, read_jsonl, run_began
from upshift.errors import ArtifactError
from upshift.reports.fields import Record, count, record

RESULT_VERSION = 1
NEEDED = ("recipe", "data", "metrics")
"""Of `result.json`: every run has them."""
MAKE_AGAIN = "put the file back as it was, or train again; a report that was made before is kept as it is"


@dataclass(frozen=True)
class RunRecords:
    """The records of a finished run.

    Attributes:
        folder: Where they were read from.
        result: `result.json`.
        recipe: The resolved recipe of `recipe.json`.
        model_spec: How its model is made again, likewise.
        plan: `plan.json`, or the plan in the result.
        metrics: The lines of `metrics.jsonl` in step order, the last written one of each step.
        evaluation: `evaluation.json`; empty where there is none.
        date: When the run began, by its folder's name; of a folder named otherwise, when it ended. In local time.
    """

    folder: Path
    result: Record
    recipe: Record = field(default_factory=dict)
    model_spec: Record = field(default_factory=dict)
    plan: Record = field(default_factory=dict)
    metrics: tuple[Record, ...] = ()
    evaluation: Record = field(default_factory=dict)
    date: datetime | None = None


def load_records(folder: RunFolder) -> RunRecords:
    """Read a run folder.

    Raises:
        ArtifactError: The folder holds no finished run, or one of another version, or a record is there and damaged:
            a page without it would look as if it had never been.
    """
    result = folder.load_result()
    if result.get("version") != RESULT_VERSION:
        raise ArtifactError(
            f"result.json must have version {RESULT_VERSION}",
            received=f"{folder.result}: version {result.get('version')!r}",
            hint="use the version of upshift that made the run",
        )
    missing = [name for name in NEEDED if name not in result]
    if missing:
        raise ArtifactError(
            "result.json of a run must be whole",
            received=f"{folder.result} without {', '.join(missing)}",
            hint=MAKE_AGAIN,
        )
    about = _record(folder.recipe, "the run's recipe")
    plan = _record(folder.plan, "the run's plan")
    return RunRecords(
        folder=folder.path,
        result=result,
        recipe=record(about, "recipe"),
        model_spec=record(about, "model_spec"),
        plan=plan or record(result, "plan"),
        metrics=_metrics(folder.metrics),
        evaluation=_record(folder.evaluation, "the run's evaluation"),
        date=_date(folder),
    )


def _record(path: Path, kind: str) -> Record:
    """A record that need not be there; one that is must be readable."""
    if not path.exists():
        return {}
    try:
        return read_json(path, kind=kind)
    except ArtifactError as error:
        raise ArtifactError(error.rule, received=error.received, hint=MAKE_AGAIN) from error


def _metrics(path: Path) -> tuple[Record, ...]:
    """A resumed run repeats the steps after its checkpoint: the last line of a step is the one that counts."""
    by_step = {step: line for line in read_jsonl(path) if (step := count(line, "step")) is not None}
    return tuple(by_step[step] for step in sorted(by_step))


def _date(folder: RunFolder) -> datetime | None:
    began = run_began(folder.path.resolve().name)
    if began is not None:
        return began
    try:
        return datetime.fromtimestamp(folder.result.stat().st_mtime)
    except (ValueError, OSError, OverflowError):
        return None
