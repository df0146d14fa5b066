"""The training that was profiled, as a command line or a Python program asks for it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upshift.tuning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Job:
    """How the training that was profiled was asked for, so that commands repeat it.

    Attributes:
        recipe: What the command line calls it; None for one that only a Python program has.
        options: Of the command line beside the plan and the settings, as ("--variant", "fast").
        settings: Of the recipe's fields, as "batch_size=8".
        data_handed_over: Whether its datasets were, by a Python program.
        plan: That it was profiled with.
        data_path: Where its batches come from.
        augments: Whether images are varied while they are loaded.
        num_cores: Usable.
        folder: Where plan files of advice are written.
    """

    recipe: str | None
    options: tuple[str, ...]
    settings: tuple[str, ...]
    data_handed_over: bool
    plan: Plan
    data_path: str
    augments: bool
    num_cores: int
    folder: Path

    def train_with(self, name: str, changes: Mapping[str, Any]) -> str:
        """The command that trains with a changed plan; `plan_file` says where the plan lies."""
        if self.recipe is None:
            fields = ", ".join(f"{key}={value!r}" for key, value in changes.items())
            return f"upshift.train(recipe{self._given}{self._overrides}, plan=upshift.Plan({fields}))"
        return shlex.join(self.words("train", "--plan", str(self.plan_file(name))))

    def train_with_setting(self, setting: str) -> str:
        """The command that trains with a field of the recipe changed."""
        field = setting.partition("=")[0]
        settings = [other for other in self.settings if other.partition("=")[0] != field] + [setting]
        if self.recipe is None:
            return f"upshift.train(recipe{self._given}, overrides={settings!r})"
        return shlex.join(self.words("train", settings=settings))

    def tune(self) -> str:
        """The command that searches the fastest plan."""
        if self.recipe is None:
            return f"upshift.tune(recipe{self._given}{self._overrides})"
        return shlex.join(self.words("tune"))

    @property
    def _given(self) -> str:
        return ", data=data" if self.data_handed_over else ""

    @property
    def _overrides(self) -> str:
        return f", overrides={list(self.settings)!r}" if self.settings else ""

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
        return ["upshift", verb, self.recipe, *set_, *self.options, *options]
