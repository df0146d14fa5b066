"""A plan that fails loses one thing at a time: what was adopted last, and of several changes the likeliest culprit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from upshift.errors import PlanError
from upshift.tuning.plan import Plan
from upshift.tuning.whole_plans import differences

OF_BATCHES = ("data_path", "num_workers")
LIKELIEST = (
    ("compile", "compile_mode"),
    ("precision",),
    ("memory_format",),
    ("keep_freed_memory",),
    ("num_threads",),
    OF_BATCHES,
    ("fused_optimizer",),
    ("activation_checkpointing",),
    ("micro_batch_size",),
)
"""Fields that a plan can lose only together, the likeliest culprit first; those that spare memory last."""


@dataclass(frozen=True)
class Adoption:
    """A change of the plan that can be taken back.

    Attributes:
        changes: The fields that it changed.
        before: Those of them that were not taken back yet, as they were before.
        speedup: Of the plan's steps by it; 1 where part of it was taken back, as nobody knows what the rest gains.
    """

    changes: Mapping[str, Any]
    before: Mapping[str, Any]
    speedup: float


@dataclass(frozen=True)
class Demotion:
    """What a plan lost.

    Attributes:
        plan: The plan without it.
        dropped: The fields that it lost, as they were.
        adoption: What they had been adopted with.
        is_whole: Whether nothing of that is left.
    """

    plan: Plan
    dropped: Mapping[str, Any]
    adoption: Adoption
    is_whole: bool

    @property
    def what(self) -> str:
        """The fields in words."""
        return ", ".join(f"{name}={value}" for name, value in self.dropped.items())


class Adoptions:
    """What was adopted, one on top of the other."""

    def __init__(self) -> None:
        self._adopted: list[Adoption] = []

    def add(self, plan: Plan, before: Plan, speedup: float) -> None:
        """A plan was adopted in place of another, whose steps were that many times slower."""
        changes = differences(plan, before)
        if changes:
            self._adopted.append(Adoption(changes, {name: getattr(before, name) for name in changes}, speedup))

    def clear(self) -> None:
        """Nothing of it is in the plan any more."""
        self._adopted = []

    def take_back(self, plan: Plan, first_plan: Plan, speedup: float, *, of_batches: bool) -> Demotion:
        """Take back what was adopted last; of a change of several things, one.

        Args:
            plan: As it is now; it differs from the first one.
            first_plan: What is left where all is taken back.
            speedup: Of the plan beside that.
            of_batches: Whether a batch could not be had: what decides where batches come from is then taken back first.
        """
        if not self._adopted:  # it was begun with: as it was given, or as a run that is resumed had found it
            self.add(plan, first_plan, speedup)
        of_data = [index for index, adoption in enumerate(self._adopted) if {*OF_BATCHES} & {*adoption.before}]
        adoption = self._adopted.pop(of_data[-1] if of_batches and of_data else -1)
        groups = (OF_BATCHES, *LIKELIEST) if of_batches else LIKELIEST
        group = next((group for group in groups if {*group} & {*adoption.before}), tuple(adoption.before))
        values = {name: value for name, value in adoption.before.items() if name in group}
        try:
            without = replace(plan, **values)
        except PlanError:  # the rest cannot be had without it
            values = dict(adoption.before)
            without = replace(plan, **values)
        rest = {name: value for name, value in adoption.before.items() if name not in values}
        if rest:
            self._adopted.append(Adoption(adoption.changes, rest, 1.0))
        dropped = {name: getattr(plan, name) for name in values}
        return Demotion(without, dropped, adoption, is_whole=not rest)
