"""A plan that fails loses one thing at a time: what was adopted last, and of several changes the likeliest culprit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from upshift.errors import PlanError
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.trials import Trial
from upshift.tuning.whole_plans import differences, tier_of

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
OF_THE_WHOLE: Mapping[str, Any] = {
    "expected_gain": 0.0,
    "speedup": None,
    "speedup_interval": None,
    "num_rounds": 0,
    "gradient_error": None,
    "gradient_noise": None,
}
"""What a trial found of several changes says nothing of a part of them."""
OF_COMPILING: Mapping[str, Any] = {"build_seconds": None, "num_operators": None, "details": {}}


@dataclass(frozen=True)
class Adoption:
    """A change of the plan that can be taken back.

    Attributes:
        changes: The fields that it changed, and that were not taken back yet.
        before: The same fields as they were before.
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
        rest: The fields of that which the plan still has.
    """

    plan: Plan
    dropped: Mapping[str, Any]
    adoption: Adoption
    rest: Mapping[str, Any]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left of what was adopted."""
        return not self.rest

    @property
    def what(self) -> str:
        """The fields in words."""
        return in_words(self.dropped)


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
        rest = {name: value for name, value in adoption.changes.items() if name not in values}
        if rest:
            self._adopted.append(Adoption(rest, {name: adoption.before[name] for name in rest}, 1.0))
        dropped = {name: getattr(plan, name) for name in values}
        return Demotion(without, dropped, adoption, rest)


# What the trials say then


def in_words(changes: Mapping[str, Any]) -> str:
    """Fields of a plan with their values."""
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def demoted(trial: Trial, reason: str) -> Trial:
    """A trial whose change the plan has lost; as it is where it adopted none."""
    if trial.verdict != "adopted":
        return trial
    return replace(trial, verdict="demoted", reason=f"{reason}; before: {trial.reason}")


def trials_after(trials: Sequence[Trial], demotion: Demotion, reason: str, step: int) -> list[Trial]:
    """Trials as they are once the plan that they led to has lost something.

    The one that adopted it is demoted where nothing of it is left. Else it tells of what is left, and the part that
    was lost gets a trial of its own: a change is called adopted only as long as the plan has it.

    Args:
        trials: Before.
        demotion: What the plan lost.
        reason: Why.
        step: When.
    """
    found = list(trials)
    changes = demotion.adoption.changes.items()
    for index, trial in reversed(list(enumerate(found))):
        if trial.verdict == "adopted" and changes <= trial.changes.items():
            if demotion.is_whole:
                found[index] = demoted(trial, reason)
                return found
            found[index] = replace(trial, **_left(trial.name, trial.reason, demotion.rest, demotion.dropped))
            break
    lost = Trial(
        name=demotion.what,
        changes=demotion.dropped,
        tier=tier_of(demotion.dropped),
        verdict="demoted",
        reason=reason,
        expected_gain=0.0,
        expected_seconds=0.0,
        step=step,
    )
    return [*found, lost]


def earlier_trials_after(
    trials: Sequence[Mapping[str, Any]], losses: Sequence[Mapping[str, Any]], plan: Plan
) -> list[Mapping[str, Any]]:
    """The same of trials of an earlier training, as JSON objects.

    Args:
        trials: Those that the plan of the beginning was chosen by.
        losses: What it has lost since, each as fields with their values.
        plan: What it has become.
    """
    found, names = list[Mapping[str, Any]](), {name for loss in losses for name in loss}
    for trial in trials:
        changes = trial.get("changes")
        if trial.get("verdict") != "adopted" or not isinstance(changes, Mapping):
            found.append(trial)
            continue
        lost = {name: value for name, value in changes.items() if name in names and getattr(plan, name) != value}
        rest = {
            name: value
            for name, value in changes.items()
            if name not in lost and value != getattr(BASELINE, name, value)  # what is plain is nothing that was adopted
        }
        if lost and rest:
            trial = {**trial, **_left(str(trial.get("name")), str(trial.get("reason")), rest, lost)}
            trial = {name: value for name, value in trial.items() if value is not None and value != {}}
        elif lost:
            trial = {**trial, "verdict": "demoted"}
        found.append(trial)
    return found


def _left(name: str, reason: str, rest: Mapping[str, Any], lost: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial of several changes says of those that are left; see `Trial`."""
    return {
        "name": in_words(rest),
        "changes": rest,
        "tier": tier_of(rest),
        "reason": f"what is left of {name}, which lost {in_words(lost)}; before: {reason}",
        **OF_THE_WHOLE,
        **(OF_COMPILING if "compile" not in rest else {}),
    }
