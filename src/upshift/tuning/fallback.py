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
    """A conductor (see `Conductor`) that takes one thing after another from a plan that raises, or loses the loss.

    Nothing is timed or tried: of all that it has beyond the plain plan, the likeliest culprit goes first. Where the
    plain plan raises too, the error is the user's.

    Args:
        plan: What training begins with.
        device: Where steps are made.

    Attributes:
        ledger: What became of the plan.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        dropped = "the given plan was dropped for the plain one"
        self.ledger = Ledger(plan, config=TunerConfig(), dropped=dropped)
        self.ledger.first_plan = plain_of(plan)
        super().__init__(_nothing, self.ledger, loader_for=None, device=device)

    @property
    def plan(self) -> Plan:
        """What training goes on with, and what it lost among its trials."""
        books = self.ledger
        before = books.earlier_trials(books.plan.trials)
        return replace(books.plan, trials=(*before, *(trial.to_json() for trial in books.trials)))

    @property
    def was_dropped(self) -> bool:
        """Whether the given plan failed, and lost at least a part."""
        return self.ledger.was_demoted

    def on_error(self, loop: Conducted, error: Exception) -> bool:
        """Take something from the plan; a batch that does not fit in memory is split, as by the plain one.

        What raises between steps is the loader.
        """
        if is_out_of_memory(error) or not (loop.step.is_underway or isinstance(error, NonFiniteLossError)):
            return False
        return super().on_error(loop, error)


def fallback(plan: Plan, device: torch.device) -> Fallback | None:
    """What a training by a given plan falls back by; None where its steps are plain ones."""
    return Fallback(plan, device) if differences(plan, plain_of(plan)) else None


def plain_of(plan: Plan) -> Plan:
    """The plain plan on the same device, with batches from the same loader: that stays whatever the plan."""
    return replace(BASELINE, device=plan.device, data_path=plan.data_path, num_workers=plan.num_workers)


def _nothing(loop: Conducted) -> Story:
    yield from ()
