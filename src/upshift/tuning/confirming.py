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
from upshift.tuning.duels import Duels, typical
from upshift.tuning.live import Block, CandidateFailed, CandidateRefused, Measured, Story
from upshift.tuning.trials import Confirmation, ConfirmationVerdict

FIRST, FOUND = "the first plan", "the plan that was found"
MAX_ROUNDS = 16
LEAST_RATIO = 1e-6
"""Below the low end of any interval that rests on rounds."""
MAX_KNOWN_SECONDS = 0.5
"""What confirming a plan of an earlier run may cost: that run has confirmed it."""


class Confirming(Duels):
    """Live steps by which a plan is confirmed; see `Duels` for the arguments."""

    def _confirm(self, loop: Conducted, *, at_most_seconds: float | None = None) -> Story:
        """Race the plan against the first one, where the time that remains can pay for it.

        Args:
            loop: The training.
            at_most_seconds: That it may cost, whatever else could be paid for.
        """
        if self.plan == self.first_plan:
            return
        counts_waits = self._counts_waits(self.first_plan) or self._layout_may_change_waits()
        num_steps, settle = self._block_steps(counts_waits, self.plan, self.first_plan)
        refusal = self._not_affordable(loop, num_steps + settle, at_most_seconds)
        if refusal is not None:
            self.confirmation = Confirmation(verdict="not confirmed", reason=refusal)
            return
        race = Race(
            FIRST,
            [Contender(name=FOUND, expected_gain=0.0, expected_cost_seconds=0.0)],
            config=RaceConfig(duel=DuelConfig(max_rounds=MAX_ROUNDS), seed=self.config.seed + 1),
            clock=clock.now,
        )
        race.next()
        duel = race.duel
        assert duel is not None
        plans = {FIRST: self.first_plan, FOUND: self.plan}
        rounds: list[dict[str, Measured]] = []
        self._settle()
        try:
            while race.is_on:
                blocks: dict[str, Measured] = {}
                for name in race.order():
                    blocks[name] = yield Block(plans[name], num_steps=num_steps, settle=settle, own_loader=True)
                rounds.append(blocks)
                self._book_beside_first(2 * (num_steps + settle), blocks[FIRST].seconds)
                first, found = blocks[FIRST], blocks[FOUND]
                if counts_waits:
                    race.add(first.seconds, found.seconds)
                else:
                    race.add(first.step_seconds, found.step_seconds)
        except (CandidateFailed, CandidateRefused) as error:
            self._charge()
            self._go_back(loop)
            self.drop_other_loaders()
            self.confirmation = Confirmation(verdict="not confirmed", reason=f"the first plan failed: {error}")
            return
        first, found = (typical([blocks[name] for blocks in rounds]) for name in (FIRST, FOUND))
        self._conclude(loop, first, _steps_by(duel.interval, first, found, counts_waits), len(rounds))
        self.drop_other_loaders()

    def _layout_may_change_waits(self) -> bool:
        """Whether loading in another layout may make a difference that is worth counting."""
        assert self.step_seconds is not None and self.data_seconds is not None
        differs = self.plan.memory_format != self.first_plan.memory_format
        return differs and self.data_seconds > DATA_WAIT_SHARE * (self.step_seconds + self.data_seconds)

    def _not_affordable(self, loop: Conducted, block_steps: int, at_most_seconds: float | None) -> str | None:
        """Why there is no time for it: half of the steps are slower ones, by the first plan."""
        assert self.step_seconds is not None and self.data_seconds is not None
        if 2 * MAX_ROUNDS * block_steps > loop.remaining_steps:
            return f"{loop.remaining_steps} steps remained, too few for {MAX_ROUNDS} rounds"
        budget = self.config.budget_seconds
        if budget is not None and clock.now() - self._started > budget:
            return "the budget was used up"
        cost = MAX_ROUNDS * block_steps * (self._speed - 1.0) * (self.step_seconds + self.data_seconds)
        allowance = self._allowance(loop)
        if at_most_seconds is not None:
            allowance = min(allowance, at_most_seconds)
        if cost > allowance:
            return f"slower steps by the first plan would have cost {cost:.2g} s, and {allowance:.2g} s could be spent"
        return None

    def _conclude(self, loop: Conducted, first: Measured, found: tuple[Measured, ...], num_rounds: int) -> None:
        """Keep the plan, or go back to the first one, and state what was saved by what was found.

        Args:
            loop: The training.
            first: A step by the first plan.
            found: A step by the plan that was found: as estimated, by the lower and the upper end of the speedup.
            num_rounds: Of the race.
        """
        speed, low, high = (first.seconds / now.seconds for now in found)
        verdict: ConfirmationVerdict
        said = f"{factor(speed, (low, high))}, interval {factor_range(low, high)}"
        if low > 1.0:
            verdict, reason = "confirmed", f"a gain on fresh rounds ({said})"
        elif speed > 1.0:
            verdict, reason = "not confirmed", f"no gain is proven in {num_rounds} fresh rounds ({said})"
        else:
            verdict, reason = "refuted", f"no faster than the first plan on fresh rounds ({said})"
        self.confirmation = Confirmation(
            verdict=verdict,
            reason=plain(reason),
            speedup=speed,
            speedup_interval=(low, high) if math.isfinite(high) else None,
            num_rounds=num_rounds,
        )
        before, self._speed = self._speed, max(1.0, speed)
        if before > 1.0:
            self.account.restate((speed - 1.0) / (before - 1.0))
        self.first_step_seconds, self.first_data_seconds = first.step_seconds, first.data_seconds
        if verdict == "refuted":
            self.notes.append(f"the tuned plan was dropped for the first one: {self.confirmation.reason}")
            self._mark_demoted(self.confirmation.reason)
            self._adopt(loop, self.first_plan, first, 1.0)
            if self._on_adopted is not None:
                self._on_adopted(self.plan)
        else:
            self.step_seconds, self.data_seconds = found[0].step_seconds, found[0].data_seconds
            self._go_back(loop)

    def _book_beside_first(self, num_steps: int, seconds: float) -> None:
        """What steps of the race have saved, which would have taken `seconds` each by the first plan."""
        self.account.add(num_steps * seconds - self._steps.take(self._wait))


def _steps_by(interval: Interval, first: Measured, found: Measured, counts_waits: bool) -> tuple[Measured, ...]:
    """A step that is as many times faster than the first plan's as an interval says: its estimate, its two ends."""

    def faster(ratio: float) -> Measured:
        if not counts_waits:  # both wait alike: what seems to differ in so few blocks is chance
            return Measured(first.step_seconds / ratio, first.data_seconds)
        step = min(found.step_seconds, first.seconds / ratio)
        return Measured(step, first.seconds / ratio - step)

    return tuple(faster(max(ratio, LEAST_RATIO)) for ratio in (interval.estimate, interval.low, interval.high))
