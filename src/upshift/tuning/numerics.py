"""What is said of a plan that changes the numerics of the steps, and not only how fast they are."""

from __future__ import annotations

from upshift.tuning.plan import Plan

EXACT = "fp32"
WITHIN_NOISE = "within the noise that training has anyway of those in fp32, and not within round-off"


def note_of_steps(precision: str) -> str:
    """What to tell of the losses of a training once a step was made in another precision than fp32.

    It shows in all losses that follow, whether a plan has it for good, for a while, or only to try it.
    """
    return f"steps were made in {precision}: losses since the first of them are {WITHIN_NOISE}"


def notes_of_plan(plan: Plan, first_plan: Plan) -> list[str]:
    """The same of a plan that was found for trainings to come; what the first plan does already is not told."""
    if plan.precision in (EXACT, first_plan.precision):
        return []
    return [f"the plan makes steps in {plan.precision}: losses by it will be {WITHIN_NOISE}"]
