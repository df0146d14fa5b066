"""A plan that is not tuned but given: it is followed as long as it works, as a plan that was found is."""

from __future__ import annotations

from dataclasses import replace

import torch

from upshift.errors import NonFiniteLossError
from upshift.training.conductor import Conducted
from upshift.training.step import is_out_of_memory
from upshift.tuning.config import TunerConfig
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import LiveSteps, Story
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.whole_plans import differences


class Fallback(LiveSteps):
    """A conductor (see `Conductor`) that goes back to the plain plan where the given one raises, or loses the loss.

    Nothing is timed or tried. Where the plain plan raises too, the error is the user's.

    Args:
        plan: What training begins with.
        device: Where steps are made.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        dropped = "the given plan was dropped for the plain one"
        self._books = Ledger(plan, config=TunerConfig(), dropped=dropped)
        self._books.first_plan = plain_of(plan)
        super().__init__(_nothing, self._books, loader_for=None, device=device)

    @property
    def plan(self) -> Plan:
        """What training goes on with."""
        return self._books.plan

    @property
    def was_dropped(self) -> bool:
        """Whether the given plan failed."""
        return self._books.was_demoted

    def on_error(self, loop: Conducted, error: Exception) -> bool:
        """Go back to the plain plan; a batch that does not fit in memory is split, as by that one.

        What raises between steps is the loader, which stays whatever the plan.
        """
        if is_out_of_memory(error) or not (loop.step.is_underway or isinstance(error, NonFiniteLossError)):
            return False
        return super().on_error(loop, error)


def fallback(plan: Plan, device: torch.device) -> Fallback | None:
    """What a training by a given plan falls back by; None where it is the plain one."""
    return Fallback(plan, device) if differences(plan, plain_of(plan)) else None


def plain_of(plan: Plan) -> Plan:
    """The plain plan on the same device."""
    return replace(BASELINE, device=plan.device)


def _nothing(loop: Conducted) -> Story:
    yield from ()
