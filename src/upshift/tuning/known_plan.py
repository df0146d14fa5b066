"""The plan that an earlier run of the same job found: taken as it is, as long as it is still right and fast."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from upshift.core.units import duration, factor, plain
from upshift.training.conductor import Conducted
from upshift.tuning.candidates import Candidate
from upshift.tuning.config import KnownPlan
from upshift.tuning.duels import SETTLE_STEPS, Duels
from upshift.tuning.fidelity import Fidelity
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import Block, LiveSteps, first_line
from upshift.tuning.observer import FIRST_STEPS
from upshift.tuning.plan import Plan
from upshift.tuning.stopwatch import Measured
from upshift.tuning.whole_plans import known_candidate, refused_plans

SLOWER_THAN_RECORDED = 1.25
FASTER_THAN_RECORDED = 1.5
"""The machine was then a slow one: what gained nothing on it may gain now."""


class Recall:
    """Goes on with what an earlier run found.

    Args:
        known: What it found.
        live: Makes the steps.
        ledger: Knows the plan; gets the known one if it is taken.
        duels: How its gradients are checked.

    Attributes:
        was_taken: Whether training went on with the known plan.
        decided: The trials of that run that still hold, so that only other candidates are raced: all of them where its
            plan is taken, be it that the run was stopped on its way, or had less time; where it is too dear, those that
            were refused beside the first plan; else none.
        to_race: The known plan, where its steps are not as fast as then: it has to prove itself once more.
    """

    def __init__(self, known: KnownPlan, live: LiveSteps, ledger: Ledger, duels: Duels) -> None:
        self.was_taken = False
        self.decided: tuple[Mapping[str, Any], ...] = known.decided
        self.to_race: list[Candidate] = []
        self._still_refused: tuple[Mapping[str, Any], ...] = ()
        self._known, self._live, self._ledger, self._duels = known, live, ledger, duels

    @property
    def refused(self) -> list[Plan]:
        """The plans that the earlier run refused."""
        return refused_plans(self.decided, self._ledger.first_plan)

    def take(self, loop: Conducted) -> Generator[Block, Measured, bool]:
        """Take the known plan if it is still right and fast; whether it was taken."""
        self.was_taken = yield from self._take(loop)
        if self.was_taken:
            if not self.leaves_to_race(loop):  # else that race finds out anew what it cannot afford
                self._ledger.untried_seconds = self._known.untried_seconds
        else:
            self.decided = self._still_refused
            self._live.go_back(loop)  # what comes next looks into steps by the ledger's plan
        return self.was_taken

    def leaves_to_race(self, loop: Conducted) -> bool:
        """Whether the earlier run did not decide every candidate.

        It may have been stopped; or this training has far more time than the one before, which could not afford all.
        """
        known = self._known
        remaining = loop.remaining_steps * self._ledger.known_step.step_seconds
        pays_to_look_again = known.untried_seconds is not None and remaining > 2 * known.untried_seconds
        return not known.is_complete or pays_to_look_again

    @property
    def known(self) -> KnownPlan:
        """What the earlier run found."""
        return self._known

    def _too_dear(self, loop: Conducted, candidate: Candidate, cost: float) -> str | None:
        """Why the known plan is not begun with; None if it is.

        It was proven faster here, so that nothing is at risk but what is no step: building it, and checking it.
        """
        self._ledger.book_spent()
        remaining = self._ledger.remaining_seconds(loop)
        saving = candidate.gain * remaining
        if saving > cost:
            return None
        return plain(
            f"expected to save {duration(saving)} of the {duration(remaining)} that remain, and to cost "
            f"{duration(cost)} to build and check: it is kept for longer runs"
        )

    def _take(self, loop: Conducted) -> Generator[Block, Measured, bool]:
        known, ledger, duels, before = self._known, self._ledger, self._duels, self._ledger.known_step
        candidate = replace(known_candidate(known, ledger.plan), is_proven=True)
        plan = candidate.plan(ledger.plan)
        if not candidate.changes:
            return self._is_as_fast(before, with_wait=False)
        cost = duels.expected_cost(candidate)
        refusal = self._too_dear(loop, candidate, cost)
        if refusal is not None:
            self._still_refused = refused_beside_first(known.decided)
            ledger.record(loop, candidate, "not tried", refusal, cost)
            return False
        fidelity: Fidelity | None = None
        try:
            fidelity, build_seconds = yield from duels.checked(loop, candidate, plan)
            ledger.book_steps(self._live.take_seconds())
            if fidelity is None or fidelity.reason is None:
                # As it was when its time was recorded: with batches from a loader of its own, in its layout.
                now = yield Block(plan, num_steps=FIRST_STEPS, settle=SETTLE_STEPS, own_loader=True)
        except Exception as error:  # whatever a backend raises: training goes on without it
            ledger.book_lost(self._live.take_seconds())
            ledger.record(loop, candidate, "failed", first_line(error), cost)
            return False
        if fidelity is not None and fidelity.reason is not None:
            ledger.record(loop, candidate, "refused", fidelity.reason, cost, fidelity=fidelity)
            return False
        of_data = duels.is_of_data(plan)
        speedup = before.seconds / now.seconds if of_data else before.step_seconds / now.step_seconds
        if speedup <= 1.0 or not self._is_as_fast(now, with_wait=of_data):
            step_seconds = min(before.seconds, known.speedup * now.seconds)  # the first steps may have been disturbed
            ledger.book_trial(FIRST_STEPS + SETTLE_STEPS, step_seconds, self._live.take_seconds())
            self.to_race.append(replace(candidate, build_seconds=0.0, built_seconds=build_seconds))
            return False
        # Steps one after another, and not in turns: what other programs did meanwhile would count as gained.
        speedup = min(speedup, known.speedup)
        ledger.adopt(plan, now, speedup, self._live.take_seconds())
        ledger.rests_on_record = True
        self._live.go_back(loop)
        ledger.record(
            loop,
            candidate,
            "adopted",
            plain(
                f"steps of {now.step_seconds * 1e3:.3g} ms, {known.step_seconds * 1e3:.3g} ms when it was found, "
                f"{factor(known.speedup)} as fast as the first plan's"
            ),
            cost,
            build_seconds=build_seconds,
            speedup=speedup,
            fidelity=fidelity,
        )
        return True

    def _is_as_fast(self, now: Measured, *, with_wait: bool) -> bool:
        """Whether steps are about as fast as recorded; waits count for a plan of loading, and are mere noise else."""
        slower = now.step_seconds / self._known.step_seconds
        if with_wait:
            slower = now.seconds / (self._known.step_seconds + self._known.data_seconds)
        if 1.0 / FASTER_THAN_RECORDED <= slower <= SLOWER_THAN_RECORDED:
            return True
        times = f"{slower:.2f} times slower" if slower > 1.0 else f"{1.0 / slower:.2f} times faster"
        self._ledger.notes.append(f"steps are {times} than when the plan was found: it is tuned again")
        return False


def refused_beside_first(decided: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Of a run's trials those before any was adopted: they were refused beside the first plan."""
    return tuple(takewhile(lambda trial: trial.get("verdict") != "adopted", decided))
