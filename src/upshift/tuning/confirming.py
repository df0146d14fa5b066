"""At the end of tuning: the plan that was found against the first plan, on fresh rounds."""

from __future__ import annotations

import math

from upshift.core import clock
from upshift.core.duel import DuelConfig
from upshift.core.racing import Contender, Race, RaceConfig
from upshift.core.stats import Interval
from upshift.core.units import factor, factor_range, plain
from upshift.training.conductor import Conducted
from upshift.tuning.candidates import DATA_WAIT_SHARE
from upshift.tuning.config import TunerConfig
from upshift.tuning.duels import Duels, typical
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import Block, CandidateFailed, CandidateRefused, LiveSteps, Story
from upshift.tuning.stopwatch import Measured
from upshift.tuning.trials import Confirmation, ConfirmationVerdict

FIRST, FOUND = "the first plan", "the plan that was found"
MAX_ROUNDS = 16
LEAST_RATIO = 1e-6
"""Below the low end of any interval that rests on rounds."""


class Confirming:
    """Confirms the ledger's plan on live steps, or goes back to the first one.

    Args:
        live: Makes the steps.
        ledger: Knows both plans; gets what came of it.
        duels: How their steps are compared.
        config: How the tuner goes about it.
    """

    def __init__(self, live: LiveSteps, ledger: Ledger, duels: Duels, config: TunerConfig) -> None:
        self._live, self._ledger, self._duels, self._config = live, ledger, duels, config

    def confirm(self, loop: Conducted, *, at_most_seconds: float | None = None) -> Story:
        """Race the plan against the first one, where the time that remains can pay for it.

        Args:
            loop: The training.
            at_most_seconds: That it may cost, whatever else could be paid for.
        """
        live, ledger, duels = self._live, self._ledger, self._duels
        if ledger.plan == ledger.first_plan:
            return
        counts_waits = duels.counts_waits(ledger.first_plan) or self._layout_may_change_waits()
        num_steps, settle = duels.block_steps(counts_waits, ledger.plan, ledger.first_plan)
        refusal = self._not_affordable(loop, num_steps + settle, at_most_seconds)
        if refusal is not None:
            ledger.confirmation = Confirmation(verdict="not confirmed", reason=refusal)
            return
        race = Race(
            FIRST,
            [Contender(name=FOUND, expected_gain=0.0, expected_cost_seconds=0.0)],
            config=RaceConfig(duel=DuelConfig(max_rounds=MAX_ROUNDS), seed=self._config.seed + 1),
            clock=clock.now,
        )
        race.next()
        duel = race.duel
        assert duel is not None
        plans = {FIRST: ledger.first_plan, FOUND: ledger.plan}
        rounds: list[dict[str, Measured]] = []
        ledger.book_steps(live.take_seconds())
        try:
            while race.is_on:
                blocks: dict[str, Measured] = {}
                for name in race.order():
                    blocks[name] = yield Block(plans[name], num_steps=num_steps, settle=settle, own_loader=True)
                rounds.append(blocks)
                first, found = blocks[FIRST], blocks[FOUND]
                ledger.book_beside_first(2 * (num_steps + settle), first.seconds, live.take_seconds())
                if counts_waits:
                    race.add(first.seconds, found.seconds)
                else:
                    race.add(first.step_seconds, found.step_seconds)
        except (CandidateFailed, CandidateRefused) as error:
            ledger.book_lost(live.take_seconds())
            live.go_back(loop)
            ledger.confirmation = Confirmation(verdict="not confirmed", reason=f"the first plan failed: {error}")
            return
        first, found = (typical([blocks[name] for blocks in rounds]) for name in (FIRST, FOUND))
        self._conclude(first, _steps_by(duel.interval, first, found, counts_waits), len(rounds))
        live.go_back(loop)

    def _layout_may_change_waits(self) -> bool:
        """Whether loading in another layout may make a difference that is worth counting."""
        step = self._ledger.known_step
        differs = self._ledger.plan.memory_format != self._ledger.first_plan.memory_format
        return differs and step.data_seconds > DATA_WAIT_SHARE * step.seconds

    def _not_affordable(self, loop: Conducted, block_steps: int, at_most_seconds: float | None) -> str | None:
        """Why there is no time for it: half of the steps are slower ones, by the first plan."""
        ledger, budget = self._ledger, self._config.budget_seconds
        if 2 * MAX_ROUNDS * block_steps > loop.remaining_steps:
            return f"{loop.remaining_steps} steps remained, too few for {MAX_ROUNDS} rounds"
        if budget is not None and ledger.elapsed_seconds > budget:
            return "the budget was used up"
        slower = (ledger.speedup - 1.0) * ledger.known_step.seconds
        if ledger.rests_on_record and ledger.first_step is not None:  # which may be slower yet than was recorded
            slower = max(slower, ledger.first_step.seconds - ledger.known_step.seconds)
        cost = MAX_ROUNDS * block_steps * slower
        allowance = ledger.allowance(loop)
        if at_most_seconds is not None:
            allowance = min(allowance, at_most_seconds)
        if cost > allowance:
            return f"slower steps by the first plan would have cost {cost:.2g} s, and {allowance:.2g} s could be spent"
        return None

    def _conclude(self, first: Measured, found: tuple[Measured, ...], num_rounds: int) -> None:
        """Keep the plan, or make the first one the plan again, and state what was saved by what was found.

        Args:
            first: A step by the first plan.
            found: A step by the plan that was found: as estimated, by the lower and the upper end of the speedup.
            num_rounds: Of the race.
        """
        ledger = self._ledger
        speed, low, high = (first.seconds / now.seconds for now in found)
        verdict: ConfirmationVerdict
        said = f"{factor(speed, (low, high))}, interval {factor_range(low, high)}"
        if low > 1.0:
            verdict, reason = "confirmed", f"a gain on fresh rounds ({said})"
        elif speed > 1.0:
            verdict, reason = "not confirmed", f"no gain is proven in {num_rounds} fresh rounds ({said})"
        else:
            verdict, reason = "refuted", f"no faster than the first plan on fresh rounds ({said})"
        ledger.confirmation = Confirmation(
            verdict=verdict,
            reason=plain(reason),
            speedup=speed,
            speedup_interval=(low, high) if math.isfinite(high) else None,
            num_rounds=num_rounds,
        )
        if ledger.rests_on_record and verdict != "confirmed":  # an earlier run knows it better than these rounds
            speed = min(speed, ledger.speedup)
        ledger.rests_on_record &= verdict == "not confirmed"
        ledger.correct_speedup(speed)
        ledger.first_step = first
        if verdict == "refuted":
            ledger.notes.append(f"the tuned plan was dropped for the first one: {ledger.confirmation.reason}")
            ledger.drop_plan(ledger.confirmation.reason, self._live.take_seconds())
        else:
            ledger.step = found[0]


def _steps_by(interval: Interval, first: Measured, found: Measured, counts_waits: bool) -> tuple[Measured, ...]:
    """A step that is as many times faster than the first plan's as an interval says: its estimate, its two ends."""

    def faster(ratio: float) -> Measured:
        if not counts_waits:  # both wait alike: what seems to differ in so few blocks is chance
            return Measured(first.step_seconds / ratio, first.data_seconds, found.page_faults)
        step = min(found.step_seconds, first.seconds / ratio)
        return Measured(step, first.seconds / ratio - step, found.page_faults)

    return tuple(faster(max(ratio, LEAST_RATIO)) for ratio in (interval.estimate, interval.low, interval.high))
