"""What to do about the causes of a slow step, with the gain that each is predicted to bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from upshift.core import units
from upshift.tuning.profiling.cause import Cause
from upshift.tuning.profiling.causes import find_causes
from upshift.tuning.profiling.job import Job
from upshift.tuning.profiling.measure import Measurement
from upshift.tuning.profiling.sites import is_upshifts
from upshift.tuning.profiling.wording import Words, words_for

SEARCH = "search"
"""The kind of the advice to try what only trying can tell."""
UPSHIFTS = (
    "The line is in a model that comes with upshift: there is nothing to change in your code. The tuner tries what can "
    "be done around it, such as compiling it."
)
"""Instead of what to change in a file that is not the user's."""
AGAIN = " Then profile again."
"""Ends advice on code, which no command can follow."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to do.

    Attributes:
        cause: The kind of cause (see `cause.Kind`), or `SEARCH`.
        title: What takes time.
        where: "file:line" to look at; None where there is none.
        action: What to do.
        command: The command that trains with it; where code has to be changed before, one that profiles again.
        plan: Fields of the plan that the command's plan file has; None where it has none.
        plan_name: What the plan file is called; None where there is none.
        seconds: Of a step that the cause takes; None if unknown.
        spared_seconds: Of a step that are predicted to be spared; None if unknown.
        speedup: What that makes of the training's speed; None if unknown.
        is_bound: Whether the prediction is the most that can be gained.
        basis: What the prediction rests on.
        changes_algorithm: Whether it changes what is learnt, and not only how fast.
    """

    cause: str
    title: str
    where: str | None
    action: str
    command: str
    plan: Mapping[str, Any] | None
    plan_name: str | None
    seconds: float | None
    spared_seconds: float | None
    speedup: float | None
    is_bound: bool
    basis: str
    changes_algorithm: bool

    def to_json(self) -> dict[str, Any]:
        """The advice as a JSON object."""
        return asdict(self)


def advise(measured: Measurement, job: Job) -> list[Advice]:
    """What to do, largest predicted gain first; then what only trying can tell; last, causes in upshift's own code."""
    total = measured.breakdown.seconds
    found, of_upshift = [], []
    for cause in find_causes(measured):
        for words in words_for(cause, measured, job):
            spared = cause.spared_seconds if words.spared_seconds is None else words.spared_seconds
            if spared <= 0:
                continue
            if cause.site and is_upshifts(cause.site.file) and not (words.plan or words.changes_algorithm):
                of_upshift.append(_of_upshift(cause, words, job))
            else:
                found.append(_advice(cause, words, spared, total))
    found.sort(key=lambda advice: -(advice.spared_seconds or 0.0))
    return [*found, _search(job), *of_upshift]


def _advice(cause: Cause, words: Words, spared: float, total: float) -> Advice:
    # A prediction never takes the whole step: what is left is at least a thousandth of it.
    spared = min(spared, 0.999 * total)
    return Advice(
        cause=cause.kind,
        title=units.plain(words.title),
        where=words.where or (str(cause.site) if cause.site else None),
        action=units.plain(words.action) + ("" if words.plan or words.changes_algorithm else AGAIN),
        command=words.command,
        plan=words.plan,
        plan_name=words.plan_name,
        seconds=cause.seconds,
        spared_seconds=spared,
        speedup=total / (total - spared),
        is_bound=cause.is_bound,
        basis=words.basis,
        changes_algorithm=words.changes_algorithm,
    )


def _of_upshift(cause: Cause, words: Words, job: Job) -> Advice:
    """What is told of a line that its reader is not to change: no gain is promised for it."""
    return replace(
        _search(job),
        cause=cause.kind,
        title=units.plain(words.title),
        where=str(cause.site),
        action=UPSHIFTS,
        seconds=cause.seconds,
    )


def _search(job: Job) -> Advice:
    return Advice(
        cause=SEARCH,
        title="Precision, compilation, threads and their combinations are found by trying",
        where=None,
        action="Let the tuner try them: it keeps only what is faster on this machine and gives the same gradients.",
        command=job.tune(),
        plan=None,
        plan_name=None,
        seconds=None,
        spared_seconds=None,
        speedup=None,
        is_bound=False,
        basis="the tuner measures each",
        changes_algorithm=False,
    )
