"""Training processes that differ by their plan, or by a setting of torch, in one contest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loops.job import make_job
from loops.processes import Contestant, ContestantError
from record import Table, say
from rounds import Contest, as_list, contest, times


@dataclass(frozen=True)
class Way:
    """How a process trains: fields of the plan, and a setting of `loops.settings`."""

    plan: Mapping[str, Any] = field(default_factory=dict)
    setting: str | None = None


@dataclass(frozen=True)
class Training:
    """What all of them train.

    Attributes:
        recipe: Its name.
        steps: Of a turn.
        data_dir: Where datasets are looked for; None for where upshift looks by itself.
    """

    recipe: str
    steps: int
    data_dir: Path | None

    def contestant(self, way: Way, folder: Path, *, first_steps: int | None = None) -> Contestant:
        """A process that trains in a way, and has made its first turn; all others wait for it.

        Args:
            way: How.
            folder: For its compiler's caches and its log.
            first_steps: Of its first turn, where that is another than the others.
        """
        folder.mkdir(parents=True, exist_ok=True)
        options = [self.recipe, "--steps", str(self.steps), "--job-steps", str(first_steps or self.steps)]
        options += ["--plan", json.dumps(dict(way.plan))]
        options += ["--setting", way.setting] if way.setting is not None else []
        options += ["--data-dir", str(self.data_dir.resolve())] if self.data_dir else []
        return Contestant("plan", options, {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}, folder / "log")


@dataclass(frozen=True)
class PlanContest:
    """What came of a contest.

    Attributes:
        training: What was trained.
        plain: The title of those that all others are compared with.
        result: Turns.
        failures: Why others have none, by title.
        first_seconds: Of each first turn, in which what is compiled is.
    """

    training: Training
    plain: str
    result: Contest
    failures: Mapping[str, str]
    first_seconds: Mapping[str, float]

    def table(self, title: str, column: str) -> Table:
        """One line for each.

        Args:
            title: Of the table.
            column: What the titles of the ways are.
        """
        rows = []
        for name, first in self.first_seconds.items():
            speed = "" if name == self.plain else times(self.result.times_as_fast(name, self.plain))
            rows.append([name, f"{self.result.median(name) / self.training.steps * 1e3:.3g}", speed, f"{first:.1f}"])
        rows += [[name, "failed", reason[:60], ""] for name, reason in self.failures.items()]
        columns = (column, "ms a step", "speed of the plain steps", "first turn, s")
        return Table(title=f"{title}, steps of a batch", columns=columns, rows=rows)

    def summary(self) -> dict[str, Any]:
        """The figures for scripts."""
        others = [name for name in self.first_seconds if name != self.plain]
        return {
            "times_the_plain_steps": {name: as_list(self.result.times_as_fast(name, self.plain)) for name in others},
            "first_seconds": dict(self.first_seconds),
            "failures": dict(self.failures),
        }


def plan_contest(
    training: Training, ways: Mapping[str, Way], scratch: Path, *, plain: str, rounds: int, seconds: float
) -> PlanContest:
    """Start a process for each way, then have them take turns.

    Args:
        training: What they train.
        ways: By title.
        scratch: For their files.
        plain: The title that the others are compared with.
        rounds: How many.
        seconds: No further round is begun after this long, once there are 8.
    """
    make_job(training.recipe, training.data_dir, training.steps)  # so that the data are packed
    alive: dict[str, Contestant] = {}
    failures: dict[str, str] = {}
    try:
        for number, (title, way) in enumerate(ways.items()):
            say(f"{training.recipe}: {title}")
            try:
                alive[title] = training.contestant(way, scratch / training.recipe / str(number))
            except ContestantError as error:
                failures[title] = str(error)
        first = {title: float(one.job["train_seconds"]) for title, one in alive.items()}
        turns = {title: one.turn for title, one in alive.items()}
        result = contest(turns, rounds=rounds, budget_seconds=seconds)
        return PlanContest(training, plain, result, failures, first)
    finally:
        for one in alive.values():
            one.end()
