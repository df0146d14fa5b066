"""What is said of a plan that changes the numerics of the steps, and not only how fast they are."""

from __future__ import annotations

from collections.abc import Iterable

from upshift.tuning.plan import Plan
from upshift.tuning.trials import Trial

EXACT = "fp32"
WITHIN_NOISE = "within the noise that training has anyway of those in fp32, and not within round-off"


def notes_of_training(plan: Plan, trials: Iterable[Trial] = ()) -> list[str]:
    """What to tell of the losses of a training whose steps are not those in fp32.

    Args:
        plan: That the training ended with.
        trials: Of the training itself: what was adopted for a while shows in its losses, too.
    """
    if plan.precision != EXACT:
        return [f"steps were made in {plan.precision}, by the plan: losses are {WITHIN_NOISE}"]
    dropped = [trial.name for trial in trials if trial.tier == "B" and trial.verdict == "demoted"]
    return [f"{name} was adopted for a while: losses since then are {WITHIN_NOISE}" for name in dropped[-1:]]


def notes_of_plan(plan: Plan, first_plan: Plan) -> list[str]:
    """The same of a plan that was found for trainings to come; what the first plan does already is not told."""
    if plan.precision in (EXACT, first_plan.precision):
        return []
    return [f"the plan makes steps in {plan.precision}: losses by it will be {WITHIN_NOISE}"]
