"""The training that was profiled, as a command line or a Python program asks for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from upshift.tuning.plan import EVIDENCE, Plan

BASELINE_NAME = "baseline"
PROFILED = "profiled"
"""Names the file of the plan that was profiled."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """How the training that was profiled was asked for, so that commands repeat it.

    Attributes:
        recipe: What the command line calls it; None for one that only a Python program has.
        options: Of the command line beside the plan and the settings, by their names in Python, as {"variant": "fast"}.
        settings: Of the recipe's fields, as "batch_size=8".
        data_handed_over: Whether its datasets were, by a Python program.
        plan: That it was profiled with.
        plan_argument: What the command line calls it: "baseline" or a file; None for one that a Python program has.
        data_path: Where its batches come from.
        augments: Whether images are varied while they are loaded.
        num_cores: Usable.
        folder: Where plan files of advice are written.
    """

    recipe: str | None
    options: Mapping[str, Any]
    settings: tuple[str, ...]
    data_handed_over: bool
    plan: Plan
    plan_argument: str | None
    data_path: str
    augments: bool
    num_cores: int
    folder: Path

    def train_with(self, name: str, changes: Mapping[str, Any]) -> str:
        """The command that trains with a changed plan; `plan_file` says where the plan lies."""
        if self.recipe is None:
            return self._call("train", self.settings, f"plan={_constructor(replace(self.plan, **changes))}")
        return shlex.join(self.words("train", "--plan", str(self.plan_file(name))))

    def train_with_setting(self, setting: str) -> str:
        """The command that trains with a field of the recipe changed, and with the same plan where one was given."""
        field = setting.partition("=")[0]
        settings = (*(other for other in self.settings if other.partition("=")[0] != field), setting)
        if self.recipe is None:
            return self._call("train", settings, *self._plan_keyword)
        return shlex.join(self.words("train", *self._plan_words, settings=settings))

    def tune(self) -> str:
        """The command that searches the fastest plan."""
        if self.recipe is None:
            return self._call("tune", self.settings)
        return shlex.join(self.words("tune"))

    def profile(self) -> str:
        """The command that profiles the same training once more, after its code was changed."""
        if self.recipe is None:
            return self._call("profile", self.settings, *self._plan_keyword)
        return shlex.join(self.words("profile", *self._plan_words))

    @property
    def needs_profiled_plan(self) -> bool:
        """Whether a command of this job may name the plan that was profiled, which is in no file yet."""
        return self.recipe is not None and self.plan_argument is None

    @property
    def _plan_words(self) -> tuple[str, ...]:
        if self.plan_argument == BASELINE_NAME:
            return ()  # `profile` takes it by itself, and `train` finds a faster one
        return ("--plan", self.plan_argument or str(self.plan_file(PROFILED)))

    @property
    def _plan_keyword(self) -> tuple[str, ...]:
        return () if self.plan_argument == BASELINE_NAME else (f"plan={_constructor(self.plan)}",)

    def _call(self, verb: str, settings: Sequence[str], *more: str) -> str:
        """The call in Python of the same training."""
        given = ["recipe", *(["data=data"] if self.data_handed_over else [])]
        given += [f"{name}={value!r}" for name, value in self.options.items()]
        given += [f"overrides={list(settings)!r}"] if settings else []
        return f"upshift.{verb}({', '.join([*given, *more])})"

    def plan_file(self, name: str) -> Path:
        """Where the plan of an advice lies."""
        return self.folder / f"plan-{name}.json"

    def words(self, verb: str, *options: str, settings: Sequence[str] | None = None) -> list[str]:
        """The words of a command line for the same training; none where only a Python program has the recipe.

        Args:
            verb: Of the command.
            options: Further ones.
            settings: Of the recipe's fields, instead of the ones that were asked for.
        """
        if self.recipe is None:
            return []
        chosen = self.settings if settings is None else settings
        set_ = [word for setting in chosen for word in ("--set", setting)]
        return ["upshift", verb, self.recipe, *set_, *self._option_words, *options]

    @property
    def _option_words(self) -> Iterator[str]:
        for name, value in self.options.items():
            yield f"--{name.replace('_', '-')}"
            if value is not True:
                yield str(value)


def _constructor(plan: Plan) -> str:
    """The plan as Python, without its evidence."""
    given = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name not in EVIDENCE}
    plain = Plan()
    changed = [f"{name}={value!r}" for name, value in given.items() if value != getattr(plain, name)]
    return f"upshift.Plan({', '.join(changed)})"
